"""Numbers in the cells of Arrow columns, with the cells that are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

WORDS_KEPT = 100_000
# blanks in a column of numbers, by R, Python, Excel (also German and French), the GDC and people
BLANKS = (
    *("null", "NULL", "Null", "None", "none", "NaT", "na", "Na", "n/a", "n.a.", "N.A.", "nd", "n.d.", "-", "--"),
    *("'--", ".", "unknown", "missing", "[Not Available]", "Not Available"),
    *("#NV", "#N/D", "#NUM!", "#DIV/0!", "#VALUE!", "#WERT!"),
)
_NULL = pa.array(BLANKS, pa.string())


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of C columns in R rows.

    Attributes:
        values_CR: float32, NaN for a blank or a text.
        words_CR: cells that are text; None if there are none.
        words: text of these cells by column and row, of the first `WORDS_KEPT`.
    """

    values_CR: Floats
    words_CR: Mask | None
    words: dict[tuple[int, int], str]


def as_numbers(columns: Sequence[Any], rows_R: npt.NDArray[np.int64]) -> Cells:
    """Returns the numbers of some rows (counted from 0) of Arrow columns."""
    values_CR = np.empty((len(columns), len(rows_R)), np.float32)
    words_CR: Mask | None = None
    kept: dict[tuple[int, int], str] = {}
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        for c, column in enumerate(columns):
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                values_CR[c] = column.to_numpy()[rows_R]
                continue
            whole = len(rows_R) == len(column) and (rows_R == np.arange(len(column))).all()
            values_CR[c], words = _numbers(column if whole else column.take(pa.array(rows_R)))
            if words:
                words_CR = np.zeros(values_CR.shape, bool) if words_CR is None else words_CR
                words_CR[c, list(words)] = True
                if len(kept) < WORDS_KEPT:
                    kept |= {(c, row): word for row, word in words.items()}
    return Cells(values_CR, words_CR, kept)


def is_number_like(text: str) -> bool:
    """Returns whether a cell is a number."""
    try:
        pa.scalar(text.strip()).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _numbers(column: Any) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Returns the values of a column of text, NaN for blank or text cells, and the cells with text."""
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    try:
        return np.asarray(trimmed.cast(pa.float64()).to_numpy()), {}
    except pa.ArrowInvalid:
        cells = pc.if_else(pc.is_in(trimmed, value_set=_NULL), pa.scalar(None, pa.string()), trimmed).to_pylist()
        words = {row: cell for row, cell in enumerate(cells) if cell is not None and not is_number_like(cell)}
        numbers = [None if row in words else cell for row, cell in enumerate(cells)]
        return np.asarray(pa.array(numbers, pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)), words
