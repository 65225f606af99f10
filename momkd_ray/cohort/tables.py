"""The clinical, slide and omics tables joined into one cohort; what is left out is kept with its reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from momkd_ray.cohort.files import files_of, list_features
from momkd_ray.cohort.formats import first_duplicate, identifiers, read_table, require_columns, texts
from momkd_ray.cohort.omics import read_omics
from momkd_ray.config import CohortConfig, Config
from momkd_ray.errors import InputError

__all__ = ["Cohort", "load_cohort", "read_table", "slide_id_of"]

SLIDE_SUFFIXES = frozenset({".h5", ".hdf5", ".pt", ".svs", ".ndpi", ".tif", ".tiff", ".mrxs"})
EXAMPLES = 3  # identifiers shown for each reason

LeftOut = list[tuple[str, str, str]]  # (kind, identifier, reason)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The patients of a study and what is known of them.

    patients: index `patient_id` (sorted), columns `label` (the user's class name) and `y` (1 = positive).
    slides: columns `slide_id` (sorted), `patient_id`, and of the feature file `path`, `file` (size and time of
        change, '' where there is none) and `bytes`.
    omics: index `patient_id` (sorted, some or all patients), float32 genes; None where none are given.
    classes: (negative, positive).
    excluded: columns `kind` (patient, slide or omics), `id`, `reason`.
    """

    patients: pd.DataFrame
    slides: pd.DataFrame
    omics: pd.DataFrame | None
    classes: tuple[str, str]
    excluded: pd.DataFrame

    def summary(self) -> list[str]:
        """The cohort in plain sentences: what is in it, then everything left out and why."""
        counts = self.patients["label"].value_counts()
        per_class = ", ".join(f"{int(counts[name]):,} {name}" for name in reversed(self.classes))
        several = int((self.slides["patient_id"].value_counts() > 1).sum())
        return [
            f"{_count(len(self.patients), 'patient')}: {per_class}.",
            f"{_count(len(self.slides), 'slide')}; {_count(several, 'patient')} with several.",
            self._omics_sentence(),
            *self._exclusion_sentences(),
        ]

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over identifiers, labels, slides and omics (not where files lie)."""
        genes = None if self.omics is None else list(self.omics.columns)
        holders = None if self.omics is None else list(self.omics.index)
        tree = [
            self.classes,
            list(zip(self.patients.index, self.patients["label"], strict=True)),
            list(zip(self.slides["slide_id"], self.slides["patient_id"], strict=True)),
            [genes, holders],
        ]
        digest = hashlib.sha256(json.dumps(tree).encode())
        if self.omics is not None:
            digest.update(np.ascontiguousarray(self.omics.to_numpy(), dtype="<f4").tobytes())
        return digest.hexdigest()[:16]

    def _omics_sentence(self) -> str:
        if self.omics is None:
            return "No omics are given."
        with_omics, genes = self.omics.shape
        without = len(self.patients) - with_omics
        return f"{_count(with_omics, 'patient')} with omics ({_count(genes, 'gene')}), {without:,} without."

    def _exclusion_sentences(self) -> list[str]:
        sentences = []
        for (kind, reason), group in self.excluded.groupby(["kind", "reason"], sort=True):
            ids = list(group["id"])
            more = f" and {len(ids) - EXAMPLES:,} more" if len(ids) > EXAMPLES else ""
            noun = "omics entr" if kind == "omics" else str(kind)
            counted = _count(len(ids), noun, *(("y", "ies") if kind == "omics" else ("", "s")))
            sentences.append(f"{counted} left out ({reason}): {', '.join(ids[:EXAMPLES])}{more}.")
        return sentences


def load_cohort(config: Config) -> Cohort:
    """Read the tables of `config.cohort` and join them by patient.

    Patients with another label than the two classes, or without a slide, are left out; so are the slides and
    omics of patients who are not in. A feature file that does not exist is not refused here.

    Raises:
        InputError: a table or column is missing, an identifier is blank or double, a class has no patient.
    """
    settings = config.cohort
    if settings.positive == settings.negative:
        raise InputError(f"cohort.positive and cohort.negative are both '{settings.positive}': name two classes")
    labels = _read_labels(settings)
    slides = read_slides(settings.slides, settings.patient_column, settings.slide_column)
    files = files_of(slides["slide_id"].tolist(), config.features.dir, list_features(config.features.dir))
    slides["path"], slides["file"] = [file.path for file in files], [file.stamp for file in files]
    slides["bytes"] = [file.size for file in files]
    kept, left_out = _split_patients(labels, set(slides["patient_id"]), settings)
    slides, slides_out = _split_slides(slides, kept, labels)
    left_out += slides_out
    patients = pd.DataFrame(
        {
            "label": pd.Series(list(kept.values()), dtype="str"),
            "y": [int(label == settings.positive) for label in kept.values()],
        }
    ).set_index(pd.Index(list(kept), name="patient_id", dtype="str"))
    omics = None
    if settings.omics is not None:
        omics, omics_out = read_omics(settings.omics, settings.patient_column, list(kept))
        left_out += [("omics", name, reason) for name, reason in omics_out]
    excluded = pd.DataFrame(left_out, columns=["kind", "id", "reason"], dtype="str")
    return Cohort(patients, slides, omics, (settings.negative, settings.positive), excluded)


def slide_id_of(file_name: str) -> str:
    """The file name without one recognised suffix; dots inside the name stay."""
    suffix = PurePosixPath(file_name).suffix
    return file_name[: -len(suffix)] if suffix.lower() in SLIDE_SUFFIXES else file_name


def _read_labels(settings: CohortConfig) -> dict[str, str | None]:
    """Every patient's label as written, by patient, sorted."""
    path, column = settings.clinical, settings.patient_column
    frame = read_table(path)
    require_columns(list(frame.columns), path, column, settings.label)
    patients = identifiers(frame, column, path)
    twice = first_duplicate(patients)
    if twice is not None:
        raise InputError(f"{path}: patient '{twice}' has more than one row: keep one")
    return dict(sorted(zip(patients, texts(frame[settings.label]), strict=True)))


