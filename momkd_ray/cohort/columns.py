"""Finds the columns of a table that name patients and slides: configured, by their usual names, or by their values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from momkd_ray.cohort.identifiers import is_row_numbers, match_identifiers
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SLIDE_COLUMNS, is_known
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.table_files import PANDAS_INDEX, require_columns
from momkd_ray.errors import InputError

Values = Callable[[str], Sequence[str | None]]
"""Returns the cells of a column as text."""

OMICS_KEY = "cohort.columns.omics"
_SEARCHED = 60  # columns whose values are compared with patients, where none is named so


def patient_column(columns: Iterable[str], path: str, chosen: str | None, key: str = "cohort.patient_column") -> str:
    """Returns the column that names the patients.

    Args:
        columns: of the table.
        path: of the table, for messages.
        chosen: the configured name; None to find it by name.
        key: of the configuration, for messages.

    Raises:
        InputError: the chosen column does not exist, or none or several columns qualify.
    """
    return _column(list(columns), path, chosen, PATIENT_COLUMNS, "patients", key)


def patient_candidates(columns: Iterable[str], path: str, chosen: str | None, values: Values, key: str) -> list[str]:
    """Returns the columns that may name the patients: the chosen one, those named so, or one without a name.

    A column without a name is one if it is the first, or pandas' index, and does not count the rows.

    Args:
        columns: of the table.
        path: of the table, for messages.
        chosen: the configured name, or None.
        values: the cells of a column.
        key: of the configuration that names the column, for messages.

    Raises:
        InputError: the chosen column does not exist.
    """
    names = list(columns)
    if chosen is not None:
        require_columns(names, path, chosen, key=key)
        return [chosen]
    unnamed = [name for number, name in enumerate(names) if is_unnamed(name) and (not number or PANDAS_INDEX in name)]
    return _candidates(names, PATIENT_COLUMNS) or [name for name in unnamed if not is_row_numbers(values(name))][:1]


def patient_column_by_values(
    columns: Iterable[str], path: str, chosen: str | None, values: Values, patients: Collection[str], key: str
) -> str:
    """Returns the column that names the patients, where its name does not decide the one with most known patients.

    Args:
        columns: of the table.
        path: of the table, for messages.
        chosen: the configured name, or None.
        values: the cells of a column.
        patients: of another table.
        key: of the configuration that names the column, for messages.

    Raises:
        InputError: the chosen column does not exist, or none or several columns qualify.
    """
    names = list(columns)
    candidates = patient_candidates(names, path, chosen, values, key)
    if chosen is not None:
        return candidates[0]
    if len(candidates) == 1 and _share(values(candidates[0]), patients) >= 0.5:
        return candidates[0]
    found = _best(candidates, values, patients)
    if not found and sum(name.isdecimal() for name in patients) < 0.5 * len(patients):
        # numbers are patients by luck, for instance an age
        others = [name for name in names if name not in candidates and not is_known(name, SLIDE_COLUMNS)]
        found = _best(others[:_SEARCHED], values, patients)
    if len(found) == 1:
        return found[0]
    if len(candidates) == 1:
        return candidates[0]
    return _column(names, path, None, PATIENT_COLUMNS, "patients", key, found)


def slide_column(columns: Iterable[str], path: str, chosen: str | None) -> str:
    """Returns the column that names the slides, as `patient_column` with `cohort.slide_column`."""
    return _column(list(columns), path, chosen, SLIDE_COLUMNS, "slides", "cohort.slide_column")


def slide_columns(columns: Iterable[str]) -> list[str]:
    """Returns the columns that are named as those of slides usually are."""
    return _candidates(list(columns), SLIDE_COLUMNS)


def has_row_per_slide(columns: Iterable[str], chosen: str | None) -> bool:
    """Returns whether a table has a column of slides, so that a patient may have several rows."""
    names = list(columns)
    return chosen in names if chosen is not None else bool(_candidates(names, SLIDE_COLUMNS))


def _best(candidates: Sequence[str], values: Values, patients: Collection[str]) -> list[str]:
    """Returns the columns in which most cells are known patients, the best ones, of equal columns the first."""
    shares = {name: _share(values(name), patients) for name in candidates}
    best = max(shares.values(), default=0)
    found = [name for name, share in shares.items() if share == best and share >= 0.5]
    return found[:1] if len({tuple(values(name)) for name in found}) == 1 else found


def _share(cells: Sequence[str | None], patients: Collection[str]) -> float:
    return match_identifiers((cell for cell in cells if cell is not None), patients).share


def is_unnamed(name: str) -> bool:
    """Returns whether a column has no name, or the one that pandas gives to such a column."""
    return name.startswith(PANDAS_INDEX) or name in ("", "Unnamed: 0")


def is_named_after_patients(name: str) -> bool:
    """Returns whether a column's name says that it holds patients."""
    return is_known(name, PATIENT_COLUMNS)


def _column(
    columns: Sequence[str],
    path: str,
    chosen: str | None,
    known: Sequence[str],
    whose: str,
    key: str,
    best: Sequence[str] = (),
) -> str:
    if chosen is not None:
        require_columns(columns, path, chosen, key=key)
        return chosen
    candidates = list(best) or _candidates(columns, known)
    if len(candidates) > 1:
        several = ", ".join(f"'{name}'" for name in candidates)
        raise InputError(
            f"{path} has several columns that may name the {whose} ({several}): "
            f"{set_to(key, *candidates[:2])}, whichever does"
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
