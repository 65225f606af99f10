"""Reads a folder with one file of gene values for each sample, as the GDC, STAR, RSEM and Salmon write them.

Shapes: S samples of the cohort's patients, G genes.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from momkd_ray import storage
from momkd_ray.cohort.cell_numbers import Floats, as_numbers, is_number_like
from momkd_ray.cohort.delimited import read_delimited
from momkd_ray.cohort.distinct_genes import distinct_names
from momkd_ray.cohort.gene_names import number_of, some_of
from momkd_ray.cohort.gene_tables import STATISTICS, GeneTable
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.sample_sheets import file_samples, without_packing
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import read_content
from momkd_ray.cohort.understood import Understood
from momkd_ray.cohort.unpack import unpack
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, Problem

# GDC's STAR counts; files of HTSeq, STAR, RSEM, Salmon and kallisto
_SUFFIXES = (".tsv", ".txt", ".counts", ".csv", ".tab", ".sf", ".results", ".out")
_NO_SAMPLES = re.compile(
    r"annotations\.txt|manifest.*|gdc_manifest.*|.*sample_?sheet.*|clinical\..*|genes\.txt|readme.*", re.I
)
_GENE_COLUMNS = ("gene_id", "Name", "target_id", "gene", "Gene", "gene_name", "GeneID", "Geneid")
_VALUE_COLUMNS = ("tpm_unstranded", "TPM", "tpm")  # in order of preference
_THREADS = 8


@dataclass(frozen=True, eq=False)
class _SampleFile:
    """The genes and values of a file."""

    path: str
    column: str
    others: tuple[str, ...]
    genes: tuple[str, ...]
    values_G: Floats
    statistics: int


class _WrongFileError(Exception):
    """A file that cannot be used."""

    def __init__(self, problem: Problem, what: str) -> None:
        super().__init__(what)
        self.problem: Problem = problem


def sample_file_paths(folder: str) -> list[str]:
    """Lists the files of single samples in a folder, or in the folders in it."""
    own = _files_of_samples(folder)
    if own:
        return own
    files = {info.name for info in storage.list_files(folder)}
    below = [name for name in storage.list_names(folder) if name not in files and not name.startswith(".")]
    return [path for name in sorted(below) for path in _files_of_samples(storage.join(folder, name))]


def _files_of_samples(folder: str) -> list[str]:
    names = sorted(info.name for info in storage.list_files(folder))
    return [
        storage.join(folder, name)
        for name in names
        if without_packing(name).lower().endswith(_SUFFIXES)
        and not name.startswith(".")
        and not _NO_SAMPLES.fullmatch(name)
    ]


def read_sample_files(
    location: str, paths: Sequence[str], settings: OmicsConfig, samples: Samples
) -> tuple[GeneTable, list[Fault]]:
    """Reads the files of the cohort's patients.

    Args:
        location: of the folder.
        paths: of its files.
        settings: the configuration's `omics` section.
        samples: of the cohort's patients.

    Returns:
        The samples, and the faults of files that are damaged or have other genes than most.

    Raises:
        InputError: it is not known whose the files are, or no file can be used.
    """
    whose = file_samples(location, paths, settings.sample_sheet, samples)
    patient_of = samples.of(whose.names.values())
    mine = [path for path in paths if whose.names.get(path) in patient_of and path not in whose.normal]
    read: dict[str, _SampleFile] = {}
    faults: list[Fault] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for path, result in zip(mine, threads.map(lambda own: _tried(own, settings.column), mine), strict=True):
            if isinstance(result, _SampleFile):
                read[path] = result
            else:
                faults.append(Fault("omics", patient_of[whose.names[path]], result.problem, path, f"{path} {result}"))
    genes, columns = _usual(read)
    values: dict[str, Floats] = {}
    for path, file in read.items():
        aligned, wrong = _aligned(file, genes, columns)
        if wrong is None:
            values[path] = aligned
        else:
            faults.append(Fault("omics", patient_of[whose.names[path]], wrong.problem, path, f"{path} {wrong}"))
    if not values and faults:
        raise InputError(
            f"none of the {len(mine):,} files of the cohort in {location} can be used, the first: {faults[0].reason}"
        )
    if not values:
        raise InputError(
            f"{location} has only samples of normal tissue of the cohort's patients: give those of tumours"
        )
    names, kept, more = distinct_names(list(genes), np.stack(list(values.values()), axis=1), location, "rows")
    understood = [*whose.understood, *_understood(location, list(read.values()), paths, whose.normal), *more]
    table = GeneTable(
        samples=[whose.names[path] for path in values],
        places=[posixpath.basename(path) for path in values],
        genes=names,
        values_SG=np.stack([own[kept] for own in values.values()]),
        words_SG=None,
        words={},
        all_samples=list(dict.fromkeys(whose.names.values())),
        rows=len(paths),
        files=tuple(values),
        understood=tuple(understood),
    )
    return table, faults


def _tried(path: str, column: str | None) -> _SampleFile | _WrongFileError:
    try:
        return _read(path, column)
    except _WrongFileError as error:
        return error
    except InputError as error:
        return _WrongFileError(
            "unreadable", f"cannot be read, download it again ({str(error).removeprefix(path).strip(' :')})"
        )


def _read(path: str, chosen: str | None) -> _SampleFile:
    content = read_content(path)
    if not content:
        raise _WrongFileError("empty", "is empty (0 bytes): download it again, or remove it")
    suffix, content = unpack(path, content, _SUFFIXES)
    table, _ = read_delimited(path, content, ".csv" if suffix == ".csv" else ".tsv", None)
    header = list(table.column_names)
    if len(header) > 1 and all(is_number_like(name) for name in header[1:]):
        first = pa.table(
            [pa.array([name], pa.string()) for name in header], names=[str(i + 1) for i in range(len(header))]
        )
        table = pa.concat_tables([first, table.rename_columns(first.column_names)])
        header = list(first.column_names)
        naming = "1"
    else:
        naming = next((name for name in _GENE_COLUMNS if name in header), header[0])
    column = _value_column(header, naming, chosen)
    labels = table.column(naming).to_pylist()
    statistic_G = np.asarray([label is None or STATISTICS.fullmatch(label) is not None for label in labels], bool)
    rows_G = np.flatnonzero(~statistic_G)
    cells = as_numbers([table.column(column)], rows_G)
    genes = tuple(str(labels[row]).strip() for row in rows_G)
    if cells.words:
        (_, row), word = next(iter(cells.words.items()))
        raise _WrongFileError(
            "not a number",
            f"has '{word}' for gene '{genes[row]}' in its column '{column}', not a number: download it again",
        )
    if not genes:
        raise _WrongFileError("empty", "has no genes: download it again, or remove it")
    others = tuple(name for name in header if name not in (naming, column))
    return _SampleFile(path, column, others, genes, cells.values_CR[0], int(statistic_G.sum()))


def _value_column(header: Sequence[str], naming: str, chosen: str | None) -> str:
    others = [name for name in header if name != naming]
    if chosen is not None:
        if chosen not in others:
            raise _WrongFileError(
                "misshapen", f"has no column '{chosen}' (omics.column); its columns are {some_of(others)}"
            )
        return chosen
    found = [name for name in _VALUE_COLUMNS if name in others] or (others if len(others) == 1 else [])
    if not others:
        raise _WrongFileError(
            "misshapen", "has no column of values: it is cut off or of another kind, download it again"
        )
    if not found:
        cure = set_to("omics.column", *others[-3:])
        raise _WrongFileError("misshapen", f"has several columns that may be the values ({some_of(others)}): {cure}")
    return found[0]


def _usual(read: dict[str, _SampleFile]) -> tuple[tuple[str, ...], str]:
    """Returns the genes, in order, and the column that most files have."""
    if not read:
        return (), ""
    genes = Counter(hash(file.genes) for file in read.values()).most_common(1)[0][0]
    column = Counter(file.column for file in read.values()).most_common(1)[0][0]
    return next(file.genes for file in read.values() if hash(file.genes) == genes), column


def _aligned(file: _SampleFile, genes: tuple[str, ...], column: str) -> tuple[Floats, _WrongFileError | None]:
    """Returns the values in the order of the genes, or what is wrong."""
    if file.column != column:
        what = f"has the column '{file.column}' where most files have '{column}': give files of one kind"
        return file.values_G, _WrongFileError("misshapen", what)
    if file.genes == genes:
        return file.values_G, None
    places = {gene: i for i, gene in enumerate(file.genes)}
    if len(file.genes) == len(genes) and len(places) == len(genes) and places.keys() == set(genes):
        return file.values_G[[places[gene] for gene in genes]], None
    missing = [gene for gene in genes if gene not in places]
    lacks = f", and lacks {some_of(missing[:3])}" if missing else ""
    what = (
        f"has {len(file.genes):,} genes where most files have {len(genes):,}{lacks}: it is cut off or of another "
        "pipeline, download it again or remove it"
    )
    return file.values_G, _WrongFileError("misshapen", what)


def _understood(
    location: str, read: Sequence[_SampleFile], paths: Sequence[str], normal: frozenset[str]
) -> list[Understood]:
    first = read[0]
    what = f"it is a folder with a file a sample ({len(paths):,} files), of which the column '{first.column}' is read"
    if first.others:
        what += f" (omics.column would read another: {', '.join(first.others[:8])})"
    entries = [Understood(location, "omics", what, len(paths))]
    if normal:
        files = number_of(len(normal), "file", "files")
        what = (
            f"{files} of normal tissue by the sample sheet left out: {some_of(sorted(map(posixpath.basename, normal)))}"
        )
        entries.append(Understood(location, "identifiers", what, len(normal)))
    if first.statistics:
        rows = number_of(first.statistics, "row", "rows")
        what = f"{rows} of each file left out, of numbers of reads that no gene has"
        entries.append(Understood(location, "omics", what, first.statistics))
    return entries
