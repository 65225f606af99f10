"""The omics of a cohort: a wide table of patients x genes, or a folder with one vector a patient."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from momkd_ray import storage
from momkd_ray.cohort.formats import arrow_table, first_duplicate, identifiers, read_content, require_columns
from momkd_ray.errors import InputError

Floats = npt.NDArray[np.float32]
LeftOut = list[tuple[str, str]]  # (identifier, reason)


def read_omics(location: str, patient_column: str, patients: Sequence[str]) -> tuple[pd.DataFrame, LeftOut]:
    """The omics of these patients: (n, G) float32, index `patient_id` sorted, genes in table order.

    Also what was left out and why: rows of other patients, and entirely blank rows (no omics).

    Raises:
        InputError: a value is blank, infinite or not a number; a patient or gene occurs twice; vectors differ
            in length; or none of the patients has omics.
    """
    reader = _read_folder if storage.kind(location) == "folder" else _read_wide_table
    present, genes, values_NG, left_out = reader(location, patient_column, frozenset(patients))
    if not present:
        raise InputError(
            f"{location} has omics of none of the {len(patients)} patients of the cohort: "
            f"write its identifiers as in the clinical table, such as '{min(patients)}'"
        )
    blank = np.asarray(np.isnan(values_NG).all(axis=1))
    left_out += [
        (patient, "the row is entirely blank; its patient is kept, without omics")
        for patient, empty in zip(present, blank, strict=True)
        if empty
    ]
    kept = [patient for patient, empty in zip(present, blank, strict=True) if not empty]
    values_NG = values_NG[~blank]
    _check_finite(values_NG, kept, genes, location)
    frame = pd.DataFrame(values_NG, index=pd.Index(kept, name="patient_id", dtype="str"), columns=genes)
    return frame.sort_index(), left_out


def _read_wide_table(
    location: str, patient_column: str, wanted: frozenset[str]
) -> tuple[list[str], list[str], Floats, LeftOut]:
    table = arrow_table(location)
    require_columns(table.column_names, location, patient_column)
    genes = [name for name in table.column_names if name != patient_column]
    if not genes:
        raise InputError(f"{location} has no gene columns besides '{patient_column}'")
    for gene in genes:
        if not gene.strip() or gene.startswith("__index_level_"):  # what pandas writes for a nameless index
            raise InputError(f"{location} has a column without a name: name it after its gene or remove it")
    everyone = identifiers(table.select([patient_column]).to_pandas(), patient_column, location)
    twice = first_duplicate(everyone)
    if twice is not None:
        raise InputError(f"{location}: patient '{twice}' has more than one row: keep one")
    rows = [row for row, patient in enumerate(everyone) if patient in wanted]
    patients = [everyone[row] for row in rows]
    table = table.take(pa.array(rows, pa.int64()))
    values_NG = np.empty((len(rows), len(genes)), np.float32)
    for column, gene in enumerate(genes):
        with np.errstate(over="ignore"):  # becomes infinite, which is refused with its name
            values_NG[:, column] = _numbers(table.column(gene), gene, patients, location)
    return patients, genes, values_NG, _of_others(everyone, wanted)


def _read_folder(
    location: str, patient_column: str, wanted: frozenset[str]
) -> tuple[list[str], list[str], Floats, LeftOut]:
    names = storage.names_below(location)
    everyone = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    strange = [name for name in names if not name.endswith(".npy") and name != "genes.txt"]
    patients = [patient for patient in everyone if patient in wanted]
    vectors = [_vector(storage.join(location, f"{patient}.npy")) for patient in patients]
    for patient, vector in zip(patients, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise InputError(
                f"{location}: {patient}.npy has {len(vector)} values, {patients[0]}.npy has {len(vectors[0])}"
            )
    width = len(vectors[0]) if vectors else 0
    genes = _gene_names(location, width) if "genes.txt" in names else [f"g{i:04d}" for i in range(width)]
    values_NG = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
    left_out = [(name, "it is neither a .npy vector nor genes.txt") for name in strange]
    return patients, genes, values_NG, left_out + _of_others(everyone, wanted)


def _of_others(everyone: list[str], wanted: frozenset[str]) -> LeftOut:
    return [(patient, "its patient is not in the cohort") for patient in everyone if patient not in wanted]


def _numbers(column: Any, gene: str, patients: list[str], location: str) -> npt.NDArray[Any]:
    """One gene's values, NaN where blank."""
    if not pa.types.is_string(column.type):
        return np.asarray(column.to_numpy())
    trimmed = pc.utf8_trim_whitespace(column)
    try:
        return np.asarray(trimmed.cast(pa.float64()).to_numpy())
    except pa.ArrowInvalid:
        for patient, text in zip(patients, trimmed.to_pylist(), strict=True):
            if text is not None and not _is_number(text):
                raise InputError(
                    f"{location}: gene '{gene}' of patient '{patient}' is '{text}', not a number"
                ) from None
        raise


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _vector(path: str) -> Floats:
    content = read_content(path)
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is not a NumPy vector saved with numpy.save") from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "iuf" or not len(vector):
        raise InputError(f"{path} must hold one 1-d vector of numbers")
    with np.errstate(over="ignore"):
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


def _check_finite(values_NG: Floats, patients: list[str], genes: list[str], location: str) -> None:
    bad = np.argwhere(~np.isfinite(values_NG))
    if len(bad):
        row, column = bad[0]
        what = "blank" if np.isnan(values_NG[row, column]) else "infinite or beyond single precision"
        raise InputError(
            f"{location}: gene '{genes[column]}' of patient '{patients[row]}' is {what} "
            f"({len(bad)} such values in all): fill it in, or remove the gene or the patient's row"
        )
