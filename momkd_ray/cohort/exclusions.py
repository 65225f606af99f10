"""Why patients, slides and omics are left out of a cohort, and the sentences that count them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from momkd_ray.cohort.clinical import ClinicalTable
from momkd_ray.cohort.identifiers import match_identifiers
from momkd_ray.cohort.omics import OmicsTable
from momkd_ray.cohort.slides import SlideTable
from momkd_ray.input_faults import Kind

EXAMPLES = 3  # identifiers shown for each reason
EXCLUDED = ("kind", "id", "reason", "problem")
ALL_REJECTED = "all its slides are rejected"
PATIENT_OUT = "its patient is left out"
UNKNOWN_IN_SPLIT = "named by the split, not in the cohort"
UNLISTED = "in no list of the split"
NEVER_TESTED = "in no test set of the split"
NOT_TRAINED = "no omics, which omics.missing: drop keeps from training; still validated and tested"
_NOT_REMOVED = (NEVER_TESTED, NOT_TRAINED)  # reasons for which an entry stays in the cohort

Row = tuple[Kind, str, str, str]  # the columns of EXCLUDED
LeftOut = Sequence[Row]


def slides_of(listing: SlideTable, patients: pd.DataFrame, clinical: ClinicalTable) -> tuple[pd.DataFrame, LeftOut]:
    """Divides the slides into those of the cohort's patients and those left out."""
    inside = listing.table["patient_id"].isin(patients.index)
    outside = listing.table[~inside]
    left_out: list[Row] = [
        ("slide", slide, *_reason_outside(patient, clinical))
        for slide, patient in zip(outside["slide_id"], outside["patient_id"], strict=True)
    ]
    return listing.table[inside].reset_index(drop=True), left_out


def omics_out(omics: OmicsTable | None, clinical: ClinicalTable) -> LeftOut:
    """Lists the omics that are left out; a sample's patient is sought among all rows of the clinical table."""
    if omics is None:
        return []
    patient_of = match_identifiers(omics.of_others, sorted(clinical.named)).own
    others: list[Row] = [
        ("omics", sample, *_reason_outside(patient_of.get(sample, sample), clinical)) for sample in omics.of_others
    ]
    blank: list[Row] = [
        ("omics", patient, "the row is entirely blank; its patient is kept, without omics", "")
        for patient in omics.blank
    ]
    other_files: list[Row] = [
        ("omics", name, "it is neither a .npy vector nor genes.txt", "unmatched") for name in omics.other_files
    ]
    return [*other_files, *others, *blank]


def _reason_outside(patient: str, clinical: ClinicalTable) -> tuple[str, str]:
    """Returns reason and problem of a slide or omics entry whose patient is not in the cohort."""
    if patient in clinical.labels:
        return PATIENT_OUT, ""
    if patient in clinical.named:
        return "its patient is rejected", ""
    return "its patient is not in the clinical table", "unmatched"


def exclusion_sentences(left_out: Iterable[tuple[Any, ...]]) -> list[str]:
    """Describes excluded entries, one sentence per kind and reason: their number, and examples."""
    ids_by_reason: dict[tuple[str, str], list[str]] = {}
    for kind, name, reason, _ in left_out:
        ids_by_reason.setdefault((kind, reason), []).append(name)
    return [
        f"{entries_text(kind, len(ids))}{_what_became(reason)} ({reason}): {examples_text(ids)}."
        for (kind, reason), ids in sorted(ids_by_reason.items())
    ]


def _what_became(reason: str) -> str:
    return "" if reason in _NOT_REMOVED else " left out"


def entries_text(kind: str, number: int) -> str:
    """Returns a number with the noun of its kind: `1 omics entry`, `2 slides`."""
    return counted(number, "omics entr", "y", "ies") if kind == "omics" else counted(number, kind)


def examples_text(ids: Sequence[str]) -> str:
    """Returns the first identifiers and the number of the others."""
    more = f" and {len(ids) - EXAMPLES:,} more" if len(ids) > EXAMPLES else ""
    return f"{', '.join(ids[:EXAMPLES])}{more}"


def counted(number: int, noun: str, one: str = "", many: str = "s") -> str:
    """Returns a number with its noun, of which only the ending differs in the plural."""
    return f"{number:,} {noun}{one if number == 1 else many}"
