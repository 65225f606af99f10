"""The slides to predict: which feature files there are, whose they are, and what the bags are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort import columns
from momkd_ray.cohort.feature_files import FeatureFile, find_features, list_features
from momkd_ray.cohort.joining import unusual_column
from momkd_ray.cohort.known_columns import LESSER_PATIENT_COLUMNS, PATIENT_COLUMNS, is_known
from momkd_ray.cohort.option_names import set_to, told_as_options
from momkd_ray.cohort.slide_names import FEATURE_SUFFIXES
from momkd_ray.cohort.slides import read_slides
from momkd_ray.cohort.spellings import column_of_persons, one_name_a_patient, spelt_otherwise
from momkd_ray.cohort.table_files import read_table_file, rows_by_value
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault

OPTIONS = {  # of the verbs that read such a table without a configuration, by the configuration's key
    "cohort.patient_column": "--patient-column",
    "cohort.slide_column": "--slide-column",
    "features.dir": "--features",
}


def list_slides(features: str) -> pd.DataFrame:
    """Lists the feature files of a folder as `slide_id, path, bytes`, sorted.

    Raises:
        InputError: there is none.
    """
    files = list_features(features)
    if not files:
        suffixes = ", ".join(FEATURE_SUFFIXES)
        raise InputError(f"{features} contains no feature files ({suffixes}): name the folder that does")
    rows = [{"slide_id": file.slide_id, "path": file.path, "bytes": file.size} for file in files.values()]
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class SlidesOfPatients:
    """A table of patients and slides, in which a person has one identifier.

    Attributes:
        path: of the table.
        frame: its rows; several barcodes of a patient of TCGA or TARGET are replaced by the patient's.
        patient_column: its column of patients.
        slide_column: the column of slides that the user names; None to recognise it.
        told: sentences on what was recognised.
    """

    path: str
    frame: pd.DataFrame
    patient_column: str
    slide_column: str | None
    told: tuple[str, ...]

    def spelling_faults(self, predicted: Collection[str]) -> list[Fault]:
        """Returns the faults of patients whom another row may spell otherwise, if one of these is predicted."""
        if column_of_persons(self.slide_column, None, self.patient_column) is None:
            return []
        rows_of, _ = rows_by_value(self.frame[self.patient_column])
        return [
            Fault("patient", patient, "duplicated", self.path, f"{self.path}: patient '{patient}' {what}")
            for patient, what in spelt_otherwise(rows_of, predicted).items()
        ]


def open_slides(path: str | None, patient_column: str | None, slide_column: str | None) -> SlidesOfPatients | None:
    """Reads the table of patients and slides and finds its column of patients.

    Args:
        path: of the table; None if there is none.
        patient_column: the column that the user names; None to recognise it.
        slide_column: the same of the slides.

    Returns:
        The table. It is told if the column's name does not say that it is the patients', and that several barcodes are
        read as one patient.

    Raises:
        InputError: it cannot be read, or none or several columns qualify.
    """
    if path is None:
        return None
    with told_as_options(OPTIONS):
        file = read_table_file(path)
    column = column_of_patients(file.frame(), path, patient_column, slide_column)
    named = one_name_a_patient(slide_column, None, file, column)
    said = [] if patient_column else unusual_column(path, column)
    told = [entry.sentence() for entry in (*said, *named.understood[len(file.understood) :])]
    return SlidesOfPatients(path, named.frame(), column, slide_column, tuple(told))


def match_patients(
    opened: SlidesOfPatients | None, table: pd.DataFrame, features: str
) -> tuple[pd.DataFrame, dict[str, str], list[Fault]]:
    """Finds the patient of each slide.

    Args:
        opened: the table of patients and slides; without it each slide is its own patient.
        table: the feature files as `slide_id, path, bytes`.
        features: their folder.

    Returns:
        The feature files of the table's slides, the patient of each, and the faults: slides without patient, rows
        without feature file, and patients whom another row may spell otherwise, whose slides are left out.

    Raises:
        InputError: the table lacks a column.
    """
    if opened is None:
        return table, {slide: slide for slide in table["slide_id"]}, []
    slides = opened.path
    with told_as_options(OPTIONS):
        listing = read_slides(slides, opened.patient_column, opened.slide_column, opened.frame)
    patients = dict(zip(listing.table["slide_id"], listing.table["patient_id"], strict=True))
    sizes = zip(table["slide_id"], table["path"], table["bytes"], strict=True)
    listed = {slide: FeatureFile(slide, path, "listed", size) for slide, path, size in sizes}
    with told_as_options(OPTIONS):
        found = find_features(features, listing.named, listed)
    if found.elsewhere:
        raise InputError(found.elsewhere)
    with_file = {slide: found.files[slide] for slide in patients if found.files[slide].stamp}
    spelt = opened.spelling_faults({patients[slide] for slide in with_file})
    faults = [*listing.faults, *spelt]
    of_rows = {file.path for file in found.files.values() if file.stamp}
    faults += [
        Fault("slide", slide, "unmatched", path, f"{slides} names no patient for slide {slide} ({path}); add its row")
        for slide, path in zip(table["slide_id"], table["path"], strict=True)
        if path not in of_rows
    ]
    for slide in sorted(set(patients) - set(with_file)):
        reason = f"{slides} lists slide {slide}, which has no feature file in {features}; extract it or remove its row"
        faults.append(Fault("slide", slide, "missing", storage.join(features, slide), reason))
    ambiguous = {fault.id for fault in spelt}
    kept = {slide: file for slide, file in with_file.items() if patients[slide] not in ambiguous}
    rows = [(slide, file.path, file.size) for slide, file in sorted(kept.items())]
    files = pd.DataFrame(rows, columns=["slide_id", "path", "bytes"]).astype({"slide_id": "str", "path": "str"})
    return files, {slide: patients[slide] for slide in kept}, faults


def column_of_patients(frame: pd.DataFrame, path: str, chosen: str | None, slide_column: str | None = None) -> str:
    """Returns the column of patients: the chosen one, the only one, or the first of several that group the rows alike.

    If none has a usual name of such columns, the only one with a less usual name is taken, or the only one beside that
    of the slides.

    Args:
        frame: the table of patients and slides.
        path: of the table, for messages.
        chosen: the column that the user names; None to recognise it.
        slide_column: the same of the slides.

    Raises:
        InputError: there is none, or several group the rows differently.
    """
    candidates = [name for name in PATIENT_COLUMNS if name in frame.columns]
    if chosen is None and not candidates and (lesser := _lesser_column(frame, slide_column)):
        return lesser
    if chosen is not None or len(candidates) < 2:
        with told_as_options(OPTIONS):
            return columns.patient_column(frame.columns, path, chosen)
    groups = {tuple(pd.factorize(frame[name])[0].tolist()) for name in candidates}
    if len(groups) == 1:
        return candidates[0]
    several = ", ".join(f"'{name}'" for name in candidates)
    cures = ", or ".join(set_to("--patient-column", name) for name in candidates)
    raise InputError(
        f"{path} has several columns that may name the patients ({several}), which group its rows differently: {cures}"
    )


def _lesser_column(frame: pd.DataFrame, slide_column: str | None) -> str | None:
    """Returns the column of patients in a table in which no column is named as they usually are; None if none is it."""
    if any(map(columns.is_named_after_patients, frame.columns)):
        return None
    lesser = [name for name in frame.columns if is_known(name, LESSER_PATIENT_COLUMNS)]
    slides = [slide_column] if slide_column in frame.columns else columns.slide_columns(frame.columns)
    beside = [name for name in frame.columns if name not in slides]
    found = lesser or (beside if len(slides) == 1 else [])
    return found[0] if len(found) == 1 else None


def group_bags(table: pd.DataFrame, patients: Mapping[str, str], *, joint: bool) -> pd.DataFrame:
    """Groups slides into bags, of one slide or, if `joint`, of all slides of a patient.

    Returns:
        One row per bag: `bag_id, patient_id`, lists of `slides` and their `paths`, and their `bytes`.
    """
    slides = table.assign(patient_id=[patients[slide] for slide in table["slide_id"]])
    slides["bag_id"] = slides["patient_id" if joint else "slide_id"]
    by_bag = slides.groupby("bag_id", sort=True)
    bags = by_bag.agg(
        patient_id=("patient_id", "first"), slides=("slide_id", list), paths=("path", list), bytes=("bytes", "sum")
    )
    return bags.reset_index()
