"""Finds whose sample each file of a folder is: by a sample sheet of the GDC or the like, or by the files' names."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from momkd_ray import storage
from momkd_ray.cohort.gene_names import number_of, some_of
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, normalised
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import read_content, read_table_file, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

# as the GDC's portal names what it gives: the sample sheet, and the metadata of the cart
_SHEET = re.compile(
    r"(gdc_)?sample_?sheet.*\.(tsv|csv|txt|xlsx)|metadata\.(cart|repository|files).*\.json", re.IGNORECASE
)
_FILE_COLUMNS = ("filename", "fileid", "fileuuid", "file", "id", "run", "directory")
_SAMPLE_COLUMNS = (
    "sampleid",
    "samplesubmitterid",
    "entitysubmitterid",
    "sample",
    "samplebarcode",
    "aliquotid",
    "barcode",
)
_CASE_COLUMNS = ("caseid", "casesubmitterid", "casessubmitterid", *map(normalised, PATIENT_COLUMNS))
_TYPE_COLUMNS = ("sampletype", "tissuetype")


@dataclass(frozen=True, eq=False)
class FileSamples:
    """The sample of each file.

    Attributes:
        names: path of a file -> its sample as written.
        normal: paths of files whose sample is of normal tissue by the sheet.
        understood: how that was found.
    """

    names: Mapping[str, str]
    normal: frozenset[str]
    understood: tuple[Understood, ...]


@dataclass(frozen=True)
class _Sheet:
    """Cells of a sheet: of each file or identifier of a file, its possible samples, the likeliest first, and type."""

    path: str
    of_file: Mapping[str, tuple[tuple[str | None, ...], str]]
    files: int


def file_samples(folder: str, paths: Sequence[str], sheet: str | None, samples: Samples) -> FileSamples:
    """Finds the sample of each file.

    Args:
        folder: of the files.
        paths: of the files.
        sheet: `omics.sample_sheet`; None to find one in the folder or beside it, or else to go by names.
        samples: of the cohort's patients.

    Raises:
        InputError: several sheets could be meant, or none, and the files' names name nobody of the cohort.
    """
    found = [sheet] if sheet else _sheets_near(folder)
    if len(found) > 1:
        raise InputError(
            f"{folder} has several sample sheets: {set_to('omics.sample_sheet', *found[:2])}, whichever is meant"
        )
    if not found:
        return _by_names(folder, paths, samples)
    read = _read_sheet(found[0])
    rows = {path: row for path in paths if (row := _row_of(path, read)) is not None}
    if not rows:
        raise InputError(
            f"{read.path} names none of the {len(paths):,} files of {folder}, such as "
            f"'{posixpath.basename(paths[0])}': download the sample sheet of these files, or set omics.sample_sheet"
        )
    names = _names_of(rows, read.path, samples)
    normal = frozenset(path for path, (_, kind) in rows.items() if "normal" in kind.casefold())
    understood = [
        Understood(
            read.path, "identifiers", f"it names the samples of {number_of(len(names), 'file', 'files')}", len(names)
        )
    ]
    without = [posixpath.basename(path) for path in paths if path not in names]
    if without:
        files = number_of(len(without), "file is", "files are")
        what = f"{files} not in {posixpath.basename(read.path)} and left out: {some_of(without)}"
        understood.append(Understood(folder, "identifiers", what, len(without), warning=True))
    if read.files > len(rows):
        files = number_of(read.files - len(rows), "file", "files")
        what = f"{files} that it names are not in {folder}"
        understood.append(Understood(read.path, "identifiers", what, read.files - len(rows), warning=True))
    return FileSamples(names, normal, tuple(understood))


def _names_of(rows: Mapping[str, tuple[tuple[str | None, ...], str]], sheet: str, samples: Samples) -> dict[str, str]:
    """Returns the samples of files, by the sheet's column of samples or, if few of these match, that of cases."""
    columns = range(max(len(cells) for cells, _ in rows.values()))
    counts = [len(samples.of(cell for cells, _ in rows.values() if (cell := cells[i]))) for i in columns]
    best = max(columns, key=lambda i: (counts[i] > 0 and counts[i] >= 0.9 * max(counts), -i))
    names = {path: own for path, (cells, _) in rows.items() if (own := cells[best])}
    if not any(counts):
        example = next(iter(names.values()), "")
        raise InputError(
            f"{sheet} has samples of none of the {len(samples.patients)} patients of the cohort, such as "
            f"'{example}': write its cases as in the clinical table, such as '{min(samples.patients)}'"
        )
    return names


def _sheets_near(folder: str) -> list[str]:
    parent = posixpath.dirname(folder.rstrip("/"))
    for place in (folder, parent):
        names = sorted(info.name for info in storage.list_files(place)) if place else []
        if found := [storage.join(place, name) for name in names if _SHEET.fullmatch(name)]:
            return found
    return []


