"""Finds the rows of one person within a table of patients, whose identifiers may be spelt in several ways.

A person under two identifiers would be two patients, could be trained and tested on in one fold, and had two
predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from momkd_ray.cohort.columns import is_named_after_patients
from momkd_ray.cohort.identifiers import barcode_patient, person
from momkd_ray.cohort.known_columns import SLIDE_COLUMNS, is_known
from momkd_ray.cohort.table_files import TableFile, data_rows, texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.load import Config

_SHOWN = 2  # other spellings in a sentence


def column_of_persons(slide_column: str | None, site: str | None, column: str) -> str | None:
    """Returns the column of a table of patients in which a person must have one identifier.

    That is the column of patients, unless slides or samples are predicted for themselves: then it is `folds.site`, if
    that names the patients.

    Args:
        slide_column: `cohort.slide_column`, or None.
        site: `folds.site`, a column, or None.
        column: the column that is read as the patients'.
    """
    if site is not None and site != column and is_named_after_patients(site):
        return site
    return None if column == slide_column or is_known(column, SLIDE_COLUMNS) else column


def one_name_a_patient(slide_column: str | None, site: str | None, file: TableFile, column: str) -> TableFile:
    """Replaces several barcodes of a patient of TCGA or TARGET by the part that names the patient, and tells it.

    A patient with one barcode only keeps it as written.

    Args:
        slide_column: `cohort.slide_column`, or None.
        site: `folds.site`, a column, or None.
        file: the table of patients: the clinical table or, without one, that of slides.
        column: its column of patients.
    """
    persons = column_of_persons(slide_column, site, column)
    if persons not in file.table.column_names:
        return file
    cells = texts(file.table.column(persons).to_pandas())
    several = _several_barcodes(cells)
    if not several:
        return file
    names = {name: patient for patient, own in several.items() for name in own}
    patient, own = next(iter(several.items()))
    patients = "1 patient" if len(several) == 1 else f"{len(several):,} patients"
    what = (
        f"{len(names):,} identifiers are read as {patients}, by the part of their barcodes that names the patient, "
        f"such as '{own[0]}' and '{own[1]}' as '{patient}'"
    )
    written = pa.array([names.get(cell, cell) if cell is not None else None for cell in cells], pa.string())
    table = file.table.set_column(file.table.column_names.index(persons), persons, written)
    understood = (*file.understood, Understood(file.path, "identifiers", what, len(names)))
    return replace(file, table=table, understood=understood)


def slides_as_patients(config: Config, file: TableFile, column: str) -> list[Understood]:
    """Warns of slides that are read as patients, if their barcodes are of one patient and `folds.site` is not given.

    Args:
        config: the resolved configuration.
        file: the clinical table.
        column: its column of patients.
    """
    if config.folds.site is not None or column_of_persons(config.cohort.slide_column, None, column) is not None:
        return []
    several = _several_barcodes(texts(file.table.column(column).to_pandas()))
    if not several:
        return []
    have = "1 patient has" if len(several) == 1 else f"{len(several):,} patients have"
    first, second = next(iter(several.values()))[:2]
    cure = "set folds.site to the column of patients, so that none is trained and tested on"
    if config.folds.file is not None:
        cure = f"none must be trained and tested on in one fold of {config.folds.file}"
    what = f"{have} several names in '{column}', each read as a patient, such as '{first}' and '{second}': {cure}"
    return [Understood(file.path, "identifiers", what, len(several), warning=True)]


def spelt_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the identifiers that differ from another as one person's may, each with all of that person's."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(person(name), []).append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def spelt_otherwise(rows_of: Mapping[str, Sequence[int]], studied: Collection[str]) -> dict[str, str]:
    """Describes the patients whom another row may spell otherwise, with their rows and a cure.

    Args:
        rows_of: data rows of each patient of a table.
        studied: the patients that matter: others are described only if they may be one of these.
    """
    return {
        patient: f"({data_rows(rows_of[patient])}) is {same_but(patient, group, rows_of)}"
        for patient, group in spelt_alike(rows_of).items()
        if any(name in studied for name in group)
    }


def same_but(name: str, group: Sequence[str], rows_of: Mapping[str, Sequence[int]]) -> str:
    """Says how an identifier differs from the others that one person may have, and what to do about it.

    Args:
        name: the identifier.
        group: all identifiers that this person may have.
        rows_of: data rows of each.
    """
    others = [other for other in group if other != name]
    shown = " and ".join(f"'{other}' ({data_rows(rows_of[other])})" for other in others[:_SHOWN])
    shown += f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    if patient := barcode_patient(name, longer=True):
        return f"by its barcode the same person as {shown}: write '{patient}' in all these rows"
    return (
        f"the same as {shown} but for case, separators, leading zeros and decimals: write it alike in all rows of a "
        "person or, if these are different people, give each another identifier"
    )


def _several_barcodes(cells: Iterable[str | None]) -> dict[str, list[str]]:
    """Returns the patients whom several barcodes name, with these as written."""
    found: dict[str, list[str]] = {}
    for cell in dict.fromkeys(cells):
        if cell is not None and (patient := barcode_patient(cell)) is not None:
            found.setdefault(patient, []).append(cell)
    return {patient: own for patient, own in found.items() if len(own) > 1}
