"""Reads the omics of a cohort: a wide table of patients x genes, or a folder with one vector per patient.

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
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, FileFaultError, Problem, raise_faults

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OmicsTable:
    """The omics of the requested patients, and their faults.

    Attributes:
        values: (n, G) float32, index `patient_id` sorted, genes in table order; rows without a fault.
        rows: number of rows.
        faults: of kind omics.
        of_others: patients with omics who were not requested.
        blank: patients whose row is entirely blank, who have no omics.
        other_files: files in a folder of vectors that are not vectors.
        understood: what was recognised.
    """

    values: pd.DataFrame
    rows: int
    faults: tuple[Fault, ...]
    of_others: tuple[str, ...]
    blank: tuple[str, ...]
    other_files: tuple[str, ...]
    understood: tuple[Understood, ...] = ()


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of the requested patients as read, before their values are validated."""

    patients: list[str]
    locations: list[str]  # file of each row
    genes: list[str]
    values_NG: Floats  # NaN for a blank or text cell
    words: dict[int, tuple[str, str]]  # row -> gene and text of its first cell that is not a number
    faults: list[Fault]
    all_patients: list[str]
    rows: int
    other_files: list[str]
    nan: tuple[Problem, str]  # meaning of NaN: a blank cell in a table, a value that is not finite in a vector


def read_omics(location: str, patient_column: str | None, patients: Sequence[str]) -> OmicsTable:
    """Reads the omics of these patients.

    A row is a fault and is left out if a value is not a finite number, all values are the same, its patient has
    several rows, or it equals the row of another patient.

    Args:
        location: a table, or a folder of `<patient>.npy` with, if the genes have names, `genes.txt`.
        patient_column: of a table; None to find it by name.
        patients: of the cohort.

    Raises:
        InputError: it cannot be read, has genes in its rows or a gene twice, or has no usable row of these patients.
    """
    wanted = frozenset(patients)
    read = (
        _read_folder(location, wanted)
        if storage.kind(location) == "folder"
        else _read_table(location, patient_column, wanted)
    )
    if not wanted.intersection(read.all_patients):
        theirs = f"such as '{min(read.all_patients)}'" if read.all_patients else "for it names none"
        raise InputError(
            f"{location} has omics of none of the {len(patients)} patients of the cohort, {theirs}: "
            f"write its identifiers as in the clinical table, such as '{min(patients)}'"
        )
    words = np.asarray([row in read.words for row in range(len(read.patients))], bool)
    blank_N = np.isnan(read.values_NG).all(axis=1) & ~words
    faults = [*read.faults, *_bad_rows(read, blank_N)]
    bad = {fault.id for fault in faults}
    good_N = np.asarray([patient not in bad for patient in read.patients], bool) & ~blank_N
    if not good_N.any():
        raise_faults(faults, f"the {read.rows:,} rows of {location}")
        raise InputError(f"{location}: the rows of the cohort's patients are all blank; set cohort.omics to null")
    index = pd.Index([p for p, good in zip(read.patients, good_N, strict=True) if good], name="patient_id", dtype="str")
    values = pd.DataFrame(read.values_NG[good_N], index=index, columns=read.genes).sort_index()
    return OmicsTable(
        values=values,
        rows=read.rows,
        faults=tuple(faults),
        of_others=tuple(sorted(set(read.all_patients) - wanted)),
        blank=tuple(patient for patient, blank in zip(read.patients, blank_N, strict=True) if blank),
        other_files=tuple(read.other_files),
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
        locations=[location] * len(single),
        genes=genes,
        values_NG=values_NG,
        words=words,
        faults=faults,
        all_patients=list(rows_of),
        rows=table.num_rows,
        other_files=[],
        nan=("missing value", "blank"),
    )


