"""The slides to predict: which feature files there are, whose they are, and what the bags are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort import columns
from momkd_ray.cohort.feature_files import FeatureFile, find_features, list_features
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS
from momkd_ray.cohort.slide_names import FEATURE_SUFFIXES
from momkd_ray.cohort.slides import read_slides
from momkd_ray.cohort.table_files import read_table
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault


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


def match_patients(
    slides: str | None,
    table: pd.DataFrame,
    features: str,
    patient_column: str | None = None,
    frame: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, dict[str, str], list[Fault]]:
    """Finds the patient of each slide.

    Args:
        slides: the table of patients and slides; without it each slide is its own patient.
        table: the feature files as `slide_id, path, bytes`.
        features: their folder.
        patient_column: the table's column of patients; None to recognise it.
        frame: the table of patients and slides, if it has been read already.

    Returns:
        The feature files of the table's slides, the patient of each, and the faults: slides without patient, and rows
        without feature file.

    Raises:
        InputError: the table lacks a column, or several may name the patients and group the slides differently.
    """
    if slides is None:
        return table, {slide: slide for slide in table["slide_id"]}, []
    frame = read_table(slides) if frame is None else frame
    listing = read_slides(slides, column_of_patients(frame, slides, patient_column), frame=frame)
    patients = dict(zip(listing.table["slide_id"], listing.table["patient_id"], strict=True))
    sizes = zip(table["slide_id"], table["path"], table["bytes"], strict=True)
    listed = {slide: FeatureFile(slide, path, "listed", size) for slide, path, size in sizes}
    found = find_features(features, listing.named, "--features", listed)
    if found.elsewhere:
        raise InputError(found.elsewhere)
    with_file = {slide: found.files[slide] for slide in patients if found.files[slide].stamp}
    faults = list(listing.faults)
    of_rows = {file.path for file in found.files.values() if file.stamp}
    faults += [
        Fault("slide", slide, "unmatched", path, f"{slides} names no patient for slide {slide} ({path}); add its row")
        for slide, path in zip(table["slide_id"], table["path"], strict=True)
        if path not in of_rows
    ]
    for slide in sorted(set(patients) - set(with_file)):
        reason = f"{slides} lists slide {slide}, which has no feature file in {features}; extract it or remove its row"
        faults.append(Fault("slide", slide, "missing", storage.join(features, slide), reason))
    rows = [(slide, file.path, file.size) for slide, file in sorted(with_file.items())]
    files = pd.DataFrame(rows, columns=["slide_id", "path", "bytes"]).astype({"slide_id": "str", "path": "str"})
    return files, {slide: patients[slide] for slide in with_file}, faults


def column_of_patients(frame: pd.DataFrame, path: str, chosen: str | None) -> str:
    """Returns the column of patients: the chosen one, the only one, or the first of several that group the rows alike.

    Raises:
        InputError: there is none, or several group the rows differently.
    """
    candidates = [name for name in PATIENT_COLUMNS if name in frame.columns]
    if chosen is not None or len(candidates) < 2:
        return columns.patient_column(frame.columns, path, chosen)
    groups = {tuple(pd.factorize(frame[name])[0].tolist()) for name in candidates}
    if len(groups) == 1:
        return candidates[0]
    several = ", ".join(f"'{name}'" for name in candidates)
    cures = ", or ".join(f"pass --patient-column {name}" for name in candidates)
    raise InputError(
        f"{path} has several columns that may name the patients ({several}), which group its rows differently: {cures}"
    )


def bad_rows(faults: Sequence[Fault]) -> list[Fault]:
    """Returns the faults of rows, without slides that have no row and rows that have no feature file."""
    return [fault for fault in faults if fault.problem not in ("missing", "unmatched")]


def without_counterpart(faults: Sequence[Fault], slides: str | None) -> list[str]:
    """Says how many slides have no row, and how many rows no feature file, with examples."""
    sentences = []
    for problem, words in (("missing", "of {} without a feature file"), ("unmatched", "without a row in {}")):
        names = [fault.id for fault in faults if fault.problem == problem]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            count = "1 slide" if len(names) == 1 else f"{len(names)} slides"
            sentences.append(f"{count} {words.format(slides)}, not predicted: {', '.join(names[:3])}{more}")
    return sentences


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
