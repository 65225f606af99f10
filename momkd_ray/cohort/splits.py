"""Imports splits: tables of folds or of roles, folders of lists, JSON; of patients or slides, whichever is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.known_columns import is_known
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.split_files import (
    ROLES,
    Entry,
    Parts,
    has_lists,
    lists_of,
    read_folder,
    read_json,
    role_of,
    rows_of,
)
from momkd_ray.cohort.split_names import NamedPatients, SplitNames
from momkd_ray.cohort.table_files import read_table, require_columns, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, Kind

__all__ = ["ROLES", "Roles", "Split", "read_split"]

# of Patho-Bench (fold_0), of a run's own folds.csv (role_0), and of others
_NUMBERED = re.compile(r"(?:folds?|role|splits?|set|k|cv|rep|repeat)?[ _=-]?(\d{1,9})", re.IGNORECASE)
_OWN_COLUMNS = re.compile(r"(?:fold|role)_\d{1,9}")

Roles = dict[str, str]
"""Patient -> role in a fold."""


@dataclass(frozen=True)
class Split:
    """An imported split; a patient that a fold does not mention has no role in it.

    Attributes:
        roles: of the patients, by fold.
        validated: folds with a validation set.
        named: (kind, id) of every patient or slide that has a role.
        leaks: a fault for each patient and fold on two sides.
        understood: as what it was read.
    """

    roles: Mapping[int, Roles]
    validated: frozenset[int]
    named: frozenset[tuple[Kind, str]] = frozenset()
    leaks: tuple[Fault, ...] = ()
    understood: tuple[Understood, ...] = ()


def read_split(config: Config, cohort: Cohort) -> Split:
    """Reads `folds.file`, whose layout follows from its name and content.

    If no fold has a test set, the validation sets are the test sets, and so they are if both are the same. Patients who
    are not in the cohort get no role.

    Raises:
        InputError: it cannot be read, or has none of the layouts.
    """
    path, names = str(config.folds.file), SplitNames.of(cohort)
    if path.lower().endswith(".json"):
        return _of_parts(path, *read_json(path), names)
    if not storage.exists(path):
        return _read_folder(path, names)
    frame = read_table(path)
    usual = _usual_column(frame, config.folds.column)
    chosen = config.folds.column if "column" in config.folds.model_fields_set else None
    if chosen is not None:
        require_columns(frame.columns, path, chosen, key="folds.column")
        cells = [cell for cell in texts(frame[chosen]) if cell is not None]
        columns = {0: chosen} if cells and all(map(role_of, cells)) else {}
    else:
        columns = _role_columns(frame, path, usual)
    if columns:
        cells_of = texts(frame[names.column(_without(frame, columns.values()), path)])
        parts = {fold: rows_of(frame, path, cells_of, column) for fold, column in sorted(columns.items())}
        shown = ", ".join(f"'{column}'" for column in list(columns.values())[:3]) + (
            ", ..." if len(columns) > 3 else ""
        )
        return _of_parts(path, parts, f"a role of each row in {shown}", names)
    if usual not in frame.columns and has_lists(frame):
        number = re.search(r"(\d{1,9})\D*$", path.rpartition("/")[2])
        parts = {int(number[1]) if number else 0: lists_of(frame, path, names.column)}
        return _of_parts(path, parts, "a column of names for each part", names)
    require_columns(frame.columns, path, usual, key="folds.column")
    return _of_numbers(frame, path, usual, names)


def _usual_column(frame: pd.DataFrame, usual: str) -> str:
    """Returns the column that is named just so or else, if it is the only one, so apart from case and punctuation."""
    if usual in frame.columns:
        return usual
    alike = [str(name) for name in frame.columns if is_known(str(name), (usual,))]
    return alike[0] if len(alike) == 1 else usual


def _without(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    return frame.drop(columns=list(columns))


def _role_columns(frame: pd.DataFrame, path: str, usual: str) -> dict[int, str]:
    """Returns fold -> the column that says its roles; empty if there is none.

    Raises:
        InputError: two columns without a number say roles.
    """
    numbered: dict[int, str] = {}
    others = []
    for name in map(str, frame.columns):
        cells = [cell for cell in texts(frame[name]) if cell is not None]
        says_roles = bool(cells) and all(map(role_of, cells))
        if (number := _NUMBERED.fullmatch(name)) and (says_roles or _OWN_COLUMNS.fullmatch(name)):
            numbered.setdefault(int(number[1]), name)
        elif says_roles:
            others.append(name)
    if numbered or (usual in frame.columns and usual not in others):
        return numbered
    if len(others) > 1 and usual not in others:
        cures = ", or ".join(set_to("folds.column", name) for name in others[:3])
        raise InputError(f"{path} has several columns that say train and test: {cures}, whichever is meant")
    return {0: usual if usual in others else others[0]} if others else {}


def _read_folder(folder: str, names: SplitNames) -> Split:
    inside = storage.list_names(folder)
    if not inside:
        raise InputError(f"folds.file {folder} does not exist")
    found = read_folder(folder, names.column, names.is_name)
    if found is None:
        raise InputError(
            f"folds.file {folder} holds no splits_<i>.csv, as CLAM writes them, and no train.csv and test.csv or "
            "train_<i>.csv and test_<i>.csv: give a folder of these, or a file"
        )
    return _of_parts(folder, *found, names)


def _of_parts(path: str, parts: Parts, layout: str, names: SplitNames) -> Split:
    parts, notes = _with_tests(path, parts)
    named = names.resolve((entry.name for own in parts.values() for entry in own), path)
    leaks: list[Fault] = []
    roles = {fold: _roles(own, named, leaks) for fold, own in parts.items()}
    validated = frozenset(fold for fold, own in parts.items() if any(entry.role == "val" for entry in own))
    understood = [_read_as(path, layout, len(parts), named, names), *notes, *named.understood]
    return Split(roles, validated, _ids(named), tuple(leaks), tuple(understood))


def _read_as(path: str, layout: str, folds: int, named: NamedPatients, names: SplitNames) -> Understood:
    """Says as what a split is read, how many of its names can be used, and how many patients it does not name."""
    count = "one fixed split, a single fold" if folds == 1 else f"{folds} folds"
    used = [own for own in named.owners.values() if own in names.cohort]
    verb, total = "has" if len(used) == 1 else "have", f"{len(used):,} of its {len(named.ids):,}"
    whose = f"{total} patients {verb} a label and slides"
    if named.kind == "slide":
        whose = f"{total} slides {'is' if len(used) == 1 else 'are'} of patients with a label"
    without = len(names.cohort.difference(used))
    are = "is" if without == 1 else "are"
    of = f"{without:,} of the cohort's {len(names.cohort):,} patients"
    others = f"; {of} {are} not in it and {are} neither trained nor tested" if without else ""
    what = f"it is read as {count}: {layout}; {whose}{others}"
    return Understood(path, "split", what, len(used))


def _ids(named: NamedPatients) -> frozenset[tuple[Kind, str]]:
    return frozenset((named.kind, own) for own in named.ids.values())


def _with_tests(path: str, parts: Parts) -> tuple[Parts, list[Understood]]:
    """Makes the validation sets the test sets if there are no others; they are cut from the training patients then."""

    def members(fold: int, role: str) -> set[str]:
        return {entry.name for entry in parts[fold] if entry.role == role}

    validated = any(members(fold, "val") for fold in parts)
    cut = "validation sets are cut from the training patients (folds.validation)"
    if validated and not any(members(fold, "test") for fold in parts):
        renamed = {
            fold: [replace(entry, role="test") if entry.role == "val" else entry for entry in own]
            for fold, own in parts.items()
        }
        what = f"it has validation sets (val) and no test sets: val is tested on as the test set, and {cut}"
        return renamed, [Understood(path, "split", what, len(parts))]
    if validated and all(members(fold, "val") == members(fold, "test") for fold in parts):
        once = {fold: [entry for entry in own if entry.role != "val"] for fold, own in parts.items()}
        what = f"its validation sets are the test sets once more (val and test are the same): {cut}"
        return once, [Understood(path, "split", what, len(parts))]
    return parts, []


def _roles(entries: Sequence[Entry], named: NamedPatients, leaks: list[Fault]) -> Roles:
    """Derives the roles of a fold's patients, and adds the patients with two roles to the leaks."""
    first: dict[str, Entry] = {}
    leaking: set[str] = set()
    for entry in entries:
        patient = named.owners.get(entry.name)
        if patient is None:
            continue
        before = first.setdefault(patient, entry)
        if before.role == entry.role or patient in leaking:
            continue
        leaking.add(patient)
        sides = f"is on two sides{entry.of}, {_side(before, named)} and {_side(entry, named)}"
        must = "all slides of a patient must be on one" if named.kind == "slide" else "it must be on one"
        leaks.append(_leak(entry.location, patient, f"{sides}: {must}"))
    return {patient: entry.role for patient, entry in first.items()}


