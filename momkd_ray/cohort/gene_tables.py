"""Reads tables of omics as they are published: one row per sample or per gene, with or without annotation columns.

Shapes: S samples of the cohort's patients, G genes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import pyarrow as pa

from momkd_ray.cohort import columns
from momkd_ray.cohort.cell_numbers import Floats, Mask, as_numbers, is_number_like
from momkd_ray.cohort.distinct_genes import distinct_names
from momkd_ray.cohort.gene_names import number_of, some_of
from momkd_ray.cohort.identifiers import is_row_numbers
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SLIDE_COLUMNS, normalised
from momkd_ray.cohort.no_genes import INDEX
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import read_table_file, require_columns, rows_by_value
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError

# names of columns that tell the samples; those of patients are in `columns`
SAMPLE_COLUMNS = (
    "sample",
    "sample_id",
    "sampleid",
    "barcode",
    "sample_barcode",
    "aliquot",
    "aliquot_id",
    "submitter_id",
)
_SYMBOL_COLUMNS = ("Hugo_Symbol",)  # preferred to a first column of other identifiers
_ANNOTATION = frozenset(
    re.findall(
        r"\w+",
        """hugosymbol entrezgeneid entrezid geneid genename genetype genesymbol symbol gene genes name description
        ensemblid ensemblgeneid ensembl id sample probe probeid identifier chrom chromosome chr start end strand
        length genelength locus locusid cytoband biotype genebiotype band transcript transcriptid
        entitystableid compositeelementref hybridizationref""",
    )
)
_ALTERNATIVES = ("entrezgeneid", "geneid", "ensemblid", "ensemblgeneid", "locusid")  # name a gene that has no symbol
STATISTICS = re.compile(
    r"N_(unmapped|multimapping|noFeature|ambiguous)|__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)"
)
_MONTH = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_SPREADSHEET_DATE = re.compile(
    rf"\d{{1,2}}-({_MONTH})|({_MONTH})-\d{{1,2}}|\d{{4}}-\d\d-\d\d( 00:00:00)?", re.IGNORECASE
)


@dataclass(frozen=True, eq=False)
class GeneTable:
    """The samples of the cohort's patients, one row per sample, also where the file has one column per sample.

    Attributes:
        samples: (S,) names as written; a name may stand in several rows.
        places: (S,) where each is, such as `data row 3` or `column 'P1'`.
        genes: (G,) names, all different.
        values_SG: float32, NaN for a blank cell or a text.
        words_SG: cells that are texts; None if there are none.
        words: text of these cells by row and gene, of the first of very many.
        all_samples: names of every sample, those of others too.
        rows: number of samples in the file.
        blank: data rows that name no sample, with the column that should.
        row_numbers: columns that count the rows.
        files: (S,) file of each sample, if each has its own.
        understood: how the table was read.
    """

    samples: list[str]
    places: list[str]
    genes: list[str]
    values_SG: Floats
    words_SG: Mask | None
    words: dict[tuple[int, str], str]
    all_samples: list[str]
    rows: int
    blank: tuple[str, list[int]] = ("", [])
    row_numbers: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    understood: tuple[Understood, ...] = field(default=())


def read_gene_table(location: str, patient_column: str | None, settings: OmicsConfig, samples: Samples) -> GeneTable:
    """Reads a table of omics, whose orientation is found by where the cohort's patients stand.

    Args:
        location: of the table.
        patient_column: the column that names patients or samples; None to find it.
        settings: the configuration's `omics` section.
        samples: of the cohort's patients.

    Raises:
        InputError: it cannot be read, names nobody of the cohort, or names them in its rows and in its header.
    """
    file = read_table_file(location, lambda names: _text_columns(names, patient_column), repeated_columns=True)
    table = _Table(location, file.table, samples)
    in_rows = table.column_of_samples(patient_column, settings.orientation)
    in_header = len(table.header)
    if settings.orientation == "auto" and in_rows is not None and in_header:
        _refuse_ambiguous(table, *in_rows)
    if settings.orientation == "genes_in_rows" or (settings.orientation == "auto" and in_header):
        if not in_header:
            raise InputError(
                f"{location} names none of the {len(samples.patients)} patients in its header, whose columns are "
                f"{some_of(table.names)}: set omics.orientation to auto, or write them as in the clinical table, such "
                f"as '{min(samples.patients)}'"
            )
        read = _genes_in_rows(table)
    elif in_rows is None:
        raise table.strangers(patient_column)
    else:
        read = _patients_in_rows(table, in_rows[0])
    return replace(read, understood=(*file.understood, *read.understood))


class _Table:
    """An Arrow table whose columns are told apart by their position, since two may have one name."""

    def __init__(self, location: str, table: pa.Table, samples: Samples) -> None:
        self.location, self.table, self.samples = location, table, samples
        self.names: list[str] = table.column_names
        found = samples.of(self.names)
        self.header = {i: found[name] for i, name in enumerate(self.names) if name in found}

    def column_of_samples(self, chosen: str | None, orientation: str) -> tuple[int, int] | None:
        """Returns the column that names the most samples of the cohort, and their number; None if none does."""
        if chosen is not None:
            if chosen not in self.names and self.header and orientation != "patients_in_rows":
                return None
            require_columns(self.names, self.location, chosen, key=columns.OMICS_KEY)
            candidates = [self.names.index(chosen)]
        else:
            candidates = self._candidates()
        found = [(sum(len(r) for r in self._rows_of(i).values()), -order, i) for order, i in enumerate(candidates)]
        best = max(found, default=(0, 0, 0))
        return (best[2], best[0]) if best[0] else None

    def _candidates(self) -> list[int]:
        known = [*PATIENT_COLUMNS, *SAMPLE_COLUMNS]
        plain = [normalised(name) for name in known]
        named = sorted(
            (i for i, name in enumerate(self.names) if normalised(name) in plain),
            key=lambda i: plain.index(normalised(self.names[i])),
        )
        texts = [i for i, column in enumerate(self.table.columns) if _is_text(column) and self._begins_with_sample(i)]
        return list(dict.fromkeys([*named, 0, *texts]))

    def _begins_with_sample(self, i: int) -> bool:
        head = self.table.column(i).slice(0, 50).to_pylist()
        return bool(self.samples.of(cell for cell in head if cell is not None))

    def _rows_of(self, i: int) -> dict[str, list[int]]:
        rows_of, _ = rows_by_value(self.table.column(i).to_pandas())
        found = self.samples.of(rows_of)
        return {name: rows for name, rows in rows_of.items() if name in found}

    def strangers(self, chosen: str | None) -> InputError:
        """Returns the error of a table that names nobody of the cohort, with the identifiers that it has."""
        if chosen is None:
            named = [
                i for i in self._candidates() if normalised(self.names[i]) in {normalised(n) for n in PATIENT_COLUMNS}
            ]
            if not named:
                columns.patient_column(self.names, self.location, None)
        i = self.names.index(chosen) if chosen is not None else self._candidates()[0]
        rows_of, _ = rows_by_value(self.table.column(i).to_pandas())
        theirs = f"such as '{min(rows_of)}' in '{self.names[i]}'" if rows_of else "for it names none"
        return InputError(
            f"{self.location} has omics of none of the {len(self.samples.patients)} patients of the cohort, {theirs}: "
            f"write its identifiers as in the clinical table, such as '{min(self.samples.patients)}'"
        )


def _text_columns(names: Sequence[str], chosen: str | None) -> list[str]:
    known = {normalised(name) for name in (*PATIENT_COLUMNS, *SLIDE_COLUMNS, *SAMPLE_COLUMNS)} | _ANNOTATION
    known.discard("")
    return [name for i, name in enumerate(names) if i == 0 or name == chosen or normalised(name) in known]


def _refuse_ambiguous(table: _Table, column: int, in_rows: int) -> NoReturn:
    in_header = len(table.header)
    likely = "genes_in_rows" if in_header > in_rows else "patients_in_rows"
    other = "patients_in_rows" if in_header > in_rows else "genes_in_rows"
    example = table.names[next(iter(table.header))]
    raise InputError(
        f"{table.location} names {in_header} patients in its header, such as '{example}', and {in_rows} in its column "
        f"'{table.names[column]}': set omics.orientation to {likely}, or to {other}"
    )


def _patients_in_rows(table: _Table, sample_column: int) -> GeneTable:
    location, names = table.location, table.names
    others = [i for i in range(len(names)) if i != sample_column]
    if not others:
        raise InputError(f"{location} has no gene columns besides '{names[sample_column]}'")
    rows_of, blank = rows_by_value(table.table.column(sample_column).to_pandas())
    if INDEX.fullmatch(names[sample_column]) and is_row_numbers(rows_of):
        raise InputError(
            f"{location} has no column that names the patients: its column without a name counts the rows; name it "
            "PATIENT if these numbers are patients, or add a column PATIENT"
        )
    found = table.samples.of(rows_of)
    own = [(name, row) for name, rows in rows_of.items() if name in found for row in rows]
    rows_N = np.asarray([row - 1 for _, row in own], np.int64)
    cells = as_numbers([table.table.column(i) for i in others], rows_N)
    genes, kept, understood = distinct_names([names[i] for i in others], cells.values_CR, location, "columns")
    numbering = frozenset(
        genes[new]
        for new, old in enumerate(kept)
        if _counts_rows(table.table.column(others[old]), cells.values_CR[old])
    )
    what = f"it has a row a sample, named in its column '{names[sample_column]}'"
    return GeneTable(
        samples=[name for name, _ in own],
        places=[f"data row {row}" for _, row in own],
        genes=genes,
        values_SG=np.ascontiguousarray(cells.values_CR[kept].T),
        words_SG=None if cells.words_CR is None else cells.words_CR[kept].T,
        words={(row, names[others[c]]): word for (c, row), word in cells.words.items()},
        all_samples=list(rows_of),
        rows=table.table.num_rows,
        blank=(names[sample_column], blank),
        row_numbers=numbering,
        understood=(Understood(location, "omics", what, table.table.num_rows), *understood),
    )


def _genes_in_rows(table: _Table) -> GeneTable:
    location, names = table.location, table.names
    mine = list(table.header)
    gene_column, annotation = _gene_column(table)
    others = [i for i in range(len(names)) if i not in table.header and i != gene_column and i not in annotation]
    labels = rows_as_text(table.table.column(gene_column))
    alternative = next((i for key in _ALTERNATIVES for i in annotation if normalised(names[i]) == key), None)
    if alternative is not None and None in labels:
        spare = rows_as_text(table.table.column(alternative))
        labels = [label if label is not None else extra for label, extra in zip(labels, spare, strict=True)]
    understood = [
        Understood(
            location,
            "omics",
            f"it has a row a gene, named in its column '{names[gene_column]}', and a column a sample",
            table.table.num_rows,
        )
    ]
    cells = as_numbers([table.table.column(i) for i in mine], np.arange(table.table.num_rows))
    usable, what = _gene_rows(labels, cells.words_CR)
    understood += [Understood(location, "omics", clause, count) for clause, count in what]
    if annotation:
        shown = some_of([names[i] for i in annotation])
        understood.append(
            Understood(location, "columns", f"{shown} describe genes and are passed over", len(annotation))
        )
    rows_G = np.flatnonzero(usable)
    wide_CG = cells.values_CR[:, rows_G]
    genes, kept, more = distinct_names([str(labels[row]) for row in rows_G], wide_CG.T, location, "rows")
    words = None if cells.words_CR is None else cells.words_CR[:, rows_G][:, kept]
    return GeneTable(
        samples=[names[i] for i in mine],
        places=[f"column {i + 1}" for i in mine],
        genes=genes,
        values_SG=np.ascontiguousarray(wide_CG[:, kept]),
        words_SG=words,
        words={(c, str(labels[row])): word for (c, row), word in cells.words.items()},
        all_samples=[names[i] for i in (*mine, *others)],
        rows=len(mine) + len(others),
        understood=(*understood, *more),
    )


def _gene_column(table: _Table) -> tuple[int, list[int]]:
    """Returns the column that names the genes, and further columns that describe them."""
    free = [i for i in range(len(table.names)) if i not in table.header]
    describing = [
        i
        for i in free
        if normalised(table.names[i]) in _ANNOTATION
        or INDEX.fullmatch(table.names[i])
        or _is_words(table.table.column(i))
    ]
    symbols = [i for i in describing if table.names[i] in _SYMBOL_COLUMNS]
    naming = [i for i in describing if not _only_row_numbers(table, i)] or free[:1]
    if not naming:
        raise InputError(
            f"{table.location} has samples in its header but no column that names the genes: add one before them"
        )
    chosen = (symbols or naming)[0]
    return chosen, [i for i in describing if i != chosen]


def _only_row_numbers(table: _Table, i: int) -> bool:
    return bool(INDEX.fullmatch(table.names[i])) and not _is_words(table.table.column(i))


def _gene_rows(labels: Sequence[str | None], words_CR: Mask | None) -> tuple[Mask, list[tuple[str, int]]]:
    """Returns the rows that are genes, and clauses on the others with their numbers."""
    named = np.asarray([label is not None for label in labels], bool)
    statistics = np.asarray([label is not None and STATISTICS.fullmatch(label) is not None for label in labels], bool)
    second = np.zeros(len(labels), bool)
    if words_CR is not None and len(labels):
        second[0] = words_CR[:, 0].all()  # a second header, such as `normalized_count` below every sample
    clauses = []
    for mask, clause in (
        (statistics, "of numbers of reads that no gene has, such as N_unmapped, left out"),
        (~named, "without the name of a gene left out"),
        (second, "of text below the header passed over"),
    ):
        if mask.any():
            n = int(mask.sum())
            clauses.append((f"{number_of(n, 'row', 'rows')} {clause}", n))
    dates = [label for label in labels if label is not None and _SPREADSHEET_DATE.fullmatch(label)]
    if dates:
        genes_have = number_of(len(dates), "gene has", "genes have")
        clause = f"{genes_have} a date as name, as spreadsheets make of SEPT2: {some_of(dates)}"
        clauses.append((clause, len(dates)))
    return named & ~statistics & ~second, clauses


def _counts_rows(column: pa.ChunkedArray, own_N: Floats) -> bool:
    """Returns whether a column holds 0, 1, 2, ... or 1, 2, 3, ... in some order, for at least 8 rows."""
    n = len(column)
    if n < 8 or np.isnan(own_N).any() or (own_N != np.rint(own_N)).any() or len(np.unique(own_N)) < len(own_N):
        return False
    if own_N.min() < 0 or own_N.max() > n:
        return False
    values_N = as_numbers([column], np.arange(n)).values_CR[0]
    ordered_N = np.sort(values_N)
    return any(np.array_equal(ordered_N, np.arange(first, n + first)) for first in (0, 1))


def rows_as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Returns the cells of a column as text, None where blank."""
    rows_of, _ = rows_by_value(column.to_pandas())
    cells: list[str | None] = [None] * len(column)
    for value, rows in rows_of.items():
        for row in rows:
            cells[row - 1] = value.strip() or None
    return cells


def _is_text(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _is_words(column: pa.ChunkedArray) -> bool:
    """Returns whether a column of text begins with no number in its first rows."""
    if not _is_text(column):
        return False
    head = [cell for cell in column.slice(0, 200).to_pylist() if cell is not None]
    return bool(head) and not any(is_number_like(cell) for cell in head)
