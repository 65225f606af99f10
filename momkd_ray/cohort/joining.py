"""Joins the clinical table and the table of slides by patient, whose identifiers become the clinical table's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from momkd_ray.cohort import columns
from momkd_ray.cohort.columns import Values
from momkd_ray.cohort.identifiers import few_matched, join_patients, nearest
from momkd_ray.cohort.table_files import TableFile, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError

CLINICAL_KEY, SLIDES_KEY = "cohort.columns.clinical", "cohort.columns.slides"


@dataclass(frozen=True, eq=False)
class JoinedSlides:
    """The rows of the table of slides, with patients as the clinical table spells them.

    Attributes:
        frame: the table; a patient that is not in the clinical table keeps its identifier.
        column: the column of patients.
        understood: how identifiers were matched.
    """

    frame: pd.DataFrame
    column: str
    understood: tuple[Understood, ...]


def clinical_column(settings: CohortConfig, clinical: TableFile, slides: TableFile) -> str:
    """Returns the clinical table's column of patients; where its name does not decide, by the table of slides.

    Args:
        settings: the configuration's `cohort` section.
        clinical: the clinical table.
        slides: the table of slides, which may be the same.

    Raises:
        InputError: none or several columns qualify.
    """
    names, chosen = clinical.table.column_names, settings.patient_column_of("clinical")
    values = values_of(clinical)
    candidates = columns.patient_candidates(names, clinical.path, chosen, values, CLINICAL_KEY)
    if chosen is not None or (slides is clinical and len(candidates) == 1):
        return candidates[0]
    if slides is not clinical:
        own = columns.patient_candidates(
            slides.table.column_names, slides.path, settings.patient_column_of("slides"), values_of(slides), SLIDES_KEY
        )
        patients = [cell for name in own for cell in values_of(slides)(name) if cell is not None]
        if patients:
            return columns.patient_column_by_values(names, clinical.path, None, values, patients, CLINICAL_KEY)
        if len(candidates) == 1:
            return candidates[0]
    return columns.patient_column(names, clinical.path, None, CLINICAL_KEY)


def join_slides(settings: CohortConfig, slides: TableFile, clinical: TableFile, column: str) -> JoinedSlides:
    """Finds the column of patients in the table of slides, and writes them as the clinical table does.

    Args:
        settings: the configuration's `cohort` section.
        slides: the table of slides.
        clinical: the clinical table, which may be the same.
        column: its column of patients.

    Raises:
        InputError: none or several columns qualify, or identifiers match by luck only.
    """
    if slides is clinical:
        return JoinedSlides(slides.frame(), column, ())
    patients = [cell for cell in values_of(clinical)(column) if cell is not None]
    values = values_of(slides)
    own = columns.patient_column_by_values(
        slides.table.column_names,
        slides.path,
        settings.patient_column_of("slides"),
        values,
        frozenset(patients),
        SLIDES_KEY,
    )
    cells = values(own)
    matching = join_patients(slides.path, [cell for cell in cells if cell is not None], patients, clinical.path)
    if not matching.own and matching.unmatched and patients:
        near = nearest(matching.unmatched, patients) or (matching.unmatched[0], patients[0])
        raise InputError(
            f"{slides.path}: none of its {len(matching.unmatched):,} patients ('{own}') is a patient of "
            f"{clinical.path} ('{column}'), such as '{near[0]}' and '{near[1]}': write them alike, or name "
            f"the columns that match in {CLINICAL_KEY} and {SLIDES_KEY}"
        )
    frame = slides.frame()
    frame[own] = pd.Series([None if cell is None else matching.own.get(cell, cell) for cell in cells], dtype=object)
    understood = [
        *slides.understood,
        *unusual_column(slides.path, own),
        *matching.understood(slides.path),
        *few_matched(matching, slides.path, clinical.path, patients),
    ]
    return JoinedSlides(frame, own, tuple(understood))


def unusual_column(path: str, name: str) -> list[Understood]:
    """Says which column is read as the patients', if its name does not say so."""
    if columns.is_named_after_patients(name):
        return []
    which = "the column without a name" if columns.is_unnamed(name) else f"the column '{name}'"
    return [Understood(path, "columns", f"{which} is read as the patients'")]


def values_of(file: TableFile) -> Values:
    """Returns a function that gives the cells of a column of a table as text."""
    found: dict[str, Sequence[str | None]] = {}

    def values(name: str) -> Sequence[str | None]:
        if name not in found:
            found[name] = texts(file.table.column(name).to_pandas())
        return found[name]

    return values
