"""Imports splits: a table of folds, STAMP's splits.json, CLAM's splits_<i>.csv, Patho-Bench's k=all.tsv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort import columns
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.slides import slide_id_of
from momkd_ray.cohort.table_files import read_content, read_table, require_columns, rows_by_value, texts
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, Kind, Problem

ROLES = ("train", "val", "test")
CLAM_FILE = re.compile(r"splits_(\d{1,9})\.csv")  # not the _bool and _descriptor files beside them
# columns of Patho-Bench, and of a folds.csv in which not every patient is tested exactly once
ROLE_COLUMN = re.compile(r"(?:fold|role)_(\d{1,9})")

Roles = dict[str, str]
"""Patient -> role in a fold."""


@dataclass(frozen=True)
class Split:
    """An imported split; a patient that a fold does not mention has no role in it.

    Attributes:
        roles: of the patients, by fold.
        validated: folds with a validation set.
        named: (kind, id) of every patient or slide that has a role.
        leaks: a fault for each patient and fold on two sides, or with two rows where there should be one.
    """

    roles: Mapping[int, Roles]
    validated: frozenset[int]
    named: frozenset[tuple[Kind, str]] = frozenset()
    leaks: tuple[Fault, ...] = ()


def read_split(config: Config, cohort: Cohort) -> Split:
    """Reads `folds.file`, whose layout follows from its name and columns.

    Patients who are not in the cohort get no role.

    Raises:
        InputError: it cannot be read, or has none of the layouts.
    """
    path = str(config.folds.file)
    patients = frozenset(str(name) for name in cohort.patients.index)
    if path.lower().endswith(".json"):
        return _stamp(path, patients)
    if not storage.exists(path):
        return _clam(path, dict(zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True)))
    frame = read_table(path)
    usual = cohort.patient_column if cohort.patient_column in frame.columns else None
    patient_column = columns.patient_column(frame.columns, path, config.cohort.patient_column or usual)
    if config.folds.column in frame.columns:
        row_per_slide = columns.has_row_per_slide(frame.columns, config.cohort.slide_column)
        return _table(frame, path, (patient_column, config.folds.column), patients, row_per_slide=row_per_slide)
    of_fold = {int(match[1]): name for name in frame.columns if (match := ROLE_COLUMN.fullmatch(name))}
    if not of_fold:
        require_columns(frame.columns, path, config.folds.column)
    return _patho_bench(frame, path, patient_column, of_fold, patients)


def _table(
    frame: pd.DataFrame, path: str, names: tuple[str, str], patients: frozenset[str], *, row_per_slide: bool
) -> Split:
    """Imports a table of folds: a patient is tested in the fold of its row and trained on in all others.

    Args:
        frame: the table.
        path: its location, for messages.
        names: the columns of patients and of folds.
        patients: of the cohort.
        row_per_slide: whether a patient may have several rows.
    """
    rows_of, _ = rows_by_value(frame[names[0]])
    folds = texts(frame[names[1]])
    tested: dict[str, int] = {}
    leaks = []
    for patient, rows in rows_of.items():
        if patient not in patients:
            continue
        values = [folds[row - 1] for row in rows]
        if len(set(values)) > 1 or (len(rows) > 1 and not row_per_slide):
            different = [value or "blank" for value in dict.fromkeys(values)]
            where = f"folds {' and '.join(different)}" if len(different) > 1 else f"fold {different[0]} twice"
            problem: Problem = "on two sides" if len(different) > 1 else "duplicated"
            leaks.append(_leak(path, patient, f"is in {where}: keep one row", problem))
        elif values[0] is not None:
            tested[patient] = _fold_number(values[0], patient, path)
    numbers = sorted(set(tested.values()))
    if len(numbers) == 1 and not leaks:
        raise InputError(
            f"{path}: every patient of the cohort is in fold {numbers[0]} of '{names[1]}': give two or more"
        )
    roles = {
        number: {patient: "test" if own == number else "train" for patient, own in tested.items()} for number in numbers
    }
    named = (patient for patient, rows in rows_of.items() if any(folds[row - 1] is not None for row in rows))
    return Split(roles, frozenset(), _patients(named), tuple(leaks))


def _patients(names: Iterable[str]) -> frozenset[tuple[Kind, str]]:
    return frozenset(("patient", name) for name in names)


def _leak(path: str, patient: str, what: str, problem: Problem = "on two sides") -> Fault:
    return Fault("patient", patient, problem, path, f"{path}: patient '{patient}' {what}")


def _fold_number(text: str, patient: str, path: str) -> int:
    if not re.fullmatch(r"\d{1,9}(\.0+)?", text.strip()):
        raise InputError(f"{path}: the fold of patient '{patient}' is '{text}': it must be a whole number")
    return int(text.strip().partition(".")[0])


def _stamp(path: str, patients: frozenset[str]) -> Split:
    try:
        tree = json.loads(read_content(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    splits = tree.get("splits") if isinstance(tree, dict) else None
    if not isinstance(splits, list) or not splits:
        raise InputError(f"{path} has no list 'splits', as STAMP writes it")
    roles = {}
    leaks = []
    named: set[str] = set()
    for fold, split in enumerate(splits):
        train, test = (_names(split, key, f"{path}: split {fold}") for key in ("train_patients", "test_patients"))
        what = f"is trained on and tested in split {fold}: keep it on one side"
        leaks += [_leak(path, patient, what) for patient in sorted(train & test & patients)]
        roles[fold] = dict.fromkeys(train & patients, "train") | dict.fromkeys(test & patients, "test")
        named |= train | test
    return Split(roles, frozenset(), _patients(named), tuple(leaks))


def _names(split: Any, key: str, whose: str) -> set[str]:
    names = split.get(key) if isinstance(split, dict) else None
    if not isinstance(names, list):
        raise InputError(f"{whose} has no list '{key}', as STAMP writes it")
    return {str(name) for name in names}


def _clam(folder: str, owners: Mapping[str, str]) -> Split:
    """Imports CLAM's files, which list slides, as roles of patients."""
    files = {int(match[1]): name for name in storage.list_names(folder) if (match := CLAM_FILE.fullmatch(name))}
    if not files:
        fault = "holds no splits_<i>.csv, as CLAM writes them" if storage.list_names(folder) else "does not exist"
        raise InputError(f"folds.file {folder} {fault}")
    roles: dict[int, Roles] = {}
    validated = set()
    leaks: list[Fault] = []
    named: set[tuple[Kind, str]] = set()
    for fold, name in sorted(files.items()):
        path = storage.join(folder, name)
        frame = read_table(path)
        require_columns(frame.columns, path, "train", "test")
        listed = [
            (_known_slide(text, owners), role)
            for role in ROLES
            if role in frame.columns
            for text in texts(frame[role])
            if text is not None
        ]
        if any(role == "val" for _, role in listed):
            validated.add(fold)
        of_cohort = [(owners[slide], slide, role) for slide, role in listed if slide in owners]
        roles[fold], new_leaks = _by_patient(of_cohort, path)
        leaks += new_leaks
        named |= {("slide", slide) for slide, _ in listed}
    return Split(roles, frozenset(validated), frozenset(named), tuple(leaks))


