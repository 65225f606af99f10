"""The usual names of the columns of patients and slides."""

from __future__ import annotations

from collections.abc import Iterable

# STAMP; CLAM and Patho-Bench; then cBioPortal's, the GDC's and TCGA's clinical tables
PATIENT_COLUMNS = (
    "PATIENT",
    "case_id",
    "patient_id",
    "patient",
    "submitter_id",
    "case_submitter_id",
    "bcr_patient_barcode",
)
SLIDE_COLUMNS = ("FILENAME", "slide_id", "slide", "filename", "file_name")


def is_known(name: str, known: Iterable[str]) -> bool:
    """Returns whether a name differs from a known one in case and punctuation at most."""
    return normalised(name) in {normalised(other) for other in known}


def normalised(name: str) -> str:
    """Returns the letters and digits of a name, in lower case."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
