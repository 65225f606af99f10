"""Reads the table of slides: the patient of every slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from momkd_ray.cohort import columns
from momkd_ray.cohort.slide_names import (
    SLIDE_SUFFIXES,
    folder_and_name,
    scanner_suffix,
    slide_id_of,
    without_feature_suffix,
)
from momkd_ray.cohort.table_files import blank_cell, data_rows, read_table, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.input_faults import Fault, Problem

__all__ = ["SlideTable", "read_slides", "slide_id_of"]


@dataclass(frozen=True)
class _Row:
    """A row of the table: its number, its patient, and the slide as written."""

    number: int
    patient: str
    name: str


@dataclass(frozen=True, eq=False)
class SlideTable:
    """The slides of a table, and its faults.

    Attributes:
        table: columns `slide_id` (sorted), `patient_id`; rows without a fault, each slide once.
        patient_column: name of the patient column.
        rows: number of rows.
        faults: of kind slide.
        named: the name as written, perhaps a path, of every slide that a row names, those with faults too.
        patients_with_bad_rows: patients who have a bad row.
        understood: what was recognised about its names.
        rows_of: data rows (from 1) of every slide in `table`.
    """

    table: pd.DataFrame
    patient_column: str
    rows: int
    faults: tuple[Fault, ...]
    named: Mapping[str, str]
    patients_with_bad_rows: frozenset[str]
    understood: tuple[Understood, ...] = ()
    rows_of: Mapping[str, Sequence[int]] = field(default_factory=dict)


def read_slides(
    path: str,
    patient_column: str | None = None,
    slide_column: str | None = None,
    frame: pd.DataFrame | None = None,
) -> SlideTable:
    """Reads a table with one row per slide: STAMP's, CLAM's, Patho-Bench's or another with such columns.

    A slide is its file's name without folder and known suffixes; where several files would have the same name, it keeps
    the scanner's suffix or the folder that tells them apart. Rows of a slide that agree on the patient count once.
    A row without patient or slide is a fault, and so is a slide of two patients, which is left out.

    Args:
        path: local or `s3://`.
        patient_column: names the patients; None to find it by name.
        slide_column: names the slides; None to find it by name.
        frame: the table, if it has been read already.

    Raises:
        InputError: it cannot be read, or none or several columns qualify.
    """
    frame = read_table(path) if frame is None else frame
    patient_column = columns.patient_column(frame.columns, path, patient_column)
    slide_column = columns.slide_column(frame.columns, path, slide_column)
    patients, names = texts(frame[patient_column]), texts(frame[slide_column])
    faults: list[Fault] = []
    good: list[_Row] = []
    patients_with_bad_rows: set[str] = set()
    for number, (patient, name) in enumerate(zip(patients, names, strict=True), start=1):
        if patient is not None and name is not None and _is_file_name(name):
            good.append(_Row(number, patient, name))
            continue
        faults.append(_bad_row(path, number, patient, name, (patient_column, slide_column)))
        patients_with_bad_rows |= {patient} if patient is not None else set()
    rows = _by_slide(good)
    disputed = {slide: own for slide, own in rows.items() if len({row.patient for row in own}) > 1}
    faults += [_several_patients(path, slide, own) for slide, own in disputed.items()]
    patients_with_bad_rows |= {row.patient for own in disputed.values() for row in own}
    kept = {slide: own[0].patient for slide, own in sorted(rows.items()) if slide not in disputed}
    table = pd.DataFrame({"slide_id": list(kept), "patient_id": list(kept.values())}, dtype="str")
    named = {slide_id_of(folder_and_name(name)[1]): name for name in names if name is not None}
    named |= {slide: own[0].name for slide, own in rows.items()}
    repeated = {slide: own for slide, own in rows.items() if slide in kept and len(own) > 1}
    understood = (*_repeated(path, repeated), *_with_folders(path, good))
    return SlideTable(
        table=table,
        patient_column=patient_column,
        rows=len(frame),
        faults=tuple(faults),
        named=named,
        patients_with_bad_rows=frozenset(patients_with_bad_rows),
        understood=understood,
        rows_of={slide: [row.number for row in rows[slide]] for slide in kept},
    )


def _is_file_name(path: str) -> bool:
    name = folder_and_name(path)[1]
    # pathlib sees no suffix in a name such as ".h5"
    return bool(name) and name.lower() not in SLIDE_SUFFIXES


def _by_slide(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Groups rows by slide: by the shortest name that keeps different files apart."""
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        by_name.setdefault(slide_id_of(folder_and_name(row.name)[1]), []).append(row)
    slides: dict[str, list[_Row]] = {}
    for name, own in by_name.items():
        folders = {folder_and_name(row.name)[0] for row in own}
        suffixes = {scanner_suffix(folder_and_name(row.name)[1]) for row in own} - {""}
        for row in own:
            folder, file_name = folder_and_name(row.name)
            slide = without_feature_suffix(file_name) if len(suffixes) > 1 else name
            folder = folder.strip("/") if len(folders) > 1 else ""
            slides.setdefault(f"{folder}/{slide}" if folder else slide, []).append(row)
    return slides


def _repeated(path: str, rows: Mapping[str, Sequence[_Row]]) -> list[Understood]:
    if not rows:
        return []
    slide, own = next(iter(rows.items()))
    slides = "1 slide has" if len(rows) == 1 else f"{len(rows):,} slides have"
    numbers = data_rows([row.number for row in own])
    what = f"{slides} several rows of the same patient, which count once, such as '{slide}' ({numbers})"
    return [Understood(path, "identifiers", what, len(rows))]


def _with_folders(path: str, rows: Sequence[_Row]) -> list[Understood]:
    paths = [row.name for row in rows if folder_and_name(row.name)[0]]
    if not paths:
        return []
    slides = "1 slide is" if len(paths) == 1 else f"{len(paths):,} slides are"
    return [Understood(path, "identifiers", f"{slides} named by a path, such as '{paths[0]}'", len(paths))]


def _bad_row(path: str, row: int, patient: str | None, name: str | None, columns_of: tuple[str, str]) -> Fault:
    problem: Problem = "missing value"
    if patient is None or name is None:
        reason = blank_cell(path, columns_of[0] if patient is None else columns_of[1], row)
    else:
        problem = "misshapen"
        reason = f"{path}: '{name}' in data row {row} is not the name of a file: give the slide's name"
    return Fault("slide", f"data row {row}" if name is None else slide_id_of(name), problem, path, reason)


def _several_patients(path: str, slide: str, rows: Sequence[_Row]) -> Fault:
    owners = {row.patient: row.number for row in reversed(rows)}
    whose = " and ".join(f"of patient '{patient}' (data row {row})" for patient, row in reversed(owners.items()))
    reason = f"{path}: slide '{slide}' is {whose}: a slide belongs to one patient, correct or remove the rows"
    return Fault("slide", slide, "duplicated", path, reason)
