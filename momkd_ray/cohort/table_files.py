"""Reads tables from text, Parquet and Excel files, compressed or not; text is kept as written, without outer blanks."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from momkd_ray import storage
from momkd_ray.cohort.delimited import MISSING, ColumnsOf, read_delimited
from momkd_ray.cohort.number_text import with_decimal_points
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.spreadsheet import cell_text, read_spreadsheet
from momkd_ray.cohort.understood import Understood
from momkd_ray.cohort.unpack import COMPRESSIONS, unpack
from momkd_ray.errors import InputError

PANDAS_INDEX = "__index_level_"  # pandas' name for an unnamed index in Parquet

TEXT = (".csv", ".tsv", ".txt", ".tab", ".gct")
SUFFIXES = (*TEXT, ".parquet", ".pq", ".xlsx", ".xlsm")


@dataclass(frozen=True, eq=False)
class TableFile:
    """A table as read, and what was recognised about its file.

    Attributes:
        path: local or `s3://`.
        table: columns of text, floats and complete integers.
        understood: encoding, delimiter, comment lines and the like, where they are not the usual ones.
    """

    path: str
    table: pa.Table
    understood: tuple[Understood, ...]

    def frame(self) -> pd.DataFrame:
        """Returns the table for pandas."""
        frame: pd.DataFrame = self.table.to_pandas(ignore_metadata=True)
        return frame


def read_table(path: str) -> pd.DataFrame:
    """Reads a table, as `read_table_file`, for pandas."""
    return read_table_file(path).frame()


def read_table_file(path: str, text_columns: ColumnsOf | None = None, *, repeated_columns: bool = False) -> TableFile:
    """Reads a table, local or `s3://`, in the format of its suffix, unpacked if it is compressed.

    Text is kept as written, without blanks around it; blanks and the spellings in `MISSING` become missing, and rows
    and unnamed columns without any cell are passed over. Numbers are numbers in Parquet and text in all other formats.

    Args:
        path: a file named .csv, .tsv, .txt, .tab, .gct, .parquet or .xlsx, perhaps with .gz, .bz2, .xz, .zst or .zip.
        text_columns: for a table of numbers, chooses its column or columns of text. If every cell of the others is a
            number or blank, delimited text is then parsed as numbers directly; decimal commas become points.
        repeated_columns: whether two columns may have the same name.

    Raises:
        InputError: no such file, another suffix, no rows, damaged, or a column name used twice.
    """
    content = read_content(path)
    suffix, content = unpack(path, content, SUFFIXES)
    if suffix not in SUFFIXES:
        raise InputError(_no_table(path, suffix))
    if not content.strip():
        raise InputError(f"{path} is empty")
    _check_content(path, suffix, content)
    if suffix in TEXT:
        table, understood = read_delimited(path, content, suffix, text_columns)
    elif suffix in (".xlsx", ".xlsm"):
        table, understood = read_spreadsheet(path, content)
    else:
        table, understood = _read_parquet(path, content), []
    table = _with_plain_names(table, path, understood)
    if not repeated_columns:
        _check_header(table.column_names, path)
    table = _without_blank_rows(_with_blanks_missing(table, path, understood), path, understood)
    if table.num_rows == 0:
        raise InputError(f"{path} has a header but no rows")
    if text_columns is not None and len(set(table.column_names)) == table.num_columns:
        chosen = text_columns(table.column_names)
        table = with_decimal_points(path, table, {chosen} if isinstance(chosen, str) else set(chosen), understood)
    return TableFile(path, table, tuple(understood))


def read_content(path: str) -> bytes:
    """Reads the bytes of a file that the user named.

    Raises:
        InputError: it does not exist or cannot be read.
    """
    try:
        return storage.read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {_one_line(error)}") from error


def require_columns(present: Iterable[str], path: str, *needed: str, key: str = "") -> None:
    """Raises an `InputError` for the first needed column that is not present, naming the nearest one.

    Args:
        present: the table's columns.
        path: of the table, for messages.
        needed: columns that it must have.
        key: of the configuration, or option of the command line, that names the column, for messages.
    """
    names = list(present)
    for column in needed:
        if column in names:
            continue
        folded = {name.strip().casefold(): name for name in names}
        near = [folded[name] for name in difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.6)]
        shown = ", ".join(f"'{name}'" for name in names[:12]) + (", ..." if len(names) > 12 else "")
        if key and not near:
            raise InputError(f"{path} has no column '{column}': {set_to(key)} one of its columns, {shown}")
        hint = f"; the nearest is '{near[0]}'" if near else ""
        hint += f" ({set_to(key, near[0])})" if near and key else ""
        raise InputError(f"{path} has no column '{column}'{hint}; its columns are {shown}")


def texts(column: pd.Series[Any]) -> list[str | None]:
    """Converts a column to text, None where missing; an integer stored as a float loses its `.0`."""
    return [
        None if missing else cell_text(value)
        for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)
    ]


def rows_by_value(column: pd.Series[Any]) -> tuple[dict[str, list[int]], list[int]]:
    """Returns the data rows (from 1) of each value as text, in table order, and the rows where it is blank."""
    rows: dict[str, list[int]] = {}
    blank = []
    for row, value in enumerate(texts(column), start=1):
        if value is None:
            blank.append(row)
        else:
            rows.setdefault(value, []).append(row)
    return rows, blank


def blank_cell(path: str, column: str, row: int) -> str:
    """Builds the sentence about a blank cell that should name something."""
    return f"{path}: '{column}' is blank in data row {row}: fill it in or remove the row"


def data_rows(rows: Sequence[int]) -> str:
    """Formats row numbers: `data row 3`, `data rows 1 and 5`, `data rows 1, 2, 3 and 9 more`."""
    if len(rows) == 1:
        return f"data row {rows[0]}"
    if len(rows) == 2:
        return f"data rows {rows[0]} and {rows[1]}"
    shown = ", ".join(map(str, rows[:3]))
    return f"data rows {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def first_duplicate(values: Iterable[str]) -> str | None:
    """Returns the first value that occurs a second time; None if there is none."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _no_table(path: str, suffix: str) -> str:
    readable = f"{', '.join(SUFFIXES)}, and with {', '.join(COMPRESSIONS)} after it"
    cure = (
        "save it as .xlsx or .csv"
        if suffix in (".xls", ".ods", ".xlsb", ".numbers")
        else f"its name must end in {readable}"
    )
    return f"{path} is not a table that can be read: {cure}"


