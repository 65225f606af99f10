"""A table of slides from the names of feature files that are barcodes of TCGA or TARGET, which name the patient."""

from __future__ import annotations

from collections.abc import Mapping

from momkd_ray.cohort.identifiers import barcode_patient, is_normal, match_identifiers
from momkd_ray.init_config.draft import Draft
from momkd_ray.init_config.folder import ENOUGH, Listing, SlideColumns, Table, nearest_columns

PATIENT, SLIDE = "PATIENT", "FILENAME"


def draft_slides(draft: Draft, listing: Listing, path: str) -> SlideColumns | None:
    """Drafts a table of slides from barcodes, to be written with the configuration.

    Args:
        draft: receives the table and what is to be checked about it.
        listing: the files of the folder.
        path: the table to write.

    Returns:
        The table's columns; None if no table names at least half of the patients of the feature files, or one seems to
        name the slides, in another spelling.
    """
    owners = {slide: patient for slide in listing.features.slides if (patient := barcode_patient(slide))}
    best = max((_named(table, column, owners) for table in listing.tables for column in table.texts), default=0.0)
    otherwise_spelt = any(barcode_patient(near) is None for _, _, (_, near) in nearest_columns(listing))
    if not owners or best < ENOUGH or otherwise_spelt:
        return None
    of_tumour = {slide: patient for slide, patient in owners.items() if not is_normal(slide)}
    rows = of_tumour or owners
    texts: dict[str, tuple[str | None, ...]] = {PATIENT: tuple(rows.values()), SLIDE: tuple(rows)}
    draft.files[path] = "".join(f"{own},{slide}\n" for slide, own in ((SLIDE, PATIENT), *rows.items()))
    slide, patient = next(iter(rows.items()))
    draft.note(
        "cohort",
        f"CHECK: no table names the feature files; {path} is written from their barcodes, such as patient {patient} of "
        f"{slide}",
    )
    if others := [slide for slide in listing.features.slides if slide not in rows]:
        files = "1 feature file is" if len(others) == 1 else f"{len(others)} feature files are"
        draft.note("cohort", f"CHECK: {files} not in it, such as {others[0]}: of normal tissue, or without a barcode")
    table = Table(path, (PATIENT, SLIDE), texts, 0, len(rows))
    return SlideColumns(table, SLIDE, PATIENT, match_identifiers(rows, listing.features.slides, barcodes=False))


def _named(table: Table, column: str, owners: Mapping[str, str]) -> float:
    """Returns the share of the slides whose patients a column of a table names."""
    patients = set(match_identifiers(table.values(column), set(owners.values())).own.values())
    return sum(patient in patients for patient in owners.values()) / max(1, len(owners))
