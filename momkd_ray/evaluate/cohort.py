"""The labelled patients of an external cohort; everybody who is left out is kept with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from momkd_ray.cohort.clinical import read_clinical
from momkd_ray.cohort.columns import has_row_per_slide
from momkd_ray.cohort.joining import clinical_column, join_slides
from momkd_ray.cohort.option_names import told_as_options
from momkd_ray.cohort.slide_labels import label_rows, no_class, without_other_labels
from momkd_ray.cohort.slides import read_slides
from momkd_ray.cohort.spellings import one_name_a_patient
from momkd_ray.cohort.table_files import read_table_file, require_columns, rows_by_value, texts
from momkd_ray.cohort.understood import Understood, in_order
from momkd_ray.config.data_sections import PatientColumns
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault

EXCLUDED = ("kind", "id", "reason")
MISSING = "missing"  # the level of patients whose cell of a subgroup's column is blank
OPTIONS = {  # of this verb, by the configuration's key
    "cohort.columns.clinical": "--patient-column",
    "cohort.columns.slides": "--slides-patient-column",
    "cohort.label": "--label",
    "cohort.patient_column": "--patient-column",
    "cohort.slide_column": "--slide-column",
    "cohort.slide_labels": "--slide-labels",
    "cohort.slides": "--slides",
    "cohort.classes": "the run's cohort.classes",
    "cohort.positive": "--positive",
    "cohort.negative": "--negative",
    "features.dir": "--features",
}


@dataclass(frozen=True)
class Labels:
    """Where the labels of an external cohort are, and what its classes are called there.

    Attributes:
        clinical: the table.
        label: its column.
        classes: the labels, cut-offs or `rest` of each class there; of two, of the negative class first.
        names: of more than two classes; None with two.
        slides: the table of slides; None where the clinical table has a row per slide, or each file is a patient.
        patient_column, slides_patient_column, slide_column: None to find them by name or values.
        subgroups: columns to compare patients by.
        slide_labels: as `cohort.slide_labels`.
        number: whether the label is a number, and the classes are its ranges.
    """

    clinical: str
    label: str
    classes: tuple[tuple[str, ...], ...]
    slides: str | None = None
    patient_column: str | None = None
    slides_patient_column: str | None = None
    slide_column: str | None = None
    subgroups: tuple[str, ...] = ()
    slide_labels: Literal["agree", "any_positive", "leave_out"] = "agree"
    names: tuple[str, ...] | None = None
    number: bool = False


@dataclass(frozen=True)
class FlowStep:
    """How many patients reached a step, and how many did not for which reason."""

    step: str
    patients: int
    left_out: dict[str, int]


@dataclass(frozen=True, eq=False)
class ExternalCohort:
    """The patients with the label of a class.

    Attributes:
        patients: index `patient_id` (sorted), `y` (number of the class; of two, 1 is the positive one), `number` where
            the label is one, and a column of text for each subgroup.
        excluded: everybody and everything left out so far, columns `EXCLUDED`.
        flow: the steps from all that the clinical table names to those who are left.
        patient_column: name of the patient column.
        faults: bad rows of the tables.
        slides: slide -> patient by a table; None where no table names the slides.
        understood: what was recognised about the tables.
        slide_names: slide -> its name or path as the table writes it.
    """

    patients: pd.DataFrame
    excluded: pd.DataFrame
    flow: tuple[FlowStep, ...]
    patient_column: str
    faults: tuple[Fault, ...]
    slides: dict[str, str] | None
    understood: tuple[Understood, ...]
    slide_names: Mapping[str, str] = field(default_factory=dict)

    def without(self, reasons: dict[str, str], step: str) -> ExternalCohort:
        """Leaves patients out for a reason each, and names the step after which the others remain."""
        rows = [("patient", patient, reason) for patient, reason in sorted(reasons.items())]
        patients = self.patients[~self.patients.index.isin(list(reasons))]
        return replace(
            self,
            patients=patients,
            excluded=pd.concat([self.excluded, excluded_table(rows)], ignore_index=True),
            flow=(*self.flow, FlowStep(step, len(patients), dict(sorted(Counter(reasons.values()).items())))),
        )

    def noting(self, rows: Sequence[tuple[str, str, str]]) -> ExternalCohort:
        """Adds rows to `excluded` that are not patients of this cohort."""
        return replace(self, excluded=pd.concat([self.excluded, excluded_table(rows)], ignore_index=True))


def excluded_table(rows: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """Returns rows of `kind, id, reason` as a table of text."""
    return pd.DataFrame(list(rows), columns=list(EXCLUDED), dtype="str")


def read_cohort(labels: Labels) -> ExternalCohort:
    """Reads the clinical table.

    Raises:
        InputError: it cannot be read, lacks a column, or a class has fewer than two patients.
    """
    with told_as_options(OPTIONS):
        return _read_cohort(labels)


def _classes(labels: Labels) -> dict[str, Any]:
    if labels.names is None:
        return {"positive": labels.classes[1], "negative": labels.classes[0]}
    return {"classes": dict(zip(labels.names, labels.classes, strict=True))}


def _settings(labels: Labels, row_per_slide: bool) -> CohortConfig:
    return CohortConfig(
        clinical=labels.clinical,
        slides=labels.slides or (None if row_per_slide else labels.clinical),
        columns=PatientColumns(clinical=labels.patient_column, slides=labels.slides_patient_column),
        slide_column=labels.slide_column if labels.slides or row_per_slide else None,
        label=labels.label,
        slide_labels=labels.slide_labels,
        task="regression" if labels.number else "classification",
        **_classes(labels),
    )


def _read_cohort(labels: Labels) -> ExternalCohort:
    file = read_table_file(labels.clinical)
    frame = file.frame()
    require_columns(frame.columns, labels.clinical, *labels.subgroups, key="--subgroups")
    row_per_slide = has_row_per_slide(frame.columns, labels.slide_column)
    settings = _settings(labels, row_per_slide)
    slides_file = read_table_file(labels.slides) if labels.slides else file
    column = clinical_column(settings, file, slides_file)
    named = one_name_a_patient(settings.slide_column, None, file, column)
    slides_file = named if slides_file is file else slides_file
    joined = join_slides(settings, slides_file, named, column) if labels.slides or row_per_slide else None
    rows = label_rows(settings, named, column, None if joined is None else (slides_file, joined))
    clinical = read_clinical(settings, None, named, column, rows)
    slides, faults, understood = None, list(clinical.faults), list(clinical.understood)
    other_slides: list[tuple[str, str, str]] = []
    names: Mapping[str, str] = {}
    if joined is not None:
        listing = read_slides(slides_file.path, joined.column, settings.slide_column, joined.frame)
        names = listing.named
        listing, out = without_other_labels(listing, clinical.slide_rows_out)
        other_slides = [(kind, slide, reason) for kind, slide, reason, _ in out]
        slides = dict(zip(listing.table["slide_id"], listing.table["patient_id"], strict=True))
        faults, understood = [*faults, *listing.faults], [*understood, *joined.understood]
    kept: dict[str, int] = {}
    left_out = [("patient", fault.id, fault.reason) for fault in clinical.faults]
    for patient, label in clinical.labels.items():
        if patient in clinical.left_out:
            left_out.append(("patient", patient, clinical.left_out[patient]))
        elif label is None:
            left_out.append(("patient", patient, f"'{labels.label}' is blank"))
        elif label in clinical.y:
            kept[patient] = clinical.y[label]
        else:
            neither = f"'{labels.label}' is '{label}', {no_class(settings, negative_first=True)}"
            left_out.append(("patient", patient, neither))
    patients = pd.DataFrame({"y": kept}, dtype=int).rename_axis("patient_id").sort_index()
    if labels.number:
        patients["number"] = [clinical.numbers[clinical.labels[name] or ""] for name in patients.index]
    rows_of, _ = rows_by_value(named.frame()[column])
    for name in labels.subgroups:
        patients[name] = _values(frame, labels.clinical, name, rows_of, patients.index.tolist())
    blank = sum(fault.id.startswith("data row ") for fault in clinical.faults)
    problems = [f"a bad row ({fault.problem})" for fault in clinical.faults]
    reasons = Counter([*problems, *(reason for _, _, reason in left_out[len(problems) :])])
    flow = (
        FlowStep(f"named by {labels.clinical}", len(clinical.named) + blank, {}),
        FlowStep("with a number" if labels.number else "with the label of a class", len(patients), dict(reasons)),
    )
    excluded = excluded_table([*left_out, *other_slides])
    return ExternalCohort(patients, excluded, flow, column, tuple(faults), slides, in_order(understood), names)


def _values(
    frame: pd.DataFrame, path: str, column: str, rows_of: dict[str, list[int]], patients: Sequence[str]
) -> list[str]:
    """Returns each patient's value of a column as text, `MISSING` where it is blank."""
    cells, found = texts(frame[column]), []
    for patient in patients:
        own = {cells[row - 1] for row in rows_of[patient]} - {None}
        if len(own) > 1:
            raise InputError(
                f"{path}: patient '{patient}' has several values of '{column}' ({', '.join(sorted(map(repr, own)))}): "
                "give all its rows the same one"
            )
        found.append(next(iter(own)) or MISSING if own else MISSING)
    return found