def _check_content(path: str, suffix: str, content: bytes) -> None:
    """Refuses a file whose first bytes are those of another format than its name says."""
    kinds = {b"PK\x03\x04": ".xlsx", b"PAR1": ".parquet", b"\xd0\xcf\x11\xe0": "an old .xls"}
    found = next((kind for mark, kind in kinds.items() if content.startswith(mark)), "")
    fits = {".xlsx": (".xlsx", ".xlsm"), ".parquet": (".parquet", ".pq")}
    if found and suffix not in fits.get(found, ()):
        cure = "save it as .xlsx or .csv" if found not in fits else f"rename it so that it ends in {found}"
        raise InputError(f"{path} holds {found} file, whatever its name says: {cure}".replace("holds .", "holds a ."))


def _read_parquet(path: str, content: bytes) -> pa.Table:
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as .parquet: {_one_line(error)}") from error
    # an integer index holds row numbers; a text index may hold the patients
    row_numbers = [f.name for f in table.schema if f.name.startswith(PANDAS_INDEX) and pa.types.is_integer(f.type)]
    return table.drop_columns(row_numbers)


def _with_plain_names(table: pa.Table, path: str, understood: list[Understood]) -> pa.Table:
    """Removes blanks around the names of columns."""
    names = [" ".join(name.split()) for name in table.column_names]
    changed = sum(name != own for name, own in zip(names, table.column_names, strict=True))
    if changed:
        understood.append(
            Understood(path, "layout", f"blanks in the names of {_columns(changed)} are passed over", changed)
        )
    return table.rename_columns(names)


def _columns(number: int) -> str:
    return "1 column" if number == 1 else f"{number:,} columns"


def _check_header(names: list[str], path: str) -> None:
    twice = first_duplicate(names)
    if twice is None:
        return
    numbers = [number for number, name in enumerate(names, start=1) if name == twice][:2]
    where = f"columns {numbers[0]} and {numbers[1]} of the header"
    if not twice:
        raise InputError(f"{path}: {where} have no name: name or remove them")
    raise InputError(f"{path} has two columns named '{twice}' ({where}): rename or remove one")


def _with_blanks_missing(table: pa.Table, path: str, understood: list[Understood]) -> pa.Table:
    """Converts all but floats and complete integer columns to text without outer blanks, `MISSING` ones missing."""
    missing, columns, trimmed = pa.array(MISSING, pa.string()), [], 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and not column.null_count):
            columns.append(column)
            continue
        text = _as_text(path, name, column)
        plain = pc.utf8_trim(text, "\ufeff\u200b \t\n\r\u00a0\u3000\u2007\u202f")
        trimmed += pc.sum(pc.not_equal(text, plain)).as_py() or 0
        columns.append(pc.if_else(pc.is_in(plain, value_set=missing), pa.scalar(None, pa.string()), plain))
    if trimmed:
        cells = "1 cell is" if trimmed == 1 else f"{trimmed:,} cells are"
        understood.append(Understood(path, "layout", f"{cells} read without the blanks around the text", trimmed))
    return pa.table(columns, names=table.column_names)


def _as_text(path: str, name: str, column: Any) -> Any:
    if pa.types.is_boolean(column.type):
        return pc.if_else(column, "True", "False")
    if pa.types.is_integer(column.type) or not pa.types.is_nested(column.type):
        try:
            return column.cast(pa.string())
        except (pa.ArrowException, ValueError):
            pass
    raise InputError(f"{path}: column '{name}' holds {column.type} instead of plain values: remove it")


def _without_blank_rows(table: pa.Table, path: str, understood: list[Understood]) -> pa.Table:
    """Drops the rows in which every cell is missing, as spreadsheets leave them below and between others."""
    if not table.num_columns or not table.column(0).null_count:
        return table
    kept = table.column(0).is_valid()
    for column in table.columns[1:]:
        if not pc.any(pc.invert(kept)).as_py():
            return table
        kept = pc.or_(kept, column.is_valid())
    dropped = table.num_rows - (pc.sum(kept).as_py() or 0)
    if not dropped:
        return table
    rows = "1 entirely blank row is" if dropped == 1 else f"{dropped:,} entirely blank rows are"
    understood.append(Understood(path, "layout", f"{rows} passed over", dropped))
    return table.filter(kept)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
