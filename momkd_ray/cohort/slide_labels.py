"""Derives one label per patient from labels that are given per slide, as `cohort.slide_labels` says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from momkd_ray.cohort.joining import JoinedSlides
from momkd_ray.cohort.slides import SlideTable
from momkd_ray.cohort.table_files import TableFile, data_rows, require_columns, rows_by_value, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import CohortConfig
from momkd_ray.input_faults import Kind

BOTH_CLASSES = "its slides are of both classes (cohort.slide_labels: leave_out)"
SEVERAL_CLASSES = "its slides are of several classes (cohort.slide_labels: leave_out)"
SEVERAL_NUMBERS = "its slides have several numbers (cohort.slide_labels: leave_out)"


@dataclass(frozen=True, eq=False)
class LabelRows:
    """The rows of the table that has the label.

    Attributes:
        path: of the table.
        of_slides: whether it is the table of slides, so that a row is a slide's.
        rows_of: data rows (from 1) of each patient.
        labels: of each row as written, None if blank.
        understood: where they were found, if not in the clinical table.
    """

    path: str
    of_slides: bool
    rows_of: Mapping[str, Sequence[int]]
    labels: Sequence[str | None]
    understood: tuple[Understood, ...] = ()


@dataclass(frozen=True)
class PatientLabel:
    """The label that a patient has by its rows, or why it has none.

    Attributes:
        label: as written; None if blank.
        fault: how the rows differ, with the cure, if they may not; '' otherwise.
        left_out: the reason for which the patient is left out; '' if it is not.
        both: whether its slides are of both classes.
    """

    label: str | None
    fault: str = ""
    left_out: str = ""
    both: bool = False


def label_rows(
    settings: CohortConfig,
    clinical: TableFile,
    column: str,
    slides: tuple[TableFile, JoinedSlides] | None = None,
) -> LabelRows:
    """Finds the label in the clinical table or, if that has no such column, in the table of slides.

    Args:
        settings: the configuration's `cohort` section.
        clinical: the clinical table.
        column: its column of patients.
        slides: the table of slides, as read and as joined; None if there is none.

    Raises:
        InputError: neither table has the column.
    """
    file, frame, patients = clinical, clinical.frame(), column
    of_slides = settings.slides in (None, settings.clinical)
    understood: tuple[Understood, ...] = ()
    if settings.label not in frame.columns and slides is not None and settings.label in slides[1].frame.columns:
        file, of_slides = slides[0], True
        frame, patients = slides[1].frame, slides[1].column
        what = f"the label '{settings.label}' is read from this table, a slide's in each row"
        understood = (Understood(file.path, "labels", what, len(frame)),)
    require_columns(frame.columns, file.path, settings.label, key="cohort.label")
    return LabelRows(file.path, of_slides, rows_by_value(frame[patients])[0], texts(frame[settings.label]), understood)


def patient_label(
    settings: CohortConfig,
    rows: LabelRows,
    patient: str,
    y: Mapping[str, int],
    numbers: Mapping[str, float] | None = None,
) -> PatientLabel:
    """Returns the label of a patient by its rows.

    Args:
        settings: the configuration's `cohort` section.
        rows: where the labels are.
        patient: as the clinical table writes it.
        y: label as written -> number of its class; of two, 1 is the positive one.
        numbers: label as written -> the number that it is, of a regression: then rows agree if their numbers do.
    """
    own_rows = rows.rows_of.get(patient, ())
    own = [rows.labels[row - 1] for row in own_rows]
    meaning: Mapping[str, float] = numbers or y
    if not any(label in y for label in own):
        return PatientLabel(own[0] if own else None)
    if not rows.of_slides or settings.slide_labels == "agree":
        return PatientLabel(own[0], _differing_labels(settings, own_rows, own, meaning, of_slides=rows.of_slides))
    of_class = [label for label in own if label in y]
    if len({meaning[str(label)] for label in of_class}) == 1:
        return PatientLabel(of_class[0])
    if settings.slide_labels == "leave_out":
        reason = BOTH_CLASSES if len(settings.class_names) == 2 else SEVERAL_NUMBERS if numbers else SEVERAL_CLASSES
        return PatientLabel(of_class[0], left_out=reason, both=True)
    return PatientLabel(next(label for label in of_class if y[str(label)] == 1), both=True)


def rows_of_neither(settings: CohortConfig, rows: LabelRows, y: Mapping[str, int]) -> dict[int, str]:
    """Returns the rows of slides that are left out for their own label, each with the reason."""
    if not rows.of_slides or settings.slide_labels == "agree":
        return {}
    return {
        row: "the slide's label is blank" if label is None else f"the slide's label is '{label}', {no_class(settings)}"
        for row, label in enumerate(rows.labels, start=1)
        if label not in y
    }


def without_other_labels(
    listing: SlideTable, rows_out: Mapping[int, str]
) -> tuple[SlideTable, list[tuple[Kind, str, str, str]]]:
    """Leaves out the slides of which every row is of neither class; returns them as rows of `Cohort.excluded`.

    Args:
        listing: the slides.
        rows_out: of `rows_of_neither`.
    """
    out = {
        slide: rows_out[rows[0]]
        for slide, rows in (listing.rows_of.items() if rows_out else ())
        if all(row in rows_out for row in rows)
    }
    remaining = listing.table[~listing.table["slide_id"].isin(list(out))].reset_index(drop=True)
    return replace(listing, table=remaining), [("slide", slide, reason, "") for slide, reason in out.items()]


def of_both_classes(
    settings: CohortConfig, rows: LabelRows, patients: Sequence[str], y: Mapping[str, int]
) -> list[Understood]:
    """Says how many patients have slides of both classes, and what is made of them."""
    if not patients:
        return []
    have = "1 patient has" if len(patients) == 1 else f"{len(patients):,} patients have"
    both = "both classes" if len(settings.class_names) == 2 else "several classes"
    both = "several numbers" if settings.task == "regression" else both
    what = f"{have} slides of {both}, such as '{patients[0]}' ({data_rows(rows.rows_of[patients[0]])})"
    if settings.slide_labels == "leave_out":
        what += ", and are left out (cohort.slide_labels: leave_out)"
    else:
        negative = sum(y.get(rows.labels[row - 1] or "") == 0 for own in patients for row in rows.rows_of[own])
        slides = "1 slide" if negative == 1 else f"{negative:,} slides"
        what += f", and are of '{settings.class_names[1]}' (cohort.slide_labels: any_positive)"
        if settings.bag == "slide":
            what += f"; their {slides} of the other class train as positive bags (cohort.bag: patient makes one bag)"
    return [Understood(rows.path, "labels", what, len(patients))]


def _differing_labels(
    settings: CohortConfig,
    rows: Sequence[int],
    labels: Sequence[str | None],
    meaning: Mapping[str, Hashable],
    *,
    of_slides: bool,
) -> str:
    """Describes the rows of a patient whose labels differ; '' if they agree. Those of slides have another cure."""
    cure = "give all its rows the same one"
    if of_slides:
        positive = "any_positive (a positive slide makes its patient positive), or to "
        cure = (
            f"if they are its slides', set cohort.slide_labels to {positive if len(settings.class_names) == 2 else ''}"
            f"leave_out (such patients are left out); or else {cure}"
        )
    return differing(settings.label, rows, labels, meaning, cure)


def differing(
    column: str,
    rows: Sequence[int],
    values: Sequence[str | None],
    meaning: Mapping[str, Hashable] | None = None,
    cure: str = "give all its rows the same one",
) -> str:
    """Describes the rows of a patient that differ in a column, or in what its values mean; '' if they agree.

    Args:
        column: its name.
        rows: data rows of the patient.
        values: of these rows; none if the column is not asked for.
        meaning: values that mean the same have the same meaning.
        cure: how to mend it.
    """
    rows_of_value: dict[Hashable, list[int]] = {}
    spelt: dict[Hashable, str | None] = {}
    for row, value in zip(rows, values, strict=False):
        means = ("of class", meaning[value]) if meaning and value is not None and value in meaning else value
        rows_of_value.setdefault(means, []).append(row)
        spelt.setdefault(means, value)
    if len(rows_of_value) < 2:
        return ""
    parts = [
        f"{'blank' if spelt[means] is None else repr(spelt[means])} in {data_rows(own)}"
        for means, own in rows_of_value.items()
    ]
    return f"has several values of '{column}' ({', '.join(parts)}): {cure}"


def no_class(settings: CohortConfig, *, negative_first: bool = False) -> str:
    """Says that a label is of none of the classes or, of a regression, no number."""
    return (
        "no number" if settings.task == "regression" else none_of(settings.class_names, negative_first=negative_first)
    )


def none_of(classes: Sequence[str], *, negative_first: bool = False) -> str:
    """Says that a label is of none of the classes: `neither 'positive' nor 'negative'`."""
    if len(classes) == 2:
        first, second = classes if negative_first else reversed(classes)
        return f"neither '{first}' nor '{second}'"
    return f"none of {', '.join(map(repr, classes[:-1]))} and {classes[-1]!r}"
