"""Reads a folder with a vector of omics `<patient>.npy` for each patient, and `genes.txt` with their names.

Shapes: S patients of the cohort with a vector, G genes.
"""

from __future__ import annotations

import io
from collections import Counter

import numpy as np

from momkd_ray import storage
from momkd_ray.cohort.cell_numbers import Floats
from momkd_ray.cohort.gene_tables import GeneTable
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import first_duplicate, read_content
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, FileFaultError


def read_vectors(location: str, samples: Samples) -> tuple[GeneTable, list[Fault], list[str]]:
    """Reads the vectors of the cohort's patients.

    Returns:
        The vectors of the length that most have, the faults of the others, and the files that are no vectors.

    Raises:
        InputError: `genes.txt` does not fit the vectors, or there is none of the cohort's patients.
    """
    names = storage.list_names(location)
    everyone = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    vectors: dict[str, Floats] = {}
    faults = []
    for name in everyone:
        if (patient := samples.patient(name)) is not None:
            path = storage.join(location, f"{name}.npy")
            try:
                vectors[name] = _vector(path)
            except FileFaultError as error:
                faults.append(Fault("omics", patient, error.problem, path, str(error)))
    if not vectors and not faults:
        theirs = f"such as '{min(everyone)}'" if everyone else "for it names none"
        raise InputError(
            f"{location} has omics of none of the {len(samples.patients)} patients of the cohort, {theirs}: "
            f"write its identifiers as in the clinical table, such as '{min(samples.patients)}'"
        )
    lengths = Counter(len(vector) for vector in vectors.values())
    width = lengths.most_common(1)[0][0] if lengths else 0
    genes = _gene_names(location, width) if width and "genes.txt" in names else [f"g{i:04d}" for i in range(width)]
    fitting = {name: vector for name, vector in vectors.items() if len(vector) == width}
    example = next(iter(fitting), "")
    for name in vectors.keys() - fitting.keys():
        reason = (
            f"{location}: {name}.npy has {len(vectors[name])} values, but {example}.npy and most others "
            f"have {width}: write it with the same genes"
        )
        path = storage.join(location, f"{name}.npy")
        faults.append(Fault("omics", str(samples.patient(name)), "misshapen", path, reason))
    table = GeneTable(
        samples=list(fitting),
        places=[f"{name}.npy" for name in fitting],
        genes=genes,
        values_SG=np.stack(list(fitting.values())) if fitting else np.empty((0, 0), np.float32),
        words_SG=None,
        words={},
        all_samples=everyone,
        rows=len(everyone),
        files=tuple(storage.join(location, f"{name}.npy") for name in fitting),
        understood=(Understood(location, "omics", "it is a folder with a vector a patient", len(everyone)),),
    )
    return table, faults, [name for name in names if not name.endswith(".npy") and name != "genes.txt"]


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
