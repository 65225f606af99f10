"""The usual names of the columns of patients, slides and sites."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

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
# names of patients' columns that may be something else, too; they count in a table of slides without any of the above
LESSER_PATIENT_COLUMNS = ("case", "case_no", "case_number", "subject", "subject_id", "participant", "participant_id")
SLIDE_COLUMNS = ("FILENAME", "slide_id", "slide", "filename", "file_name")
SITE_COLUMNS = ("site", "center", "centre", "hospital", "institution", "institute", "tissue_source_site")
_OTHERS = re.compile(r"[\W_]+")


def is_known(name: str, known: Iterable[str]) -> bool:
    """Returns whether a name differs from a known one in case and punctuation at most."""
    return normalised(name) in _all_normalised(tuple(known))


@cache
def _all_normalised(known: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(normalised, known))


def normalised(name: str) -> str:
    """Returns the letters and digits of a name, in lower case."""
    return _OTHERS.sub("", name.casefold())
