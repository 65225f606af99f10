"""The columns of tables that say in which fold a patient is tested, or on which side of a split it is."""

from __future__ import annotations

import re

from momkd_ray.init_config.folder import Listing, Table, match_patients

MOST_FOLDS = 20
_NAME = re.compile(r"(?:^|[\W_])(?:folds?|splits?|cv|partition)(?:$|[\W_\d])", re.IGNORECASE)
_FOLD = re.compile(r"(?:fold|split)?[\W_]*\d{1,2}", re.IGNORECASE)
_ROLES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def fold_columns(table: Table) -> list[str]:
    """Returns the columns whose values are roles, or numbers of folds under such a name."""
    found = []
    for column in table.texts:
        values = set(table.values(column))
        are_roles = len(values) >= 2 and all(value.casefold() in _ROLES for value in values)
        are_folds = 2 <= len(values) <= MOST_FOLDS and all(_FOLD.fullmatch(value) for value in values)
        if are_roles or (are_folds and _NAME.search(column)):
            found.append(column)
    return found


def describe_fold_columns(listing: Listing, patients: set[str]) -> list[str]:
    """Says how the folds of tables with a row a patient or slide are used, a sentence a column."""
    return [
        f"`file: {table.path}` with `column: {column}` would use its folds "
        f"({', '.join(sorted(set(table.values(column))))})."
        for table in listing.tables
        if (columns := fold_columns(table)) and match_patients(table, patients) is not None
        for column in columns
    ]
