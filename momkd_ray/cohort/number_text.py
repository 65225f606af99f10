"""Numbers in tables of text, with decimal points or decimal commas."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

_COMMA = r"^[+-]?\d+,\d+([eE][+-]?\d+)?$"
_THOUSANDS = r"^[+-]?[1-9]\d{0,2},\d{3}$"  # 1,234 may be a thousand or little more than one
_POINT = r"^[+-]?\d*\.\d+([eE][+-]?\d+)?$"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def with_decimal_points(
    path: str, table: pa.Table, text_columns: Collection[str], understood: list[Understood]
) -> pa.Table:
    """Replaces the decimal comma of numbers in columns of text.

    Args:
        path: of the table, for messages.
        table: its columns are text or numbers.
        text_columns: columns that hold no numbers.
        understood: receives a note with the number of cells.

    Raises:
        InputError: some numbers have a decimal comma and others a point, or commas may divide thousands.
    """
    texts = [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if pa.types.is_string(kind) and name not in text_columns
    ]
    commas = {name: _matching(table.column(name), _COMMA) for name in texts}
    with_commas = sum(commas.values())
    if not with_commas:
        return table
    points = next((name for name in texts if _matching(table.column(name), _POINT)), None)
    first = next(name for name, count in commas.items() if count)
    if points is not None:
        raise InputError(
            f"{path} has numbers with a comma (column '{first}') and with a point (column '{points}'): write all with "
            "a decimal point, and nothing between thousands"
        )
    if sum(_matching(table.column(name), _THOUSANDS) for name in texts) == with_commas:
        raise InputError(
            f"{path} has numbers whose comma may be decimal or divide thousands (column '{first}'): write them with a "
            "decimal point, and nothing between thousands"
        )
    cells = "1 number" if with_commas == 1 else f"{with_commas:,} numbers"
    understood.append(Understood(path, "layout", f"{cells} with a decimal comma are read", with_commas))
    for name in (name for name, count in commas.items() if count):
        column = table.column(name)
        plain = pc.if_else(pc.match_substring_regex(column, _COMMA), pc.replace_substring(column, ",", "."), column)
        table = table.set_column(table.column_names.index(name), name, plain)
    return table


def numbers_of(values: Iterable[str | None]) -> list[float | None]:
    """Converts cells to numbers, None where they are none; decimal commas count where no number has a point."""
    cells = list(values)
    given = [cell for cell in cells if cell is not None]
    commas = [cell for cell in given if re.match(_COMMA, cell)]
    decimal = bool(commas) and not any(re.match(_POINT, cell) for cell in given)
    decimal = decimal and not all(re.match(_THOUSANDS, cell) for cell in commas)
    plain = [cell.replace(",", ".") if cell is not None and decimal else cell for cell in cells]
    return [float(cell) if cell is not None and _NUMBER.fullmatch(cell) else None for cell in plain]


def _matching(column: pa.ChunkedArray, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0