def _side(entry: Entry, named: NamedPatients) -> str:
    slide = f"slide '{entry.name}' in " if named.kind == "slide" else ""
    return f"{slide}{entry.role}{f' in {entry.where}' if entry.where else ''}"


def _leak(path: str, patient: str, what: str) -> Fault:
    return Fault("patient", patient, "on two sides", path, f"{path}: patient '{patient}' {what}")


def _of_numbers(frame: pd.DataFrame, path: str, column: str, names: SplitNames) -> Split:
    """Imports a table of folds: a patient is tested in the fold of its row and trained on in all others."""
    cells = texts(frame[names.column(_without(frame, [column]), path)])
    folds = texts(frame[column])
    named = names.resolve((cell for cell, fold in zip(cells, folds, strict=True) if cell and fold is not None), path)
    values_of: dict[str, dict[str, None]] = {}
    for cell, fold in zip(cells, folds, strict=True):
        if cell is not None and (patient := named.owners.get(cell)) is not None:
            values_of.setdefault(patient, {})[fold or "blank"] = None
    tested: dict[str, int] = {}
    leaks = []
    for patient, values in values_of.items():
        if len(values) > 1:
            leaks.append(_leak(path, patient, f"is in folds {' and '.join(values)}: keep one row"))
        else:
            tested[patient] = _fold_number(next(iter(values)), patient, path)
    numbers = sorted(set(tested.values()))
    if len(numbers) == 1 and not leaks:
        raise InputError(f"{path}: every patient of the cohort is in fold {numbers[0]} of '{column}': give two or more")
    roles = {
        number: {patient: "test" if own == number else "train" for patient, own in tested.items()} for number in numbers
    }
    read_as = _read_as(path, f"each row's fold of test in '{column}'", len(numbers), named, names)
    return Split(roles, frozenset(), _ids(named), tuple(leaks), (read_as, *named.understood))


def _fold_number(text: str, patient: str, path: str) -> int:
    number = re.fullmatch(r"(?:folds?|splits?|set|k|cv)?[ _=-]?(\d{1,9})(?:\.0+)?", text.strip(), re.IGNORECASE)
    if not number:
        raise InputError(f"{path}: the fold of patient '{patient}' is '{text}': it must be a whole number")
    return int(number[1])
