"""Parses tables of delimited text; every row is accounted for, and what is ambiguous is refused with its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SLIDE_COLUMNS, is_known
from momkd_ray.cohort.text_encoding import decoded
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

ColumnsOf = Callable[[list[str]], str | Sequence[str]]
"""Chooses one or more of a table's columns, or raises an `InputError`."""

# spellings of a missing cell; "null" and "None" are values of some label columns (p53 staining patterns)
MISSING = ("", "NA", "N/A", "NaN", "nan", "#N/A", "<NA>")

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_FORMULA = r'^="([^"]*)"$'
_SAMPLED = 25  # rows from which the delimiter is found


@dataclass(frozen=True)
class _Text:
    """Delimited text from the header on.

    Attributes:
        path: of the file, for messages.
        body: the text, whose lines end in LF.
        first_line: number of the header's line in the file.
        delimiter: between cells.
    """

    path: str
    body: str
    first_line: int
    delimiter: str

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the line in which each record begins, and its cells; blank lines are passed over."""
        rows = csv.reader(_lines(self.body), delimiter=self.delimiter)
        line = self.first_line
        for cells in rows:
            if cells:
                yield line, cells
            line = self.first_line + rows.line_num


def read_delimited(
    path: str, content: bytes, suffix: str, text_columns: ColumnsOf | None
) -> tuple[pa.Table, list[Understood]]:
    """Parses delimited text of any usual encoding and delimiter.

    Comment lines that begin with # above the header are skipped, and so are the lines of sizes of a .gct file.

    Args:
        path: of the file, for messages.
        content: its bytes, unpacked.
        suffix: of the file; .tsv, .tab and .gct are separated by tabs where others are possible too.
        text_columns: for a table of numbers, chooses its columns of text. If every cell of the others is a number or
            blank, they are parsed as numbers directly.

    Returns:
        The table, with columns of text, or also of float64; and what was recognised.

    Raises:
        InputError: a row has too few or too many cells, a quote is not closed, or the delimiter is ambiguous.
    """
    text, understood = decoded(path, content)
    body, first_line, sizes = _without_preamble(path, text, understood)
    if not sizes:
        body, first_line = _without_title(path, body, first_line, understood)
    delimiter = _delimiter(path, body, suffix, understood)
    parts = _Text(path, body, first_line, delimiter)
    _check_quotes(parts)
    _, header = next(parts.records(), (0, []))
    names = [" ".join(name.split()) for name in header]
    if broken := [name for name, own in zip(names, header, strict=True) if "\n" in own]:
        what = f"line breaks in the names of {len(broken)} columns are read as blanks, as in '{broken[0]}'"
        understood.append(Understood(path, "layout", what, len(broken)))
    table = _without_blank_columns(_parsed(parts, names, text_columns, understood), path, understood)
    if '="' in body:
        table = _without_formulas(table, path, understood)
    if sizes:
        table = _checked_gct(path, table, sizes, understood)
    return table, understood


def _without_preamble(path: str, text: str, understood: list[Understood]) -> tuple[str, int, list[int]]:
    """Cuts what stands above the header; returns the rest, the number of its first line, and the sizes of a .gct."""
    position, line, comments = 0, 1, 0
    sizes: list[int] = []
    for match in re.finditer(r"[^\n]*(?:\n|$)", text):
        own = match.group().strip()
        if own in ("#1.2", "#1.3") and not comments:
            numbers = text[match.end() :].partition("\n")[0].split("\t")
            if len(numbers) >= 2 and all(number.strip().isdigit() or not number.strip() for number in numbers):
                sizes = [int(number) for number in numbers if number.strip()]
        elif own.startswith("#") and not (comments == 0 and _is_marked_header(own, text[match.end() :])):
            comments += 1
        elif own and not (sizes and line == 2) and not re.fullmatch(r'"?sep=.?"?', own, re.IGNORECASE):
            break
        position, line = match.end(), line + 1
        if position >= len(text):
            break
    body = text[position:]
    if body.startswith("#") and not sizes:
        understood.append(Understood(path, "layout", "the '#' before the header is passed over"))
        body = body[1:]
    if comments:
        lines = "1 comment line" if comments == 1 else f"{comments} comment lines"
        what = f"{lines} above the header, which begin with '#', are skipped"
        understood.append(Understood(path, "layout", what, comments))
    if not text[position:].strip():
        raise InputError(f"{path} is empty" + (f" but for its {lines} that begin with '#'" if comments else ""))
    return body, line, sizes


def _without_title(path: str, body: str, line: int, understood: list[Understood]) -> tuple[str, int]:
    """Cuts lines of one cell above a header that names patients or slides; returns the rest and its first line."""
    start = 0
    for number, own in enumerate(islice(_lines(body), 10)):
        for delimiter in DELIMITERS:
            cells = [cell.strip(' "') for cell in own.rstrip("\n").split(delimiter)]
            if len(cells) > 1 and any(is_known(cell, (*PATIENT_COLUMNS, *SLIDE_COLUMNS)) for cell in cells):
                if number:
                    lines = "1 line" if number == 1 else f"{number} lines"
                    understood.append(Understood(path, "layout", f"{lines} above the header passed over", number))
                return body[start:], line + number
        if any(sum(bool(cell.strip()) for cell in own.split(delimiter)) > 1 for delimiter in DELIMITERS):
            break
        start += len(own)
    return body, line


def _without_formulas(table: pa.Table, path: str, understood: list[Understood]) -> pa.Table:
    """Replaces cells such as `="007"`, by which exports keep a spreadsheet from reading a number, by their text."""
    columns, replaced = [], 0
    for column in table.columns:
        if pa.types.is_string(column.type):
            formulas = pc.match_substring_regex(column, _FORMULA)
            if n := pc.sum(formulas).as_py() or 0:
                replaced += n
                column = pc.replace_substring_regex(column, _FORMULA, r"\1")
        columns.append(column)
    if replaced:
        cells = "1 cell is" if replaced == 1 else f"{replaced:,} cells are"
        understood.append(Understood(path, "layout", f'{cells} read as the text of a formula ="..."', replaced))
    return pa.table(columns, names=[re.sub(_FORMULA, r"\1", name) for name in table.column_names])


def _is_marked_header(line: str, after: str) -> bool:
    """Returns whether a line that begins with # is the header: it names patients or slides, and rows follow it."""
    following = after.partition("\n")[0]
    return any(
        len(cells := line.lstrip("# ").split(delimiter)) == len(following.split(delimiter)) > 1
        and any(is_known(cell.strip(' "'), (*PATIENT_COLUMNS, *SLIDE_COLUMNS)) for cell in cells)
        and not following.startswith("#")
        and not any(
            is_known(cell.strip(' "'), (*PATIENT_COLUMNS, *SLIDE_COLUMNS)) for cell in following.split(delimiter)
        )
        for delimiter in DELIMITERS
    )


