"""Finds the columns of a table that name patients and slides: configured, or by their usual names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SLIDE_COLUMNS, is_known
from momkd_ray.cohort.table_files import PANDAS_INDEX, require_columns
from momkd_ray.errors import InputError


def patient_column(columns: Iterable[str], path: str, chosen: str | None) -> str:
    """Returns the column that names the patients.

    Args:
        columns: of the table.
        path: of the table, for messages.
        chosen: `cohort.patient_column`; None to find it by name.

    Raises:
        InputError: the chosen column does not exist, or none or several columns qualify.
    """
    return _column(list(columns), path, chosen, PATIENT_COLUMNS, "patients", "cohort.patient_column")


def slide_column(columns: Iterable[str], path: str, chosen: str | None) -> str:
    """Returns the column that names the slides, as `patient_column` with `cohort.slide_column`."""
    return _column(list(columns), path, chosen, SLIDE_COLUMNS, "slides", "cohort.slide_column")


def has_row_per_slide(columns: Iterable[str], chosen: str | None) -> bool:
    """Returns whether a table has a column of slides, so that a patient may have several rows."""
    names = list(columns)
    return chosen in names if chosen is not None else bool(_candidates(names, SLIDE_COLUMNS))


def _column(columns: Sequence[str], path: str, chosen: str | None, known: Sequence[str], whose: str, key: str) -> str:
    if chosen is not None:
        require_columns(columns, path, chosen)
        return chosen
    candidates = _candidates(columns, known)
    if len(candidates) > 1:
        several = ", ".join(f"'{name}'" for name in candidates)
        raise InputError(
            f"{path} has several columns that may name the {whose} ({several}): set {key} to the right one"
        )
    if not candidates:
        if index := next((name for name in columns if name.startswith(PANDAS_INDEX)), None):
            raise InputError(
                f"{path} has no column that names the {whose}, such as '{known[0]}' or '{known[1]}': if they are the "
                f"DataFrame's index, which pandas wrote without a name as '{index}', write the file again after "
                f"rename_axis('{known[0]}').reset_index(), or else set {key}"
            )
        shown = ", ".join(f"'{name}'" for name in columns[:12]) + (", ..." if len(columns) > 12 else "")
        raise InputError(
            f"{path} has no column that names the {whose}, such as '{known[0]}' or '{known[1]}': "
            f"set {key} to the one that does; its columns are {shown}"
        )
    return candidates[0]


def _candidates(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the columns with a known name; if there is none, those that differ from one in case or punctuation."""
    exact = [column for column in columns if column in known]
    return exact or [column for column in columns if is_known(column, known)]
