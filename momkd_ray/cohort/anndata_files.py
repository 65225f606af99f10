"""Reads omics from AnnData's .h5ad files: `X`, dense or sparse, with its `obs` and `var` (read with h5py alone).

Shapes: S samples of the cohort's patients, G genes.
"""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from momkd_ray.cohort.cell_numbers import Floats
from momkd_ray.cohort.columns import OMICS_KEY
from momkd_ray.cohort.distinct_genes import distinct_names
from momkd_ray.cohort.gene_tables import SAMPLE_COLUMNS, GeneTable
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, normalised
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import read_content
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

_MOST_ROWS = 20  # of one patient; more are cells


def read_h5ad(location: str, patient_column: str | None, samples: Samples) -> GeneTable:
    """Reads an .h5ad file, whose rows are samples named by the index of `obs` or by one of its columns.

    Args:
        location: of the file.
        patient_column: of `obs`; None to find it.
        samples: of the cohort's patients.

    Raises:
        InputError: it is no such file, names nobody of the cohort, or its rows are cells.
    """
    content = read_content(location)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            return _read(file, location, patient_column, samples)
    except (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{location} cannot be read as .h5ad ({reason}): write it again with anndata") from error


def _read(file: Any, location: str, patient_column: str | None, samples: Samples) -> GeneTable:
    obs, var = _frame(file["obs"]), _frame(file["var"])
    name, names = _samples_of(obs, location, patient_column, samples)
    found = samples.of(names)
    rows_S = np.asarray([i for i, sample in enumerate(names) if sample in found], np.int64)
    if not len(rows_S):
        raise InputError(
            f"{location} has omics of none of the {len(samples.patients)} patients of the cohort, such as "
            f"'{names[0] if names else ''}' in '{name}' of obs: write its identifiers as in the clinical table, such "
            f"as '{min(samples.patients)}'"
        )
    if len(rows_S) > _MOST_ROWS * len(samples.patients):
        raise InputError(
            f"{location} has {len(rows_S):,} rows of {len(samples.patients)} patients, so they are cells: sum the "
            "counts of each patient's cells (a pseudobulk), with a row a patient"
        )
    values_SG = _matrix(file["X"], (len(names), len(var[""])), rows_S)
    genes, kept, understood = distinct_names(var[""], values_SG.T, location, "columns")
    where = "the index of obs" if name == "" else f"the column '{name}' of obs"
    what = f"X has a row a sample, named by {where}, and a column a gene, named by the index of var"
    return GeneTable(
        samples=[names[i] for i in rows_S],
        places=[f"row {i + 1} of X" for i in rows_S],
        genes=genes,
        values_SG=np.ascontiguousarray(values_SG[:, kept]),
        words_SG=None,
        words={},
        all_samples=names,
        rows=len(names),
        understood=(Understood(location, "omics", what, len(names)), *understood),
    )


def _samples_of(
    obs: dict[str, list[str]], location: str, chosen: str | None, samples: Samples
) -> tuple[str, list[str]]:
    """Returns the column of obs that names the most samples of the cohort, '' for its index, and its cells."""
    if chosen is not None and chosen not in obs:
        shown = ", ".join(f"'{name}'" for name in obs if name)
        cure = f"set {OMICS_KEY} to one of its columns, {shown}, or " if shown else ""
        cure += f"leave {OMICS_KEY} and cohort.patient_column out, and its index is searched"
        raise InputError(f"{location} has no column '{chosen}' in obs: {cure}")
    known = [normalised(name) for name in (*PATIENT_COLUMNS, *SAMPLE_COLUMNS)]
    order = [chosen] if chosen is not None else ["", *sorted(obs, key=lambda name: normalised(name) not in known)]
    found = {name: samples.of(obs[name]) for name in order}
    counts = {name: sum(cell in found[name] for cell in obs[name]) for name in order}
    best = max(order, key=lambda name: counts[name])
    return best, obs[best]


def _frame(group: Any) -> dict[str, list[str]]:
    """Returns the index, as '', and the columns of text of a data frame as AnnData stores it."""
    if isinstance(group, h5py.Dataset):  # a table, as before AnnData 0.7
        fields = group.dtype.names
        index = "index" if "index" in fields else fields[0]
        cells = {name: group[name] for name in fields if group.dtype[name].kind in "OSU"}
        return {"": _texts(group[index])} | {name: _texts(own) for name, own in cells.items() if name != index}
    index = _text(group.attrs["_index"])
    frame = {"": _texts(group[index][()])}
    for name, column in group.items():
        if name in (index, "__categories"):
            continue
        if isinstance(column, h5py.Group) and "categories" in column:
            categories, codes = _texts(column["categories"][()]), column["codes"][()]
            frame[name] = [categories[code] if code >= 0 else "" for code in codes]
        elif isinstance(column, h5py.Dataset) and column.dtype.kind in "OSU":
            frame[name] = _texts(column[()])
        elif isinstance(column, h5py.Dataset) and column.dtype.kind in "iu" and "categories" not in column.attrs:
            frame[name] = [str(number) for number in column[()]]
    return frame


def _texts(cells: Any) -> list[str]:
    return [_text(cell) for cell in cells]


def _text(cell: Any) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)


def _matrix(x: Any, shape: tuple[int, int], rows_S: np.ndarray) -> Floats:
    """Reads rows of `X`, dense, CSR or CSC, as (S, G) float32."""
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        if isinstance(x, h5py.Dataset):
            if x.shape != shape:
                raise ValueError(f"X has the shape {x.shape}, but obs and var have {shape}")
            return np.asarray(x[()][rows_S], np.float32)
        kind = _text(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "")))
        form = scipy.sparse.csc_array if kind.startswith("csc") else scipy.sparse.csr_array
        parts = (x["data"][()], x["indices"][()], x["indptr"][()])
        sparse = form(parts, shape=shape)
        return np.asarray(sparse.tocsr()[rows_S].toarray(), np.float32)
