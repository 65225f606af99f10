"""Joins the clinical, slide and omics tables into one cohort; every excluded entry is kept with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from momkd_ray.cohort.clinical import ClinicalTable, read_clinical
from momkd_ray.cohort.exclusions import (
    ALL_REJECTED,
    EXCLUDED,
    PATIENT_OUT,
    LeftOut,
    Row,
    counted,
    entries_text,
    examples_text,
    exclusion_sentences,
    omics_out,
    slides_of,
)
from momkd_ray.cohort.feature_files import Features, find_features
from momkd_ray.cohort.features_elsewhere import absence, none_of_slides
from momkd_ray.cohort.gene_scale import GeneFamily
from momkd_ray.cohort.joining import clinical_column, join_slides, unusual_column
from momkd_ray.cohort.labels import check_classes
from momkd_ray.cohort.no_genes import Label
from momkd_ray.cohort.omics import OmicsTable, read_omics
from momkd_ray.cohort.quantile_classes import with_quantile_classes
from momkd_ray.cohort.slide_labels import label_rows, no_class, without_other_labels
from momkd_ray.cohort.slides import SlideTable, read_slides
from momkd_ray.cohort.spellings import one_name_a_patient, slides_as_patients
from momkd_ray.cohort.table_files import read_table_file
from momkd_ray.cohort.text_encoding import assumed_encoding
from momkd_ray.cohort.understood import Understood, in_order
from momkd_ray.config.load import Config
from momkd_ray.config.quantile_ranges import Ranges
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import GO_ON, Fault, FaultsError, OnError, faults_of_table

OTHER_LABELS = 12  # labels of no class that are counted one by one


@dataclass(frozen=True, eq=False)
class Cohort:
    """The patients of a study with their labels, slides and omics.

    Attributes:
        patients: index `patient_id` (sorted), columns `label` (the user's class name), `y` (its number; of two, 1 is
            the positive one) and, if `folds.site` names one, `site`; of a regression also `number`, whose quantiles the
            classes are.
        slides: columns `slide_id` (sorted), `patient_id`, and of the feature file `path`, `file` (size and time of
            change, '' if there is none) and `bytes`.
        omics: index `patient_id` (sorted, some or all patients), float32 genes, NaN where blank; None without omics.
        classes: names in order; of two, the second is the positive one.
        excluded: columns `kind` (patient, slide or omics), `id`, `reason`, and `problem`: '' for entries excluded by
            the configuration and what follows from it, `unmatched` for entries that match nothing. None is a fault.
        patient_column: name of the clinical table's patient column.
        rejected: bad rows and files; the entries that they name are left out.
        unmatched_files: names of feature files that no row of the slides' table names.
        features_elsewhere: if no slide has a feature file, a sentence on the folder that holds them, else ''.
        understood: what was recognised about the tables; warnings first.
        gene_families: the genes by the scale of their values; None if they were not read from a file.
        ranges: of a regression, name and cut-offs of the classes; None of a classification.
    """

    patients: pd.DataFrame
    slides: pd.DataFrame
    omics: pd.DataFrame | None
    classes: tuple[str, ...]
    excluded: pd.DataFrame
    patient_column: str = "patient_id"
    rejected: tuple[Fault, ...] = ()
    unmatched_files: tuple[str, ...] = ()
    features_elsewhere: str = ""
    understood: tuple[Understood, ...] = ()
    gene_families: tuple[GeneFamily, ...] | None = None
    ranges: Ranges | None = None

    def resolved(self, config: Config) -> Config:
        """Returns the configuration with the classes that a regression has on these patients."""
        if self.ranges is None:
            return config
        return config.model_copy(update={"cohort": config.cohort.model_copy(update={"classes": self.ranges})})

    def without_slides(self, faults: Iterable[Fault]) -> Cohort:
        """Removes the slides of bad feature files, and adds the faults to `rejected`.

        A patient without a remaining slide is excluded, and so are its omics.

        Raises:
            InputError: no patient of a class is left.
        """
        new_faults = tuple(faults)
        bad = {fault.id for fault in new_faults if fault.kind == "slide"}
        slides = self.slides[~self.slides["slide_id"].isin(bad)].reset_index(drop=True)
        remains = self.patients.index.isin(slides["patient_id"])
        left_out: list[Row] = [("patient", str(name), ALL_REJECTED, "") for name in self.patients.index[~remains]]
        patients, omics = self.patients[remains], self.omics
        if omics is not None:
            inside = omics.index.isin(patients.index)
            left_out += [("omics", str(name), PATIENT_OUT, "") for name in omics.index[~inside]]
            omics = omics[inside]
        _check_classes_left(patients["label"], self.classes, new_faults)
        rejected = self.rejected + new_faults
        reduced = replace(self, patients=patients, slides=slides, omics=omics, rejected=rejected)
        return reduced.with_excluded(left_out)

    def with_excluded(self, left_out: LeftOut) -> Cohort:
        """Adds rows to `excluded`."""
        return replace(self, excluded=pd.concat([self.excluded, _excluded(left_out)], ignore_index=True))

    def summary(self) -> list[str]:
        """Describes the cohort: likely mistakes, its counts, what was recognised, and everything left out and why."""
        counts = self.patients["label"].value_counts()
        shown = reversed(self.classes) if len(self.classes) == 2 else self.classes
        of = " " if self.ranges is None else " of "  # a range begins with a number, too
        per_class = ", ".join(f"{int(counts[name]):,}{of}{name}" for name in shown)
        several = int((self.slides["patient_id"].value_counts() > 1).sum())
        recognised = [entry.sentence() for entry in self.understood if not entry.warning]
        return [
            *(entry.sentence() for entry in self.understood if entry.warning),
            f"{counted(len(self.patients), 'patient')}: {per_class}.",
            f"{counted(len(self.slides), 'slide')}; {counted(several, 'patient')} with several.",
            self._omics_sentence(),
            *recognised,
            *exclusion_sentences(self.excluded.itertuples(index=False)),
            *self._rejection_sentences(),
            *([f"{self.features_elsewhere}."] if self.features_elsewhere else []),
            *self.unmatched_file_sentences(),
        ]

    def unmatched_file_sentences(self) -> list[str]:
        """One sentence, if there are feature files that no row names."""
        if not self.unmatched_files:
            return []
        files = counted(len(self.unmatched_files), "feature file")
        return [f"{files} of no row of the slides' table: {examples_text(self.unmatched_files)}."]

    def absent_features(self, folder: str) -> str:
        """Says in one sentence why no slide has a feature file; '' if one has.

        Args:
            folder: `features.dir`.

        Raises:
            RunError: its storage cannot be reached.
        """
        if self.slides["file"].any():
            return ""
        return (
            self.features_elsewhere
            or absence(folder)
            or none_of_slides(folder, len(self.slides), self.slides["path"].iloc[0], self.unmatched_files)
        )

    def fingerprint(self) -> str:
        """Hashes identifiers, labels, slides and omics, but not locations: 16 hex digits of a SHA-256."""
        genes = None if self.omics is None else list(self.omics.columns)
        with_omics = None if self.omics is None else list(self.omics.index)
        tree = [
            self.classes,
            list(zip(self.patients.index, self.patients["label"], strict=True)),
            list(zip(self.slides["slide_id"], self.slides["patient_id"], strict=True)),
            [genes, with_omics],
        ]
        if self.ranges is not None:
            tree.append(self.patients["number"].tolist())
        digest = hashlib.sha256(json.dumps(tree).encode())
        if self.omics is not None:
            digest.update(np.ascontiguousarray(self.omics.to_numpy(), dtype="<f4").tobytes())
        return digest.hexdigest()[:16]

    def _omics_sentence(self) -> str:
        if self.omics is None:
            return "No omics are given."
        with_omics, genes = self.omics.shape
        without = len(self.patients) - with_omics
        return f"{counted(with_omics, 'patient')} with omics ({counted(genes, 'gene')}), {without:,} without."

    def _rejection_sentences(self) -> list[str]:
        ids_by_problem: dict[tuple[str, str], list[str]] = {}
        for fault in sorted(self.rejected):
            ids_by_problem.setdefault((fault.kind, fault.problem), []).append(fault.id)
        return [
            f"{entries_text(kind, len(ids))} rejected ({problem}): {examples_text(ids)}."
            for (kind, problem), ids in ids_by_problem.items()
        ]


def load_cohort(config: Config, on_error: OnError = "stop") -> Cohort:
    """Reads the tables of `config.cohort` and joins them by patient.

    Patients with another label than those of the classes, or without a slide, are left out, and so are slides and omics
    of patients who are not in the cohort. A missing feature file is not refused here.

    Args:
        config: the resolved configuration.
        on_error: how bad rows are treated. `stop` refuses the tables after all were read; `skip` leaves the rows out
            and lists them in `rejected`. A patient with bad omics stays, without omics.

    Raises:
        InputError: two classes are the same.
        FaultsError: a table or column is missing, a class has no patient or, with `stop`, a row is bad.
    """
    with assumed_encoding(config.cohort.encoding):
        return _load_cohort(config, on_error)


def _load_cohort(config: Config, on_error: OnError) -> Cohort:
    settings = config.cohort
    check_classes(settings)
    slides_table = settings.slides or settings.clinical
    with faults_of_table(settings.clinical):
        clinical_file = read_table_file(settings.clinical)
    with faults_of_table(slides_table):
        slides_file = clinical_file if slides_table == settings.clinical else read_table_file(slides_table)
    with faults_of_table(settings.clinical):
        column = clinical_column(settings, clinical_file, slides_file)
        named = one_name_a_patient(settings.slide_column, config.folds.site, clinical_file, column)
        slides_file = named if slides_file is clinical_file else slides_file
    with faults_of_table(slides_table):
        joined = join_slides(settings, slides_file, named, column)
    with faults_of_table(settings.clinical):
        labels = label_rows(settings, named, column, (slides_file, joined))
        settings, of_quantiles = with_quantile_classes(settings, labels, joined)
        clinical = read_clinical(settings, config.folds.site, named, column, labels)
    with faults_of_table(slides_table):
        listing = read_slides(slides_table, joined.column, settings.slide_column, joined.frame)
        listing, other_slides = without_other_labels(listing, clinical.slide_rows_out)
        patients, left_out = _patients_in(settings, clinical, listing)
    slides, slides_out = slides_of(listing, patients, clinical)
    omics = _omics_of(config, clinical, patients)
    faults = [*clinical.faults, *listing.faults, *(omics.faults if omics else ())]
    if on_error == "stop":
        rows = {"patient": clinical.rows, "slide": listing.rows, "omics": omics.rows if omics else 0}
        _refuse_rows(faults, settings, rows)
    features = find_features(config.features.dir, listing.named)
    slides = _with_files(slides, features)
    understood = [*unusual_column(settings.clinical, column), *slides_as_patients(config, named, column)]
    understood += [*clinical.understood, *joined.understood, *of_quantiles]
    return Cohort(
        patients=patients,
        slides=slides,
        omics=omics.values if omics else None,
        classes=settings.class_names,
        excluded=_excluded([*left_out, *other_slides, *slides_out, *omics_out(omics, clinical)]),
        patient_column=clinical.patient_column,
        rejected=tuple(sorted(faults)),
        unmatched_files=features.unnamed,
        features_elsewhere=features.elsewhere,
        understood=in_order(
            [*understood, *listing.understood, *(omics.understood if omics else ()), *features.understood]
        ),
        gene_families=omics.families if omics else None,
        ranges=settings.classes if settings.task == "regression" else None,
    )


def _omics_of(config: Config, clinical: ClinicalTable, patients: pd.DataFrame) -> OmicsTable | None:
    location = config.cohort.omics
    if location is None:
        return None
    with faults_of_table(location):
        classes = dict(zip(patients.index, patients["label"], strict=True))
        label = Label(config.cohort.label, clinical.labels, classes)
        column = config.cohort.patient_column_of("omics")
        return read_omics(location, column, patients.index.tolist(), config.omics, label)


def _with_files(slides: pd.DataFrame, features: Features) -> pd.DataFrame:
    files = [features.files[slide] for slide in slides["slide_id"]]
    return slides.assign(
        path=[file.path for file in files], file=[file.stamp for file in files], bytes=[file.size for file in files]
    )


def _refuse_rows(faults: Sequence[Fault], settings: CohortConfig, rows: dict[str, int]) -> None:
    """Raises if there are bad rows; names their number in each table, whose numbers of rows are given by kind."""
    if not faults:
        return
    tables = {"patient": settings.clinical, "slide": settings.slides or settings.clinical, "omics": settings.omics}
    bad = {path: [0, rows[kind]] for kind, path in tables.items()}
    for fault in faults:
        bad[fault.location if fault.location in bad else tables[fault.kind]][0] += 1
    counts = " and ".join(f"{count} of the {total:,} rows of {path}" for path, (count, total) in bad.items() if count)
    cure = f"; {GO_ON}" if all(count < total for count, total in bad.values() if count) else ""
    raise FaultsError(f"{counts} cannot be used, the first: {min(faults).reason}{cure}", faults)


def _patients_in(settings: CohortConfig, clinical: ClinicalTable, listing: SlideTable) -> tuple[pd.DataFrame, LeftOut]:
    """Divides the patients into those in the cohort and those left out."""
    classes, with_slide = settings.class_names, set(listing.table["patient_id"])
    kept: dict[str, str] = {}
    left_out: list[Row] = []
    others = {label for label in clinical.labels.values() if label is not None and label not in clinical.y}
    for patient, label in clinical.labels.items():
        if patient in clinical.left_out:
            left_out.append(("patient", patient, clinical.left_out[patient], ""))
        elif label is None and clinical.label_table == settings.clinical:
            left_out.append(("patient", patient, "the label is blank", ""))
        elif label is None:
            left_out.append(("patient", patient, "no slide with a label", "" if patient in with_slide else "unmatched"))
        elif label not in clinical.y:
            which = f"is '{label}'" if len(others) <= OTHER_LABELS else f"is one of {len(others)} others"
            reason = f"the label {which}, {no_class(settings)}"
            left_out.append(("patient", patient, reason, ""))
        elif patient in with_slide:
            kept[patient] = classes[clinical.y[label]]
        elif patient in listing.patients_with_bad_rows:
            left_out.append(("patient", patient, ALL_REJECTED, ""))
        else:
            left_out.append(("patient", patient, "no slide", "unmatched"))
    _check_classes_left(kept.values(), classes, [*clinical.faults, *listing.faults])
    for name in classes:
        if name not in kept.values():
            if clinical.left_out:
                both, cure = ("both", "any_positive") if len(classes) == 2 else ("several", "agree")
                raise InputError(
                    f"no patient of class '{name}' is left, because {len(clinical.left_out):,} have slides of {both} "
                    f"classes in {clinical.label_table}: set cohort.slide_labels to {cure}"
                )
            raise InputError(
                f"no patient of class '{name}' has a slide in {settings.slides or settings.clinical}: compare its "
                f"'{listing.patient_column}' with the '{clinical.patient_column}' of {settings.clinical}"
            )
    table = pd.DataFrame(index=pd.Index(list(kept), name="patient_id", dtype="str"))
    table["label"] = pd.Series(list(kept.values()), table.index, dtype="str")
    table["y"] = [classes.index(label) for label in kept.values()]
    if settings.task == "regression":
        table["number"] = [clinical.numbers[clinical.labels[patient] or ""] for patient in kept]
    if clinical.sites:
        table["site"] = pd.Series([clinical.sites[patient] for patient in kept], table.index, dtype="str")
    return table, left_out


def _check_classes_left(labels: Iterable[str], classes: tuple[str, ...], faults: Sequence[Fault]) -> None:
    """Raises if bad rows or files left a class without patients."""
    remaining = set(labels)
    for name in classes:
        if name not in remaining and faults:
            raise FaultsError(
                f"no patient of class '{name}' is left, because {len(faults)} rows or files cannot be used, "
                f"the first: {min(faults).reason}",
                faults,
            )


def _excluded(left_out: LeftOut) -> pd.DataFrame:
    return pd.DataFrame(left_out, columns=list(EXCLUDED), dtype="str")
