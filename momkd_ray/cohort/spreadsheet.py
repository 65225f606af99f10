"""Reads a sheet of an Excel file as text."""

from __future__ import annotations

import datetime
import io
import zipfile
from typing import Any

import pandas as pd
import pyarrow as pa

from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SLIDE_COLUMNS, is_known
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

_USUAL = (*PATIENT_COLUMNS, *SLIDE_COLUMNS)


def read_spreadsheet(path: str, content: bytes) -> tuple[pa.Table, list[Understood]]:
    """Reads the only sheet that names patients or slides, or else the first that is not empty.

    Rows and columns without any cell are passed over.

    Returns:
        The table, of text, and what was recognised.

    Raises:
        InputError: it is damaged or empty.
    """
    try:
        sheets = pd.read_excel(
            io.BytesIO(content), sheet_name=None, header=None, dtype=object, keep_default_na=False, engine="openpyxl"
        )
    except Exception as error:  # zip, zlib, XML and openpyxl each have exceptions of their own for damage
        one_line = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(
            f"{path} cannot be read as .xlsx: the spreadsheet is damaged ({one_line}), save it again, or as .csv"
        ) from error
    understood: list[Understood] = []
    sheets = _with_merged_cells(path, content, sheets, understood)
    tables = {name: _cells(sheet) for name, sheet in sheets.items()}
    filled = {name: rows for name, rows in tables.items() if rows}
    if not filled:
        raise InputError(f"{path} has no sheet with anything in it")
    filled, titles = (
        {name: rows[_header(rows) :] for name, rows in filled.items()},
        {name: _header(rows) for name, rows in filled.items()},
    )
    usual = [name for name, rows in filled.items() if any(is_known(cell, _USUAL) for cell in rows[0])]
    name = usual[0] if len(usual) == 1 else next(iter(filled))
    rows, others = filled[name], len(filled) - 1
    if others:
        more = "1 other is" if others == 1 else f"{others} others are"
        understood.append(Understood(path, "layout", f"the sheet '{name}' is read, and {more} not", others))
    if titles[name]:
        above = "1 row above the header is" if titles[name] == 1 else f"{titles[name]} rows above the header are"
        understood.append(Understood(path, "layout", f"{above} passed over", titles[name]))
    columns = [column for column in zip(*rows, strict=True) if any(cell.strip() for cell in column)]
    header = [column[0] for column in columns]
    return pa.table([pa.array(column[1:], pa.string()) for column in columns], names=header), understood


def cell_text(value: Any) -> str:
    """Converts a cell to text; an integer stored as a float loses its `.0`, and a date its time at midnight."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else repr(value)
    return str(value)


def _header(rows: list[list[str]]) -> int:
    """Returns the row of the header: the first that names patients or slides, if what is above has one cell a row."""
    for number, row in enumerate(rows[:10]):
        if any(is_known(cell, _USUAL) for cell in row):
            return number
        if sum(bool(cell.strip()) for cell in row) > 1:
            return 0
    return 0


def _with_merged_cells(
    path: str, content: bytes, sheets: dict[Any, pd.DataFrame], understood: list[Understood]
) -> dict[Any, pd.DataFrame]:
    """Fills cells that are merged over several rows with their value, which a file has in the first of them only."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        if not any(b"<mergeCell " in archive.read(name) for name in parts):
            return sheets
    filled = 0
    import openpyxl  # takes a quarter of a second to import, and most tables are text

    book = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
    for name, sheet in sheets.items():
        for area in book[name].merged_cells.ranges:
            first, last, column = area.min_row - 1, min(area.max_row, len(sheet)), area.min_col - 1
            if last - first > 1 and area.min_col == area.max_col and column < sheet.shape[1]:
                cells = sheet.iloc[:, column].tolist()
                cells[first:last] = [cells[first]] * (last - first)
                sheet[sheet.columns[column]] = pd.Series(cells, dtype=object)
                filled += last - first - 1
    if filled:
        cells = "1 cell is" if filled == 1 else f"{filled:,} cells are"
        understood.append(Understood(path, "layout", f"{cells} filled from the merged cell they are part of", filled))
    return sheets


def _cells(sheet: pd.DataFrame) -> list[list[str]]:
    cells = [["" if cell is None else cell_text(cell) for cell in row] for row in sheet.to_numpy().tolist()]
    return [row for row in cells if any(cell.strip() for cell in row)]