def _delimiter(path: str, body: str, suffix: str, understood: list[Understood]) -> str:
    """Finds the delimiter that divides the header and the first rows into the same number of cells."""
    header = body.partition("\n")[0]
    own = "\t" if suffix in (".tsv", ".tab", ".gct") else ","
    possible = [delimiter for delimiter in DELIMITERS if delimiter in header]
    if not possible:
        _refuse_other_delimiter(path, body)
    widths = {delimiter: _widths(body, delimiter) for delimiter in possible}
    divided = [delimiter for delimiter, own_widths in widths.items() if own_widths and own_widths[0] > 1]
    even = [delimiter for delimiter in divided if _is_even(widths[delimiter])]
    if len(even) > 1 and own == "\t" and own in even:
        even = ["\t"]
    if len(even) > 1:
        counts = " or ".join(f"{widths[delimiter][0]} by {DELIMITERS[delimiter]}" for delimiter in even)
        raise InputError(f"{path} can be divided into columns in several ways ({counts}): save it with tabs, as .tsv")
    if even:
        found = even[0]
    else:  # a row does not fit the header, which its parser will say
        found = own if own in divided or not divided else max(divided, key=lambda delimiter: widths[delimiter][0])
    if found != own and len(header) and suffix != ".txt":
        understood.append(Understood(path, "layout", f"its columns are separated by {DELIMITERS[found]}"))
    return found


