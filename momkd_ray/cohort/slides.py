"""Reads the table of slides: the patient of every slide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from momkd_ray.cohort import columns
from momkd_ray.cohort.table_files import blank_cell, read_table, texts
from momkd_ray.input_faults import Fault, Problem

SLIDE_SUFFIXES = frozenset({".h5", ".hdf5", ".pt", ".svs", ".ndpi", ".tif", ".tiff", ".mrxs"})

Row = tuple[int, str]  # (number of the data row, patient)


@dataclass(frozen=True, eq=False)
class SlideTable:
    """The slides of a table, and its faults.

    Attributes:
        table: columns `slide_id` (sorted), `patient_id`; rows without a fault, each slide once.
        patient_column: name of the patient column.
        rows: number of rows.
        faults: of kind slide.
        named: every slide that a row names, those with faults too.
        patients_with_bad_rows: patients who have a bad row.
    """

    table: pd.DataFrame
    patient_column: str
    rows: int
    faults: tuple[Fault, ...]
    named: frozenset[str]
    patients_with_bad_rows: frozenset[str]


def slide_id_of(file_name: str) -> str:
    """Removes one known suffix of slides or feature files; other dots in the name are kept."""
    suffix = PurePosixPath(file_name).suffix
    return file_name[: -len(suffix)] if suffix.lower() in SLIDE_SUFFIXES else file_name


def read_slides(
    path: str,
    patient_column: str | None = None,
    slide_column: str | None = None,
    frame: pd.DataFrame | None = None,
) -> SlideTable:
    """Reads a table with one row per slide: STAMP's, CLAM's, Patho-Bench's or another with such columns.

    A row without patient or slide, or whose slide is not a plain file name, is a fault. A slide with several rows
    of one patient counts once; one of two patients is a fault and is left out, because its owner is unknown.

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
    rows: dict[str, list[Row]] = {}
    patients_with_bad_rows: set[str] = set()
    for row, (patient, name) in enumerate(zip(patients, names, strict=True), start=1):
        if patient is not None and name is not None and _is_file_name(name):
            rows.setdefault(slide_id_of(name), []).append((row, patient))
            continue
        faults.append(_bad_row(path, row, patient, name, (patient_column, slide_column)))
        patients_with_bad_rows |= {patient} if patient is not None else set()
    several = {slide: own for slide, own in rows.items() if len({patient for _, patient in own}) > 1}
    faults += [_several_rows(path, slide, own) for slide, own in several.items()]
    kept = {slide: own[0][1] for slide, own in sorted(rows.items()) if len({p for _, p in own}) == 1}
    patients_with_bad_rows |= {patient for slide, own in several.items() if slide not in kept for _, patient in own}
    table = pd.DataFrame({"slide_id": list(kept), "patient_id": list(kept.values())}, dtype="str")
    named = frozenset(slide_id_of(re.split(r"[/\\]", name)[-1]) for name in names if name is not None)
    return SlideTable(table, patient_column, len(frame), tuple(faults), named, frozenset(patients_with_bad_rows))


def _is_file_name(name: str) -> bool:
    # pathlib sees no suffix in a name such as ".h5"
    return not ("/" in name or "\\" in name or name.lower() in SLIDE_SUFFIXES)


def _bad_row(path: str, row: int, patient: str | None, name: str | None, columns_of: tuple[str, str]) -> Fault:
    problem: Problem = "missing value"
    if patient is None or name is None:
        reason = blank_cell(path, columns_of[0] if patient is None else columns_of[1], row)
    else:
        problem = "misshapen"
        reason = (
            f"{path}: '{name}' in data row {row} is not the name of a file: give the name alone, without its folder"
        )
    return Fault("slide", f"data row {row}" if name is None else slide_id_of(name), problem, path, reason)


def _several_rows(path: str, slide: str, rows: Sequence[Row]) -> Fault:
    owners = {patient: row for row, patient in reversed(rows)}
    whose = " and ".join(f"of patient '{patient}' (data row {row})" for patient, row in reversed(owners.items()))
    reason = f"{path}: slide '{slide}' is {whose}: a slide belongs to one patient, correct or remove the rows"
    return Fault("slide", slide, "duplicated", path, reason)
