"""The omics of a cohort: a wide table of patients x genes, or a folder with one vector a patient.

Shapes: N patients with a row, G genes.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from momkd_ray import storage
from momkd_ray.cohort import columns
from momkd_ray.cohort.table_files import (
    PANDAS_INDEX,
    arrow_table,
    blank_cell,
    data_rows,
    first_duplicate,
    read_content,
    rows_by_value,
)
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, FileFaultError, Problem, raise_faults

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OmicsTable:
    """The omics of the patients asked for, and what is wrong with them.

    values: (n, G) float32, index `patient_id` sorted, genes in table order; the good rows alone.
    faults: of kind omics.
    of_others: patients with omics who were not asked for.
    blank: patients whose row is entirely blank, and so have no omics.
    strange: files in a folder of vectors that are none.
    """

    values: pd.DataFrame
    rows: int
    faults: tuple[Fault, ...]
    of_others: tuple[str, ...]
    blank: tuple[str, ...]
    strange: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of the patients asked for as they were read, before their values are looked at."""

    patients: list[str]
    places: list[str]  # the file that each row is in
    genes: list[str]
    values_NG: Floats  # NaN where blank or not a number
    words: dict[int, tuple[str, str]]  # row -> gene and text of its first cell that is no number
    faults: list[Fault]
    everyone: list[str]
    rows: int
    strange: list[str]
    nan: tuple[Problem, str]  # what a NaN is: a blank cell of a table, but not of a vector


def read_omics(location: str, patient_column: str | None, patients: Sequence[str]) -> OmicsTable:
    """The omics of these patients.

    A row that is not a whole row of finite numbers, is the same number throughout, belongs to a patient with
    several rows, or repeats that of another patient is a fault and is left out.

    Args:
        location: a table, or a folder of `<patient>.npy` with, if the genes have names, `genes.txt`.
        patient_column: of a table; None to find it by name.
        patients: of the cohort.

    Raises:
        InputError: it cannot be read, has genes in its rows or a gene twice, or has no good row of these patients.
    """
    wanted = frozenset(patients)
    found = (
        _read_folder(location, wanted)
        if storage.kind(location) == "folder"
        else _read_table(location, patient_column, wanted)
    )
    if not wanted.intersection(found.everyone):
        theirs = f"such as '{min(found.everyone)}'" if found.everyone else "for it names none"
        raise InputError(
            f"{location} has omics of none of the {len(patients)} patients of the cohort, {theirs}: "
            f"write its identifiers as in the clinical table, such as '{min(patients)}'"
        )
    words = np.asarray([row in found.words for row in range(len(found.patients))], bool)
    blank_N = np.isnan(found.values_NG).all(axis=1) & ~words
    faults = [*found.faults, *_bad_rows(found, blank_N)]
    bad = {fault.id for fault in faults}
    good_N = np.asarray([patient not in bad for patient in found.patients], bool) & ~blank_N
    if not good_N.any():
        raise_faults(faults, f"the {found.rows:,} rows of {location}")
        raise InputError(f"{location}: the rows of the cohort's patients are all blank; set cohort.omics to null")
    index = pd.Index(
        [p for p, good in zip(found.patients, good_N, strict=True) if good], name="patient_id", dtype="str"
    )
    values = pd.DataFrame(found.values_NG[good_N], index=index, columns=found.genes).sort_index()
    return OmicsTable(
        values=values,
        rows=found.rows,
        faults=tuple(faults),
        of_others=tuple(sorted(set(found.everyone) - wanted)),
        blank=tuple(patient for patient, blank in zip(found.patients, blank_N, strict=True) if blank),
        strange=tuple(found.strange),
    )


