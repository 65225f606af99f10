"""Reads a sheet of an Excel file as text."""

from __future__ import annotations

import io
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
    tables = {name: _cells(sheet) for name, sheet in sheets.items()}
    filled = {name: rows for name, rows in tables.items() if rows}
    if not filled:
        raise InputError(f"{path} has no sheet with anything in it")
    understood = []
    usual = [name for name, rows in filled.items() if any(is_known(cell, _USUAL) for cell in rows[0])]
    name = usual[0] if len(usual) == 1 else next(iter(filled))
    rows, others = filled[name], len(filled) - 1
    if others:
        more = "1 other is" if others == 1 else f"{others} others are"
        understood.append(Understood(path, "layout", f"the sheet '{name}' is read, and {more} not", others))
    columns = [column for column in zip(*rows, strict=True) if any(cell.strip() for cell in column)]
    header = [column[0] for column in columns]
    return pa.table([pa.array(column[1:], pa.string()) for column in columns], names=header), understood


def cell_text(value: Any) -> str:
    """Converts a cell to text; an integer stored as a float loses its `.0`."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else repr(value)
    return str(value)


def _cells(sheet: pd.DataFrame) -> list[list[str]]:
    cells = [["" if cell is None else cell_text(cell) for cell in row] for row in sheet.to_numpy().tolist()]
    return [row for row in cells if any(cell.strip() for cell in row)]
