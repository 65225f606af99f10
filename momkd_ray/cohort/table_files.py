"""Reads tables from .csv, .tsv, .parquet and .xlsx files; text is kept exactly as written."""

from __future__ import annotations

import csv
import difflib
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from momkd_ray import storage
from momkd_ray.errors import InputError

# "null" and "None" are not missing: they are values of some label columns (p53 staining patterns)
MISSING = ("", "NA", "N/A", "NaN", "nan", "#N/A", "<NA>")

PANDAS_INDEX = "__index_level_"  # pandas' name for an unnamed index in Parquet

ColumnOf = Callable[[list[str]], str]
"""Chooses one of a table's columns, or raises an `InputError`."""


def read_table(path: str) -> pd.DataFrame:
    """Reads a table, local or `s3://`, in the format of its suffix.

    Text is kept as written; blanks and the spellings in `MISSING` become missing. Numbers are numbers in Parquet and
    text in all other formats. The first sheet of an .xlsx file is read.

    Raises:
        InputError: no such file, another suffix, no rows, not readable, or a column name used twice.
    """
    frame: pd.DataFrame = arrow_table(path).to_pandas(ignore_metadata=True)
    return frame


def arrow_table(path: str, text_column: ColumnOf | None = None) -> pa.Table:
    """Reads a table as Arrow columns of text, floats and integers.

    Args:
        path: local or `s3://`.
        text_column: for a table of numbers, chooses its single column of text. If every cell of the others is a number
            or blank, a .csv or .tsv file is then parsed as numbers directly.
    """
    reader = _READERS.get(PurePosixPath(path).suffix.lower())
    if reader is None:
        raise InputError(f"{path} is not a table that can be read: its name must end in {', '.join(_READERS)}")
    content = read_content(path)
    if not content.strip():
        raise InputError(f"{path} is empty")
    try:
        table = reader(content, text_column)
        _check_header(table.column_names, path)
        table = _with_blanks_missing(table)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, csv.Error, zipfile.BadZipFile) as error:
        kind = PurePosixPath(path).suffix.lower()
        raise InputError(f"{path} cannot be read as {kind}: {_one_line(error)}") from error
    if table.num_rows == 0:
        raise InputError(f"{path} has a header but no rows")
    return table


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


def require_columns(present: Iterable[str], path: str, *needed: str) -> None:
    """Raises an `InputError` for the first needed column that is not present, naming the nearest one."""
    names = list(present)
    for column in needed:
        if column in names:
            continue
        folded = {name.strip().casefold(): name for name in names}
        near = difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.6)
        hint = f"; the nearest is '{folded[near[0]]}'" if near else ""
        shown = ", ".join(f"'{name}'" for name in names[:12]) + (", ..." if len(names) > 12 else "")
        raise InputError(f"{path} has no column '{column}'{hint}; its columns are {shown}")


def texts(column: pd.Series[Any]) -> list[str | None]:
    """Converts a column to text, None where missing; an integer stored as a float loses its `.0`."""
    return [
        None if missing else _text(value)
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


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else repr(value)
    if isinstance(value, bool):  # as spreadsheets display it
        return str(value).upper()
    return str(value)


def _read_csv(content: bytes, text_column: ColumnOf | None) -> pa.Table:
    return _read_delimited(content, ",", text_column)


def _read_tsv(content: bytes, text_column: ColumnOf | None) -> pa.Table:
    return _read_delimited(content, "\t", text_column)


def _read_delimited(content: bytes, delimiter: str, text_column: ColumnOf | None) -> pa.Table:
    text = content.decode("utf-8-sig").lstrip("\r\n")
    _check_quotes(text, delimiter)
    lines = (match.group() for match in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|$)", text))
    header = next(csv.reader(lines, delimiter=delimiter))
    if not text.partition("\n")[2].strip("\r\n"):
        return pa.table([pa.array([], pa.string())] * len(header), names=header)
    types = dict.fromkeys(header, pa.string())
    if text_column is None or len(types) < len(header):
        return _parsed(text.encode(), delimiter, header, types)
    numbers = dict.fromkeys(header, pa.float64()) | {text_column(header): pa.string()}
    try:
        return _parsed(text.encode(), delimiter, header, numbers)
    except pa.ArrowInvalid:  # as text, so that the cell that is not a number can be named
        return _parsed(text.encode(), delimiter, header, types)


def _check_quotes(text: str, delimiter: str) -> None:
    """Refuses a quoted cell that is not closed: Arrow would read all rows after it as that cell's text.

    Raises:
        csv.Error: names the line in which the cell begins; the header is line 1.
    """
    if all(line.count('"') % 2 == 0 for line in text.splitlines()):  # no quoted cell goes on in the next line
        return
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first_line = 1
    try:
        for _ in rows:
            first_line = rows.line_num + 1
    except csv.Error as error:
        raise csv.Error(
            f'a quote (") that opens in line {first_line} is not closed in its cell: close or remove it'
        ) from error


def _parsed(body: bytes, delimiter: str, header: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    """Parses by Arrow, which refuses a row with too few or too many fields."""
    return pyarrow.csv.read_csv(
        io.BytesIO(body),
        # one block: a row of 20,000 genes may not straddle two
        read_options=pyarrow.csv.ReadOptions(
            column_names=header, skip_rows=1, block_size=min(len(body) + 1, 2**31 - 1)
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=list(MISSING)),
    )


def _read_parquet(content: bytes, _: ColumnOf | None) -> pa.Table:
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    # an integer index holds row numbers; a text index may hold the patients
    row_numbers = [f.name for f in table.schema if f.name.startswith(PANDAS_INDEX) and pa.types.is_integer(f.type)]
    return table.drop_columns(row_numbers)


def _read_xlsx(content: bytes, _: ColumnOf | None) -> pa.Table:
    try:
        sheet = pd.read_excel(io.BytesIO(content), header=None, dtype=object, keep_default_na=False, engine="openpyxl")
    except Exception as error:  # zip, zlib, XML and openpyxl each have exceptions of their own for damage
        raise ValueError(f"the spreadsheet is damaged ({_one_line(error)}): save it again, or as .csv") from error
    cells = [["" if cell is None else _text(cell) for cell in row] for row in sheet.to_numpy().tolist()]
    rows = [row for row in cells if any(row)]  # without formatted but empty rows and columns
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    return pa.table([pa.array(column[1:], pa.string()) for column in columns], names=[column[0] for column in columns])


_READERS: dict[str, Callable[[bytes, ColumnOf | None], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".xlsx": _read_xlsx,
}


def _check_header(names: list[str], path: str) -> None:
    twice = first_duplicate(names)
    if twice is not None:
        raise InputError(f"{path} has two columns named '{twice}': rename or remove one")


def _with_blanks_missing(table: pa.Table) -> pa.Table:
    """Converts all but floats and complete integer columns to text, with the `MISSING` spellings missing."""
    missing, columns = pa.array(MISSING, pa.string()), []
    for column in table.columns:
        if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and not column.null_count):
            columns.append(column)
            continue
        text = column.cast(pa.string())
        blank = pc.is_in(pc.utf8_trim_whitespace(text), value_set=missing)
        columns.append(pc.if_else(blank, pa.scalar(None, pa.string()), text))
    return pa.table(columns, names=table.column_names)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