def _refuse_other_delimiter(path: str, body: str) -> None:
    for delimiter, name in ((" ", "blanks"), (":", "colons"), ("^", "carets"), ("\x01", "control characters")):
        widths = _widths(body, delimiter)
        if len(widths) > 2 and widths[0] > 1 and _is_even(widths):
            raise InputError(
                f"{path} seems to be separated by {name}: save it with commas, as .csv, or with tabs, as .tsv"
            )


def _is_even(widths: Sequence[int]) -> bool:
    """Returns whether all rows are as wide as the header, or all wider by a cell, as with unnamed row names."""
    return len({*widths[1:]}) <= 1 and all(width - widths[0] in (0, 1) for width in widths[1:])


def _widths(body: str, delimiter: str) -> list[int]:
    rows = csv.reader(_lines(body), delimiter=delimiter)
    try:
        return [len(row) for row in islice((row for row in rows if row), _SAMPLED)]
    except csv.Error:  # a cell without end
        return []


def _check_quotes(text: _Text) -> None:
    """Refuses a quoted cell that is not closed, or whose text goes on over what look like rows."""
    if '"' not in text.body or all(line.count('"') % 2 == 0 for line in _lines(text.body)):
        return
    rows = csv.reader(_lines(text.body), delimiter=text.delimiter, strict=True)
    line, width = text.first_line, 0
    try:
        for cells in rows:
            width = width or len(cells)
            for cell in cells:
                swallowed = [part for part in cell.split("\n")[1:] if part.count(text.delimiter) >= max(1, width - 1)]
                if swallowed:
                    raise InputError(
                        f'{text.path}: a quote (") that opens in line {line} is closed only in line '
                        f"{text.first_line + rows.line_num - 1}, and between them are {len(swallowed)} that look "
                        "like rows: close or remove it"
                    )
            line = text.first_line + rows.line_num
    except csv.Error as error:
        raise InputError(
            f'{text.path}: a quote (") that opens in line {line} is not closed in its cell: close or remove it'
        ) from error


def _parsed(text: _Text, header: list[str], text_columns: ColumnsOf | None, understood: list[Understood]) -> pa.Table:
    """Parses the rows; the header may lack a name for the row names before all cells or the blank ones after them."""
    rows = _after_header(text)
    if not rows.strip("\n"):
        return pa.table([pa.array([], pa.string())] * len(header), names=header)
    try:
        return _by_arrow(rows, text.delimiter, header, text_columns)
    except pa.ArrowInvalid as error:
        wrong = [(line, len(cells)) for line, cells in islice(text.records(), 1, None) if len(cells) != len(header)]
        if not wrong:
            raise InputError(f"{text.path} cannot be parsed as text: {' '.join(str(error).split())[:200]}") from error
    kind = _one_cell_more(text, header)
    if kind == "row names":
        what = "the header has a name less than the rows have cells, so the first column is that of the row names"
        understood.append(Understood(text.path, "layout", what))
        return _by_arrow(rows, text.delimiter, ["", *header], text_columns)
    if kind == "blank":
        understood.append(Understood(text.path, "layout", "the blank cell at the end of every row is passed over"))
        return _by_arrow(rows, text.delimiter, [*header, ""], None).select(range(len(header)))
    line, width = wrong[0]
    cells = "1 cell" if width == 1 else f"{width:,} cells"
    more = f" (and {len(wrong) - 1:,} further rows do not fit)" if len(wrong) > 1 else ""
    raise InputError(
        f"{text.path}: line {line} has {cells}, but the header in line {text.first_line} has {len(header):,}{more}: "
        "correct the row, or quote a cell that contains the delimiter"
    )