def _read_table(location: str, patient_column: str | None, wanted: frozenset[str]) -> _Rows:
    def find(names: list[str]) -> str:
        return _patient_column(names, location, patient_column, wanted)

    table = arrow_table(location, find)
    column = find(table.column_names)
    genes = [name for name in table.column_names if name != column]
    if not genes:
        raise InputError(f"{location} has no gene columns besides '{column}'")
    for gene in genes:
        if gene.startswith(PANDAS_INDEX):
            raise InputError(
                f"{location} has the column '{gene}', a DataFrame's index without a name as pandas writes it: write "
                "the file again after reset_index(drop=True)"
            )
        if not gene.strip():
            raise InputError(f"{location} has a column without a name: name it after its gene or remove it")
    rows_of, blank = rows_by_value(table.column(column).to_pandas())
    if not wanted.intersection(rows_of):
        _refuse_transposed(genes, location, wanted)
    faults = [
        Fault("omics", f"data row {row}", "missing value", location, blank_cell(location, column, row)) for row in blank
    ]
    single: dict[str, int] = {}
    for patient, rows in rows_of.items():
        if patient in wanted and len(rows) == 1:
            single[patient] = rows[0]
        elif patient in wanted:
            what = f"patient '{patient}' has more than one row ({data_rows(rows)}): keep one"
            faults.append(_fault(patient, "duplicated", location, what))
    values_NG, words = _matrix(table.select(genes), np.asarray(list(single.values()), np.int64) - 1)
    if words:
        _refuse_text(table.select([gene for gene in genes if gene in {gene for gene, _ in words.values()}]), location)
    return _Rows(
        patients=list(single),
        places=[location] * len(single),
        genes=genes,
        values_NG=values_NG,
        words=words,
        faults=faults,
        everyone=list(rows_of),
        rows=table.num_rows,
        strange=[],
        nan=("missing value", "blank"),
    )


def _refuse_text(table: pa.Table, location: str) -> None:
    """Raise for a column that has text and no number in any row: it is no gene, and its rows are not to blame."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        values_N, words = _numbers(column)
        if words and np.isnan(values_N).all():
            raise InputError(
                f"{location}: column '{name}' has a number in none of the {table.num_rows:,} rows (the first text is "
                f"'{words[min(words)]}'), so it is no gene: remove it"
            )


def _patient_column(names: list[str], location: str, chosen: str | None, wanted: frozenset[str]) -> str:
    try:
        return columns.patient_column(names, location, chosen)
    except InputError:
        _refuse_transposed(names, location, wanted)
        raise


def _refuse_transposed(names: Iterable[str], location: str, wanted: frozenset[str]) -> None:
    patients = [name for name in names if name in wanted]
    if patients:
        raise InputError(
            f"{location} has patients in its columns, such as '{patients[0]}', and so genes in its rows: "
            "transpose it, so that it has a row a patient and a column a gene"
        )


def _matrix(table: pa.Table, rows_N: npt.NDArray[np.int64]) -> tuple[Floats, dict[int, tuple[str, str]]]:
    """The values of these rows (N, G), NaN where blank or not a number, and the first word of a row that has any."""
    values_GN = np.empty((table.num_columns, len(rows_N)), np.float32)
    words: dict[int, tuple[str, str]] = {}
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        for place, (gene, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if pa.types.is_string(column.type):
                values_GN[place], said = _numbers(column.take(pa.array(rows_N)))
                words |= {row: (gene, word) for row, word in said.items() if row not in words}
            else:
                values_GN[place] = column.to_numpy()[rows_N]
    return np.ascontiguousarray(values_GN.T), words


def _numbers(column: Any) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """One gene's values, NaN where there is none, and the cells that are words instead."""
    trimmed = pc.utf8_trim_whitespace(column)
    try:
        return np.asarray(trimmed.cast(pa.float64()).to_numpy()), {}
    except pa.ArrowInvalid:
        cells = trimmed.to_pylist()
        words = {row: cell for row, cell in enumerate(cells) if cell is not None and not _is_number(cell)}
        numbers = [None if row in words else cell for row, cell in enumerate(cells)]
        return np.asarray(pa.array(numbers, pa.string()).cast(pa.float64()).to_numpy(zero_copy_only=False)), words


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _read_folder(location: str, wanted: frozenset[str]) -> _Rows:
    names = storage.list_names(location)
    everyone = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    vectors: dict[str, Floats] = {}
    faults = []
    for patient in everyone:
        if patient in wanted:
            place = storage.join(location, f"{patient}.npy")
            try:
                vectors[patient] = _vector(place)
            except FileFaultError as error:
                faults.append(Fault("omics", patient, error.problem, place, str(error)))
    lengths = Counter(len(vector) for vector in vectors.values())
    width = lengths.most_common(1)[0][0] if lengths else 0
    genes = _gene_names(location, width) if width and "genes.txt" in names else [f"g{i:04d}" for i in range(width)]
    fitting = {patient: vector for patient, vector in vectors.items() if len(vector) == width}
    example = next(iter(fitting), "")
    for patient in vectors.keys() - fitting.keys():
        reason = (
            f"{location}: {patient}.npy has {len(vectors[patient])} values, but {example}.npy and most others "
            f"have {width}: write it with the same genes"
        )
        faults.append(Fault("omics", patient, "misshapen", storage.join(location, f"{patient}.npy"), reason))
    return _Rows(
        patients=list(fitting),
        places=[storage.join(location, f"{patient}.npy") for patient in fitting],
        genes=genes,
        values_NG=np.stack(list(fitting.values())) if fitting else np.empty((0, 0), np.float32),
        words={},
        faults=faults,
        everyone=everyone,
        rows=len(everyone),
        strange=[name for name in names if not name.endswith(".npy") and name != "genes.txt"],
        nan=("not finite", "NaN"),
    )