def _row_of(path: str, sheet: _Sheet) -> tuple[tuple[str | None, ...], str] | None:
    name, parent = posixpath.basename(path), posixpath.basename(posixpath.dirname(path))
    for key in (name, without_packing(name), parent, name.partition(".")[0]):
        if key in sheet.of_file:
            return sheet.of_file[key]
    return None


def without_packing(name: str) -> str:
    """Removes the suffix of a compressed file."""
    return re.sub(r"\.(gz|bz2|xz|zst|zip)$", "", name, flags=re.IGNORECASE)


def _read_sheet(path: str) -> _Sheet:
    if path.lower().endswith(".json"):
        return _read_metadata(path)
    file = read_table_file(path)
    frame = file.frame()
    plain = {name: normalised(str(name)) for name in frame.columns}

    def cells(known: Sequence[str]) -> list[list[str | None]]:
        named = [name for key in known for name in frame.columns if plain[name] == key]
        return [texts(frame[name]) for name in named]

    files, kinds = cells(_FILE_COLUMNS), cells(_TYPE_COLUMNS)
    owners = [*cells(_SAMPLE_COLUMNS)[:1], *cells(_CASE_COLUMNS)[:1]]
    if not files or not owners:
        lacking = "files, such as 'File Name'" if not files else "samples or cases, such as 'Sample ID' or 'Case ID'"
        hint = ""
        if {"md5", "size", "state"} & set(plain.values()):
            hint = "; it is the GDC's manifest, which names no cases"
        raise InputError(
            f"{path} has no column that names the {lacking}{hint}: download the sample sheet from the GDC's cart, and "
            "name it in omics.sample_sheet"
        )
    of_file: dict[str, tuple[tuple[str | None, ...], str]] = {}
    for row in range(len(frame)):
        own = tuple(_single(column[row]) for column in owners)
        kind = " ".join(column[row] or "" for column in kinds)
        for column in files:
            if (key := column[row]) is not None:
                key = posixpath.basename(key.replace("\\", "/"))
                for name in (key, without_packing(key)):
                    if name in of_file and of_file[name] != (own, kind):
                        raise InputError(
                            f"{path} names the file '{key}' twice, with different samples: correct its rows"
                        )
                    of_file[name] = (own, kind)
    return _Sheet(path, of_file, len(frame))


def _read_metadata(path: str) -> _Sheet:
    """Reads the metadata of the GDC's cart, a list of files with their entities."""
    of_file: dict[str, tuple[tuple[str | None, ...], str]] = {}
    try:
        entries = json.loads(read_content(path))
        for entry in entries:
            own = (_single(", ".join(entity["entity_submitter_id"] for entity in entry["associated_entities"])),)
            of_file[str(entry["file_name"])] = of_file[str(entry.get("file_id", entry["file_name"]))] = (own, "")
        return _Sheet(path, of_file, len(entries))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not the metadata of the GDC's cart (a list with file_name and associated_entities): download "
            "it again, or the sample sheet"
        ) from error


def _single(cell: str | None) -> str | None:
    """Returns the only sample of a cell, which the GDC repeats for each of its portions; None if it names several."""
    names = {part.strip() for part in (cell or "").split(",")} - {""}
    return names.pop() if len(names) == 1 else None


def _by_names(folder: str, paths: Sequence[str], samples: Samples) -> FileSamples:
    """Finds the samples by the names of the files, or of the folders that hold one each."""
    stems = {path: _stems(posixpath.basename(path)) for path in paths}
    parents = {path: posixpath.basename(posixpath.dirname(path)) for path in paths}
    by_file = {path: next((stem for stem in own if samples.patient(stem)), own[-1]) for path, own in stems.items()}
    by_folder = parents if len(set(parents.values())) == len(paths) > 1 else {}
    names, whose = max(
        ((by_file, "files"), (by_folder, "folders")), key=lambda option: len(samples.of(option[0].values()))
    )
    if not samples.of(names.values()):
        sheet = storage.join(folder, "gdc_sample_sheet.tsv")
        raise InputError(
            f"{folder} holds {number_of(len(paths), 'file', 'files')} of one sample each, such as "
            f"'{posixpath.basename(paths[0])}', and nothing that says whose they are: download the sample sheet from "
            f"the GDC's cart (or write one with the columns File Name and Sample ID) and save it as {sheet}, or name "
            "it in omics.sample_sheet"
        )
    what = f"the names of its {whose} are read as samples, such as '{next(iter(samples.of(names.values())))}'"
    return FileSamples(names, frozenset(), (Understood(folder, "identifiers", what, len(paths)),))


def _stems(name: str) -> list[str]:
    """Returns a name without one, two, ... of its suffixes."""
    parts = without_packing(name).split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)] or [name]