def read_slides(path: str, patient_column: str, slide_column: str) -> pd.DataFrame:
    """Which patient each slide is of: columns slide_id, patient_id; sorted by slide_id.

    Raises:
        InputError: a column is missing, an identifier is blank, a slide is listed twice or with its folder.
    """
    frame = read_table(path)
    require_columns(list(frame.columns), path, patient_column, slide_column)
    patients = identifiers(frame, patient_column, path)
    names = identifiers(frame, slide_column, path)
    for row, name in enumerate(names, start=1):
        # a name that is nothing but a suffix, such as ".h5", has no suffix to pathlib
        if "/" in name or "\\" in name or name.lower() in SLIDE_SUFFIXES:
            raise InputError(
                f"{path}: '{name}' in data row {row} is not the name of a file: give the name alone, without its folder"
            )
    slides = [slide_id_of(name) for name in names]
    twice = first_duplicate(slides)
    if twice is not None:
        raise InputError(f"{path}: slide '{twice}' has more than one row: keep one")
    table = pd.DataFrame({"slide_id": slides, "patient_id": patients}, dtype="str")
    return table.sort_values("slide_id").reset_index(drop=True)


def _split_patients(
    labels: Mapping[str, str | None], with_slide: set[str], settings: CohortConfig
) -> tuple[dict[str, str], LeftOut]:
    """The labels of the patients kept, and the patients left out."""
    classes = (settings.negative, settings.positive)
    _check_classes(labels, settings)
    kept: dict[str, str] = {}
    left_out: LeftOut = []
    for patient, label in labels.items():
        if label is None:
            left_out.append(("patient", patient, "the label is blank"))
        elif label not in classes:
            reason = f"the label is '{label}', neither '{settings.positive}' nor '{settings.negative}'"
            left_out.append(("patient", patient, reason))
        elif patient not in with_slide:
            left_out.append(("patient", patient, "no slide"))
        else:
            kept[patient] = label
    for name in classes:
        if name not in kept.values():
            raise InputError(
                f"no patient of class '{name}' has a slide in {settings.slides}: "
                f"compare its '{settings.patient_column}' with that of {settings.clinical}"
            )
    return kept, left_out


def _check_classes(labels: Mapping[str, str | None], settings: CohortConfig) -> None:
    counts = Counter(label for label in labels.values() if label is not None)
    for key, name in (("positive", settings.positive), ("negative", settings.negative)):
        if name not in counts:
            shown = ", ".join(f"'{value}' ({count})" for value, count in counts.most_common(8)) or "all blank"
            more = f" and {len(counts) - 8} other values" if len(counts) > 8 else ""
            raise InputError(
                f"{settings.clinical}: no '{settings.label}' is '{name}' (cohort.{key}); its values are {shown}{more}"
            )


def _split_slides(
    slides: pd.DataFrame, kept: Mapping[str, str], labels: Mapping[str, str | None]
) -> tuple[pd.DataFrame, LeftOut]:
    inside = slides["patient_id"].isin(list(kept))
    outside = slides[~inside]
    left_out = [
        (
            "slide",
            slide,
            "its patient is left out" if patient in labels else "its patient is not in the clinical table",
        )
        for slide, patient in zip(outside["slide_id"], outside["patient_id"], strict=True)
    ]
    return slides[inside].reset_index(drop=True), left_out


def _count(number: int, noun: str, one: str = "", many: str = "s") -> str:
    return f"{number:,} {noun}{one if number == 1 else many}"
