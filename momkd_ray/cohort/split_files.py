"""Reads the files of a split as names with roles: lists, tables and JSON, in the layouts of several tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.table_files import read_content, read_table, texts
from momkd_ray.errors import InputError

ROLES = ("train", "val", "test")
_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "tune", "tuning"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
ROLE_OF = {word: role for role, words in _WORDS.items() for word in words}
_ENDING = re.compile(r"(\.(csv|tsv|txt|tab|xlsx|parquet))(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE)
_FILLERS = frozenset(
    ("split", "splits", "fold", "folds", "set", "sets", "k", "cv", "s", "patients", "slides", "ids", "list", "cases")
)
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Entry:
    """A patient or slide that a file puts into the training, validation or test part of a fold.

    Attributes:
        name: a patient or slide as written.
        role: `train`, `val` or `test`.
        location: the file.
        where: such as `data row 5`; '' in a list.
        of: such as ` of 'fold_0'`, the column that says the role; '' in a list.
    """

    name: str
    role: str
    location: str
    where: str = ""
    of: str = ""


Parts = dict[int, list[Entry]]
"""Fold -> its entries."""

ChooseColumn = Callable[[pd.DataFrame, str], str]
"""Returns the column of a table (and its path) that names the most patients or slides of the cohort."""

IsName = Callable[[str], bool]
"""Returns whether a text names a patient or slide of the cohort."""


def role_of(text: str | None) -> str | None:
    """Returns the role that a word means, None if it means none."""
    return None if text is None else ROLE_OF.get(re.sub(r"[\s_-]", "", text).casefold())


def read_list(path: str, is_name: IsName) -> pd.DataFrame:
    """Reads a table or a list of names without a header."""
    frame = read_table(path)
    header = [str(name) for name in frame.columns]
    if any(map(is_name, header)):
        first = pd.DataFrame([header], columns=range(len(header)), dtype="object")
        rest = frame.astype("object").set_axis(range(len(header)), axis=1)
        frame = pd.concat([first, rest], ignore_index=True)
        frame.columns = [f"column {number + 1}" for number in range(len(header))]
    return frame


def has_lists(frame: pd.DataFrame) -> bool:
    """Returns whether a table has a column of names for each part, such as `train` and `test`."""
    named = {role_of(str(name)) for name in frame.columns} - {None}
    return "train" in named and len(named) > 1


def lists_of(frame: pd.DataFrame, path: str, choose: ChooseColumn) -> list[Entry]:
    """Returns the entries of a table with one column for each part: names, or booleans beside a column of names."""
    columns = {str(name): role for name in frame.columns if (role := role_of(str(name)))}
    cells = {name: texts(frame[name]) for name in columns}
    said = [cell.casefold() for own in cells.values() for cell in own if cell is not None]
    if said and all(cell in _TRUTH for cell in said) and any(cell in ("true", "false") for cell in said):
        others = frame[[name for name in frame.columns if str(name) not in columns]]
        names = texts(others[choose(others, path)])
        return [
            Entry(name, role, path, f"data row {row}", f" of '{column}'")
            for column, role in columns.items()
            for row, (name, cell) in enumerate(zip(names, cells[column], strict=True), start=1)
            if name is not None and cell is not None and _TRUTH[cell.casefold()]
        ]
    return [Entry(cell, role, path) for name, role in columns.items() for cell in cells[name] if cell is not None]


def rows_of(frame: pd.DataFrame, path: str, names: Sequence[str | None], column: str) -> list[Entry]:
    """Returns the entries of a column that says the role of each row.

    Raises:
        InputError: it has another value than the words for a role.
    """
    entries = []
    for row, (name, cell) in enumerate(zip(names, texts(frame[column]), strict=True), start=1):
        role = role_of(cell)
        if cell is not None and role is None:
            raise InputError(
                f"{path}: '{column}' is '{cell}' in data row {row}: it must be {', '.join(ROLES)} or blank"
            )
        if name is not None and role is not None:
            entries.append(Entry(name, role, path, f"data row {row}", f" of '{column}'"))
    return entries


def read_folder(folder: str, choose: ChooseColumn, is_name: IsName) -> tuple[Parts, str] | None:
    """Reads a folder of lists; returns the entries and what they were read as, None if it holds none.

    Raises:
        InputError: two files are the same part, or there are files of two layouts.
    """
    names = storage.list_names(folder)
    lists, parts = _recognised(names)
    places = {key: [storage.join(folder, name) for name in found] for key, found in parts.items()}
    if not lists and not parts:
        for name in names:
            number = re.fullmatch(r"(?:folds?|splits?|k|cv)?[ _=-]?(\d{1,9})", name, re.IGNORECASE)
            _, inside = _recognised(storage.list_names(storage.join(folder, name))) if number else ({}, {})
            for (_, role), found in inside.items():
                own = [storage.join(folder, name, file) for file in found]
                places.setdefault((int(number[1]) if number else 0, role), []).extend(own)
    if lists and places:
        example = next(iter(places.values()))[0]
        raise InputError(
            f"folds.file {folder} holds both {next(iter(lists.values()))[0]}, which lists all parts of a fold, and "
            f"{example}, which lists one: move one kind away"
        )
    for found in [*lists.values(), *places.values()]:
        if len(found) > 1:
            raise InputError(f"folds.file {folder} holds {found[0]} and {found[1]} for the same part: move one away")
    if lists:
        entries: Parts = {}
        for fold, (name,) in sorted(lists.items()):
            path = storage.join(folder, name)
            frame = read_table(path)
            if not has_lists(frame):
                missing = "test" if any(role_of(str(column)) == "train" for column in frame.columns) else "train"
                raise InputError(f"{path} has no column '{missing}': it needs one of names for train and for test")
            entries[fold] = lists_of(frame, path, choose)
        return entries, "files with a column of names for each part"
    if not places:
        return None
    entries = {fold: [] for fold, _ in sorted(places)}
    for (fold, role), (path,) in sorted(places.items()):
        frame = read_list(path, is_name)
        column = choose(frame, path)
        entries[fold] += [Entry(name, role, path) for name in texts(frame[column]) if name is not None]
    return entries, f"a file for each part ({', '.join(role for role in ROLES if any(r == role for _, r in places))})"


def _recognised(names: Sequence[str]) -> tuple[dict[int, list[str]], dict[tuple[int, str], list[str]]]:
    """Divides names of files into lists of a fold (`splits_0.csv`) and of a part (`train.csv`, `train_0.csv`)."""
    lists: dict[int, list[str]] = {}
    parts: dict[tuple[int, str], list[str]] = {}
    for name in names:
        ending = _ENDING.search(name)
        if ending is None or name.startswith("."):
            continue
        words = [word.casefold() for word in re.findall(r"[A-Za-z]+|\d+", name[: ending.start()])]
        roles = [ROLE_OF[word] for word in words if word in ROLE_OF]
        numbers = [int(word) for word in words if word.isdecimal() and len(word) < 10]
        others = [word for word in words if word not in ROLE_OF and not word.isdecimal()]
        if set(others) - _FILLERS or len(numbers) > 1 or len(roles) > 1:
            continue
        if roles:
            parts.setdefault((numbers[0] if numbers else 0, roles[0]), []).append(name)
        elif numbers:
            lists.setdefault(numbers[0], []).append(name)
    return lists, parts


def read_json(path: str) -> tuple[Parts, str]:
    """Reads STAMP's `splits.json`, or another file of lists named after the parts.

    Raises:
        InputError: it is not JSON, or has no such lists.
    """
    try:
        tree = json.loads(read_content(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    for _ in range(2):  # {"splits": [...]}
        if isinstance(tree, dict) and len(tree) == 1 and isinstance(next(iter(tree.values())), list | dict):
            tree = next(iter(tree.values()))
    if isinstance(tree, dict) and any(_json_role(str(key)) for key in tree):
        folds: Mapping[int, Any] = {0: tree}
    elif isinstance(tree, dict):
        folds = dict(_numbered(tree))
    else:
        folds = dict(enumerate(tree)) if isinstance(tree, list) else {}
    if not folds or not all(isinstance(own, dict) for own in folds.values()):
        raise InputError(
            f"{path} has no list 'splits', as STAMP writes it, nor lists 'train' and 'test': write one of these"
        )
    parts: Parts = {}
    for fold, own in folds.items():
        lists = {role: names for key, names in own.items() if (role := _json_role(str(key)))}
        needed = ("train", "val" if "val" in lists and "test" not in lists else "test")
        for role in needed:
            if not isinstance(lists.get(role), list):
                raise InputError(
                    f"{path}: split {fold} has no list '{role}_patients', as STAMP writes it, nor '{role}'"
                )
        parts[fold] = [
            Entry(str(name), role, path, "", f" of split {fold}")
            for role, names in lists.items()
            if isinstance(names, list)
            for name in names
        ]
    return parts, "lists of names for each part"


def _json_role(key: str) -> str | None:
    words = [word for word in re.findall(r"[a-z]+", key.casefold()) if word not in _FILLERS]
    return ROLE_OF.get(words[0]) if len(words) == 1 else None


def _numbered(tree: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    for position, (key, value) in enumerate(tree.items()):
        number = re.search(r"\d{1,9}", str(key))
        yield int(number[0]) if number else position, value
