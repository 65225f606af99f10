"""Reads the clinical table: the label of every patient and, on request, its site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from momkd_ray.cohort import columns
from momkd_ray.cohort.table_files import blank_cell, data_rows, read_table, require_columns, rows_by_value, texts
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, Problem


@dataclass(frozen=True, eq=False)
class ClinicalTable:
    """The patients of the clinical table, and its faults.

    Attributes:
        patient_column: name of the patient column.
        labels: label of every patient without a fault as written, None if blank; sorted by patient.
        sites: of these patients, if they have the label of a class; empty if no site is asked for.
        rows: number of rows.
        faults: of kind patient.
        named: every patient that a row names, those with faults too.
        counts: number of occurrences of each label.
    """

    patient_column: str
    labels: dict[str, str | None]
    sites: dict[str, str]
    rows: int
    faults: tuple[Fault, ...]
    named: frozenset[str]
    counts: Counter[str]


def read_clinical(settings: CohortConfig, site: str | None) -> ClinicalTable:
    """Reads the clinical table; it may have one row per slide if all rows of a patient agree.

    Args:
        settings: the configuration's `cohort` section.
        site: `folds.site`, a column, or None.

    Raises:
        InputError: it cannot be read, lacks a column, or names no slides although no other table does.
    """
    path = settings.clinical
    frame = read_table(path)
    column = columns.patient_column(frame.columns, path, settings.patient_column)
    require_columns(frame.columns, path, settings.label, *([site] if site else []))
    row_per_slide = columns.has_row_per_slide(frame.columns, settings.slide_column)
    if settings.slides is None and settings.slide_column is None and not row_per_slide:
        raise InputError(
            f"cohort.slides is not given, so {path} must have a row a slide, but it has no column that names slides: "
            "give the table of slides, or set cohort.slide_column"
        )
    rows_of, blank = rows_by_value(frame[column])
    # in a table that is also the table of slides, a row without a patient is reported as a fault of the slide
    faults = [_blank_patient(path, column, row) for row in blank if settings.slides is not None]
    label_of_row = texts(frame[settings.label])
    site_of_row = texts(frame[site]) if site else []
    labels: dict[str, str | None] = {}
    sites: dict[str, str] = {}
    for patient, rows in sorted(rows_of.items()):
        if len(rows) > 1 and not row_per_slide:
            faults.append(_fault(path, patient, "duplicated", f"has more than one row ({data_rows(rows)}): keep one"))
            continue
        own = [label_of_row[row - 1] for row in rows]
        in_study = any(label in (settings.negative, settings.positive) for label in own)
        its_sites = [site_of_row[row - 1] for row in rows] if site and in_study else []
        differing = _differing(settings.label, rows, own) if in_study else ""
        differing = differing or _differing(site or "", rows, its_sites)
        if differing:
            faults.append(_fault(path, patient, "duplicated", differing))
        elif None in its_sites:
            what = f"has no '{site}' ({data_rows(rows)}): fill it in, or leave folds.site out"
            faults.append(_fault(path, patient, "missing value", what))
        else:
            labels[patient] = own[0]
            if its_sites:
                sites[patient] = str(its_sites[0])
    counts = Counter(label for label in label_of_row if label is not None)
    return ClinicalTable(column, labels, sites, len(frame), tuple(faults), frozenset(rows_of), counts)


def _fault(path: str, patient: str, problem: Problem, what: str) -> Fault:
    return Fault("patient", patient, problem, path, f"{path}: patient '{patient}' {what}")


def _blank_patient(path: str, column: str, row: int) -> Fault:
    return Fault("patient", f"data row {row}", "missing value", path, blank_cell(path, column, row))


def _differing(column: str, rows: Sequence[int], values: Sequence[str | None]) -> str:
    """Describes the rows of a patient that differ in a column; '' if they agree."""
    rows_of_value: dict[str | None, list[int]] = {}
    for row, value in zip(rows, values, strict=False):  # no values if the column is not asked for
        rows_of_value.setdefault(value, []).append(row)
    if len(rows_of_value) < 2:
        return ""
    parts = [f"{'blank' if value is None else repr(value)} in {data_rows(own)}" for value, own in rows_of_value.items()]
    return f"has several values of '{column}' ({', '.join(parts)}): give all its rows the same one"
