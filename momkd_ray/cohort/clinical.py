"""Reads the clinical table: the label of every patient and, on request, its site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from momkd_ray.cohort import columns
from momkd_ray.cohort.labels import Labelling, says_missing, sort_labels
from momkd_ray.cohort.slide_labels import (
    LabelRows,
    differing,
    label_rows,
    of_both_classes,
    patient_label,
    rows_of_neither,
)
from momkd_ray.cohort.spellings import column_of_persons, same_but, spelt_alike, spelt_otherwise
from momkd_ray.cohort.table_files import TableFile, blank_cell, data_rows, require_columns, rows_by_value, texts
from momkd_ray.cohort.understood import Understood
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
        y: label as written -> number of its class; of two, 1 is the positive one.
        numbers: label as written -> the number that it is; only of a regression.
        understood: what was recognised.
        left_out: patients who are left out although they have a label, each with the reason.
        label_table: the table that has the labels.
        slide_rows_out: data rows of slides in the table of slides that are left out for their own label, with reasons.
    """

    patient_column: str
    labels: dict[str, str | None]
    sites: dict[str, str]
    rows: int
    faults: tuple[Fault, ...]
    named: frozenset[str]
    y: Mapping[str, int]
    understood: tuple[Understood, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    label_table: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    slide_rows_out: Mapping[int, str] = field(default_factory=dict)


def read_clinical(
    settings: CohortConfig, site: str | None, file: TableFile, column: str, labels: LabelRows | None = None
) -> ClinicalTable:
    """Reads the clinical table; a patient may have several rows if all of them agree.

    A patient whose identifier another row spells otherwise is a fault: they may be one person.

    Args:
        settings: the configuration's `cohort` section.
        site: `folds.site`, a column, or None.
        file: the table, as `one_name_a_patient` returns it.
        column: its column of patients.
        labels: the rows that have the label; by default this table's.

    Raises:
        InputError: it lacks a column, names no slides although no other table does, or has no label of a class.
    """
    path, frame = file.path, file.frame()
    labels = labels or label_rows(settings, file, column)
    require_columns(frame.columns, path, *([site] if site else []), key="folds.site")
    row_per_slide = columns.has_row_per_slide(frame.columns, settings.slide_column)
    if settings.slides is None and settings.slide_column is None and not row_per_slide:
        raise InputError(
            f"cohort.slides is not given, so {path} must have a row a slide, but it has no column that names slides: "
            "give the table of slides, or set cohort.slide_column"
        )
    rows_of, blank = rows_by_value(frame[column])
    # in a table that is also the table of slides, a row without a patient is reported as a fault of the slide
    faults = [_blank_patient(path, column, row) for row in blank if settings.slides is not None]
    rows = _Rows(path, column, rows_of, site, texts(frame[site]) if site else [])
    try:
        labelling = sort_labels(settings, Counter(label for label in labels.labels if label is not None), labels.path)
    except InputError as error:
        recoded = next((entry.what for entry in file.understood if "Windows-1252" in entry.what), "")
        raise InputError(f"{error}; {recoded}: save it as UTF-8 if letters are wrong" if recoded else error) from error
    sorted_out = _sorted_out(settings, labels, labelling, rows)
    faults += sorted_out.faults
    understood = [*file.understood, *labels.understood, *labelling.understood]
    understood += of_both_classes(settings, labels, sorted_out.both, labelling.y)
    if not row_per_slide:
        understood += repeated_rows(path, rows_of)
    return ClinicalTable(
        patient_column=column,
        labels=sorted_out.labels,
        sites=sorted_out.sites,
        rows=len(frame),
        faults=tuple(faults),
        named=frozenset(rows_of),
        y=labelling.y,
        understood=tuple(understood),
        left_out=sorted_out.left_out,
        label_table=labels.path,
        numbers=labelling.numbers,
        slide_rows_out=rows_of_neither(settings, labels, labelling.y),
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of the clinical table: those of each patient, and the site of each."""

    path: str
    column: str
    rows_of: Mapping[str, Sequence[int]]
    site: str | None
    site_of_row: Sequence[str | None]


@dataclass(frozen=True)
class _Patients:
    """What was found about each patient; `both` are those with slides of both classes."""

    labels: dict[str, str | None] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    both: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def _sorted_out(settings: CohortConfig, labels: LabelRows, labelling: Labelling, table: _Rows) -> _Patients:
    """Finds the label and, of patients in the study, the site of every patient, or the fault of its rows."""
    found = _Patients()
    path, site, site_of_row = table.path, table.site or "", table.site_of_row
    otherwise = _spelt_otherwise(settings, labels, labelling, table)
    for patient, rows in sorted(table.rows_of.items()):
        own = patient_label(settings, labels, patient, labelling.y, labelling.numbers)
        its_sites = [site_of_row[row - 1] for row in rows] if site and own.label in labelling.y else []
        if word := _no_number(settings, labels, patient, labelling):
            found.faults.append(_fault(labels.path, patient, "not a number", word))
        elif own.fault:
            found.faults.append(_fault(labels.path, patient, "duplicated", own.fault))
        elif differ := otherwise.get(patient) or differing(site, rows, its_sites):
            found.faults.append(_fault(path, patient, "duplicated", differ))
        elif None in its_sites:
            what = f"has no '{site}' ({data_rows(rows)}): fill it in, or leave folds.site out"
            found.faults.append(_fault(path, patient, "missing value", what))
        else:
            found.labels[patient] = own.label
            if own.both:
                found.both.append(patient)
            if own.left_out:
                found.left_out[patient] = own.left_out
            if its_sites:
                found.sites[patient] = str(its_sites[0])
    return found


def _spelt_otherwise(settings: CohortConfig, labels: LabelRows, labelling: Labelling, table: _Rows) -> dict[str, str]:
    """Describes the patients whom another row may spell otherwise, if one of these is in the study."""
    persons = column_of_persons(settings.slide_column, table.site, table.column)
    studied = {
        patient
        for patient in table.rows_of
        if any(labels.labels[row - 1] in labelling.y for row in labels.rows_of.get(patient, ()))
    }
    if persons == table.column:
        return spelt_otherwise(table.rows_of, studied)
    if persons is None:
        return {}
    rows_of: dict[str, list[int]] = {}
    for row in sorted(row for patient in studied for row in table.rows_of[patient]):
        if (name := table.site_of_row[row - 1]) is not None:
            rows_of.setdefault(name, []).append(row)
    alike = spelt_alike(rows_of)
    return {
        patient: f"has the '{persons}' '{name}', {same_but(name, alike[name], rows_of)}"
        for patient in studied
        if (name := table.site_of_row[table.rows_of[patient][0] - 1]) in alike
    }


def _no_number(settings: CohortConfig, labels: LabelRows, patient: str, labelling: Labelling) -> str:
    """Describes a label of a patient that is neither a number, of a regression, nor says that it is missing."""
    if settings.task != "regression":
        return ""
    for row in labels.rows_of.get(patient, ()):
        label = labels.labels[row - 1]
        if label is not None and label not in labelling.numbers and not says_missing(label):
            return (
                f"has the '{settings.label}' '{label}' in {data_rows([row])}, which is no number: write a number, or "
                "leave the cell blank"
            )
    return ""


def repeated_rows(path: str, rows_of: Mapping[str, Sequence[int]]) -> list[Understood]:
    """Counts the patients whose rows agree, and so count once."""
    several = [patient for patient, rows in rows_of.items() if len(rows) > 1]
    if not several:
        return []
    have = "1 patient has" if len(several) == 1 else f"{len(several):,} patients have"
    what = f"{have} several rows, such as '{several[0]}' in {data_rows(rows_of[several[0]])}, which count once"
    return [Understood(path, "identifiers", what, len(several))]


def _fault(path: str, patient: str, problem: Problem, what: str) -> Fault:
    return Fault("patient", patient, problem, path, f"{path}: patient '{patient}' {what}")


def _blank_patient(path: str, column: str, row: int) -> Fault:
    return Fault("patient", f"data row {row}", "missing value", path, blank_cell(path, column, row))