def _refuse_text(table: pa.Table, location: str) -> None:
    """Raises for a column with text and no number in any row, which is no gene."""
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
    """Returns the values of these rows (N, G), NaN for blank or text cells, and the first text of each row with any."""
    values_GN = np.empty((table.num_columns, len(rows_N)), np.float32)
    words: dict[int, tuple[str, str]] = {}
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        for g, (gene, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if pa.types.is_string(column.type):
                values_GN[g], texts = _numbers(column.take(pa.array(rows_N)))
                words |= {row: (gene, word) for row, word in texts.items() if row not in words}
            else:
                values_GN[g] = column.to_numpy()[rows_N]
    return np.ascontiguousarray(values_GN.T), words


def _numbers(column: Any) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Returns one gene's values, NaN for blank or text cells, and the cells with text."""
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
    all_patients = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    vectors: dict[str, Floats] = {}
    faults = []
    for patient in all_patients:
        if patient in wanted:
            path = storage.join(location, f"{patient}.npy")
            try:
                vectors[patient] = _vector(path)
            except FileFaultError as error:
                faults.append(Fault("omics", patient, error.problem, path, str(error)))
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
        locations=[storage.join(location, f"{patient}.npy") for patient in fitting],
        genes=genes,
        values_NG=np.stack(list(fitting.values())) if fitting else np.empty((0, 0), np.float32),
        words={},
        faults=faults,
        all_patients=all_patients,
        rows=len(all_patients),
        other_files=[name for name in names if not name.endswith(".npy") and name != "genes.txt"],
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


def _bad_rows(read: _Rows, blank_N: npt.NDArray[np.bool_]) -> list[Fault]:
    """Lists the faults of values, one per row."""
    values_NG = read.values_NG
    finite_NG = np.isfinite(values_NG)
    complete_N = finite_NG.all(axis=1)
    faults = [_incomplete_row(read, int(row), ~finite_NG[row]) for row in np.flatnonzero(~complete_N & ~blank_N)]
    if _is_binary(values_NG[complete_N]):
        return faults
    constant_N = (values_NG.max(axis=1) == values_NG.min(axis=1)) & complete_N & (len(read.genes) > 1)
    for row in np.flatnonzero(constant_N):
        what = f"all genes of patient '{read.patients[row]}' are {values_NG[row, 0]:g}: correct the row or remove it"
        faults.append(_fault(read.patients[row], "constant", read.locations[row], what))
    return faults + _repeated_rows(read, np.flatnonzero(complete_N & ~constant_N).tolist())


def _is_binary(values_NG: Floats) -> bool:
    """Returns whether all values are 0 or 1, as for mutations, whose rows may be constant or equal by chance."""
    return bool(((values_NG == 0) | (values_NG == 1)).all())


def _incomplete_row(read: _Rows, row: int, bad_G: npt.NDArray[np.bool_]) -> Fault:
    patient, count = read.patients[row], int(bad_G.sum())
    if row in read.words:
        gene, word = read.words[row]
        problem: Problem = "not a number"
        what = f"'{word}', not a number"
    else:
        column = int(np.flatnonzero(bad_G)[0])
        gene = read.genes[column]
        infinite = bool(np.isinf(read.values_NG[row, column]))
        problem, what = ("not finite", "infinite or beyond single precision") if infinite else read.nan
    several = f" ({count} such values in the row)" if count > 1 else ""
    return _fault(
        patient,
        problem,
        read.locations[row],
        f"gene '{gene}' of patient '{patient}' is {what}{several}: correct it, or remove the gene or the row",
    )


def _repeated_rows(read: _Rows, rows: Iterable[int]) -> list[Fault]:
    """Lists the faults of rows with equal values: as it is unknown whose they are, all of them are left out."""
    same: dict[bytes, list[int]] = {}
    for row in rows:
        same.setdefault(hashlib.sha256(read.values_NG[row].tobytes()).digest(), []).append(row)
    faults = []
    for group in (group for group in same.values() if len(group) > 1):
        for row in group:
            patient, other = read.patients[row], read.patients[group[0] if row != group[0] else group[1]]
            what = (
                f"patient '{patient}' has the very values of patient '{other}': find out whose they are, or remove both"
            )
            faults.append(_fault(patient, "duplicated", read.locations[row], what))
    return faults