def _known_slide(text: str, owners: Mapping[str, str]) -> str:
    """Returns the slide's identifier; CLAM's pandas writes a column of integers with gaps as floats, such as 12.0."""
    slide = slide_id_of(text)
    integer = slide.removesuffix(".0")
    return integer if slide not in owners and integer in owners else slide


def _by_patient(slides: Iterable[tuple[str, str, str]], path: str) -> tuple[Roles, list[Fault]]:
    """Derives roles of patients from (patient, slide, role); lists the patients with two roles as leaks."""
    first: dict[str, tuple[str, str]] = {}
    leaks: dict[str, Fault] = {}
    for patient, slide, role in slides:
        before, of = first.setdefault(patient, (slide, role))
        if role != of and patient not in leaks:
            leaks[patient] = _leak(
                path,
                patient,
                f"is on two sides, slide '{before}' in {of} and slide '{slide}' in {role}: all slides of a patient "
                "must be on one",
            )
    return {patient: role for patient, (_, role) in first.items()}, list(leaks.values())


def _patho_bench(
    frame: pd.DataFrame, path: str, patient_column: str, of_fold: Mapping[int, str], patients: frozenset[str]
) -> Split:
    rows_of, _ = rows_by_value(frame[patient_column])
    roles: dict[int, Roles] = {}
    validated = set()
    leaks = []
    named: set[str] = set()
    for fold, column in sorted(of_fold.items()):
        values = [None if value is None else value.strip().lower() for value in texts(frame[column])]
        for row, value in enumerate(values, start=1):
            if value is not None and value not in ROLES:
                raise InputError(
                    f"{path}: '{column}' is '{value}' in data row {row}: it must be {', '.join(ROLES)} or blank"
                )
        if "val" in values:
            validated.add(fold)
        roles[fold] = {}
        named |= {patient for patient, rows in rows_of.items() if any(values[row - 1] is not None for row in rows)}
        for patient in sorted(rows_of.keys() & patients):
            own = {role: row for row in reversed(rows_of[patient]) if (role := values[row - 1]) is not None}
            if len(own) > 1:
                sides = " and ".join(f"{role} in data row {row}" for role, row in reversed(own.items()))
                leaks.append(_leak(path, patient, f"is on two sides of '{column}', {sides}: it must be on one"))
            if own:
                roles[fold][patient] = next(iter(own))
    return Split(roles, frozenset(validated), _patients(named), tuple(leaks))