def _one_cell_more(text: _Text, header: list[str]) -> str:
    """Says what the further cell is that every row has beside those of the header: `row names`, `blank` or ''."""
    first, last, numbered = set(), set(), True
    count = 0
    for _, cells in islice(text.records(), 1, None):
        if len(cells) != len(header) + 1:
            return ""
        count += 1
        first.add(cells[0].strip())
        last.add(cells[-1].strip())
        numbered = numbered and cells[0].strip() == str(count)
    if last == {""}:
        return "" if numbered else "blank"
    # with commas, the further cell may be the decimals of a number; R writes row names so with tabs
    named = is_known(header[0], (*PATIENT_COLUMNS, *SLIDE_COLUMNS))
    return "row names" if text.delimiter == "\t" and len(first) == count and (numbered or not named) else ""


def _after_header(text: _Text) -> str:
    rows = csv.reader(_lines(text.body), delimiter=text.delimiter)
    next(rows, None)
    end = 0
    for _ in range(rows.line_num):
        end = text.body.find("\n", end) + 1 or len(text.body)
    return text.body[end:]


def _lines(body: str) -> Iterator[str]:
    """Yields the lines with their ends, one at a time: a table of all genes is long, and its head decides much."""
    start = 0
    while start < len(body):
        end = body.find("\n", start) + 1 or len(body)
        yield body[start:end]
        start = end


def _by_arrow(rows: str, delimiter: str, header: list[str], text_columns: ColumnsOf | None) -> pa.Table:
    """Parses by Arrow, which refuses a row with too few or too many cells."""
    names = [str(number) for number in range(len(header))]  # a header may name a column twice
    kinds = dict.fromkeys(names, pa.string())
    body = rows.encode()
    if text_columns is not None and len(set(header)) == len(header):
        found = text_columns(header)
        chosen = {found} if isinstance(found, str) else {*found}
        numbers = {
            own: pa.string() if name in chosen else pa.float64() for own, name in zip(names, header, strict=True)
        }
        try:
            return _arrow_csv(body, delimiter, names, numbers).rename_columns(header)
        except pa.ArrowInvalid:  # as text, so that the cell that is not a number can be named
            pass
    return _arrow_csv(body, delimiter, names, kinds).rename_columns(header)


def _arrow_csv(body: bytes, delimiter: str, names: list[str], kinds: dict[str, pa.DataType]) -> pa.Table:
    return pyarrow.csv.read_csv(
        pa.BufferReader(body),
        # one block: a row of 20,000 genes may not straddle two
        read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=min(len(body) + 1, 2**31 - 1)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=kinds, null_values=list(MISSING)),
    )


def _without_blank_columns(table: pa.Table, path: str, understood: list[Understood]) -> pa.Table:
    """Drops columns that have neither a name nor a value, as spreadsheets leave them."""
    blank = [
        number
        for number, name in enumerate(table.column_names)
        if not name and number and all(cell is None or cell == "" for cell in table.column(number).to_pylist())
    ]
    if not blank:
        return table
    columns = "1 column" if len(blank) == 1 else f"{len(blank)} columns"
    what = f"{columns} without a name and without a value {'is' if len(blank) == 1 else 'are'} passed over"
    understood.append(Understood(path, "layout", what, len(blank)))
    return table.select([number for number in range(table.num_columns) if number not in blank])


def _checked_gct(path: str, table: pa.Table, sizes: list[int], understood: list[Understood]) -> pa.Table:
    """Checks the numbers of rows and samples that a .gct file gives, and leaves out the annotation of version 1.3."""
    rows, samples, row_facts, sample_facts = [*sizes, 1, 0][:4] if len(sizes) < 4 else sizes[:4]
    if (table.num_rows, table.num_columns) != (rows + sample_facts, samples + 1 + row_facts):
        raise InputError(
            f"{path} says in its line 2 that it has {rows:,} rows and {samples:,} samples, but has "
            f"{table.num_rows - sample_facts:,} and {table.num_columns - 1 - row_facts:,}: it is cut off or damaged, "
            "copy it again"
        )
    if len(sizes) >= 4 and (row_facts or sample_facts):
        what = f"{row_facts} columns and {sample_facts} rows of annotation are passed over"
        understood.append(Understood(path, "layout", what))
        table = table.slice(sample_facts).select([0, *range(1 + row_facts, table.num_columns)])
    return table