def _vector(path: str) -> Floats:
    try:
        content = read_content(path)
    except InputError as error:
        raise FileFaultError("unreadable", str(error)) from error
    if not content:
        raise FileFaultError("empty", f"{path} is empty (0 bytes): write it again or remove it")
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileFaultError(
            "unreadable", f"{path} is not a NumPy vector saved with numpy.save: write it again"
        ) from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "iuf":
        raise FileFaultError("misshapen", f"{path} must hold one 1-d vector of numbers: write it again")
    if not len(vector):
        raise FileFaultError("empty", f"{path} holds a vector without values: write it again or remove it")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return vector.astype(np.float32)


def _gene_names(location: str, width: int) -> list[str]:
    path = storage.join(location, "genes.txt")
    try:
        lines = read_content(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    genes = [line.strip() for line in lines if line.strip()]
    twice = first_duplicate(genes)
    if twice is not None:
        raise InputError(f"{path} names gene '{twice}' twice")
    if len(genes) != width:
        raise InputError(f"{path} names {len(genes)} genes but the vectors have {width} values")
    return genes


def _fault(patient: str, problem: Problem, location: str, what: str) -> Fault:
    return Fault("omics", patient, problem, location, f"{location}: {what}")


def _bad_rows(found: _Rows, blank_N: npt.NDArray[np.bool_]) -> list[Fault]:
    """The faults of rows that could be read; one a row."""
    values_NG = found.values_NG
    finite_NG = np.isfinite(values_NG)
    whole_N = finite_NG.all(axis=1)
    faults = [_not_whole(found, int(row), ~finite_NG[row]) for row in np.flatnonzero(~whole_N & ~blank_N)]
    if _is_panel(values_NG[whole_N]):
        return faults
    constant_N = (values_NG.max(axis=1) == values_NG.min(axis=1)) & whole_N & (len(found.genes) > 1)
    for row in np.flatnonzero(constant_N):
        what = f"all genes of patient '{found.patients[row]}' are {values_NG[row, 0]:g}: correct the row or remove it"
        faults.append(_fault(found.patients[row], "constant", found.places[row], what))
    return faults + _repeated(found, np.flatnonzero(whole_N & ~constant_N).tolist())


def _is_panel(values_NG: Floats) -> bool:
    """Whether it is a table of 0 and 1, such as mutations, whose rows are constant or alike by chance."""
    return bool(((values_NG == 0) | (values_NG == 1)).all())


def _not_whole(found: _Rows, row: int, bad_G: npt.NDArray[np.bool_]) -> Fault:
    patient, count = found.patients[row], int(bad_G.sum())
    if row in found.words:
        gene, word = found.words[row]
        problem: Problem = "not a number"
        what = f"'{word}', not a number"
    else:
        column = int(np.flatnonzero(bad_G)[0])
        gene = found.genes[column]
        infinite = bool(np.isinf(found.values_NG[row, column]))
        problem, what = ("not finite", "infinite or beyond single precision") if infinite else found.nan
    several = f" ({count} such values in the row)" if count > 1 else ""
    return _fault(
        patient,
        problem,
        found.places[row],
        f"gene '{gene}' of patient '{patient}' is {what}{several}: correct it, or remove the gene or the row",
    )


def _repeated(found: _Rows, rows: Iterable[int]) -> list[Fault]:
    """Faults of rows with the values of another: nobody knows whose they are, so none of them stays."""
    same: dict[bytes, list[int]] = {}
    for row in rows:
        same.setdefault(hashlib.sha256(found.values_NG[row].tobytes()).digest(), []).append(row)
    faults = []
    for group in (group for group in same.values() if len(group) > 1):
        for row in group:
            patient, other = found.patients[row], found.patients[group[0] if row != group[0] else group[1]]
            what = (
                f"patient '{patient}' has the very values of patient '{other}': find out whose they are, or remove both"
            )
            faults.append(_fault(patient, "duplicated", found.places[row], what))
    return faults
