"""The content of a finished cross-validation's directory, as far as the report shows it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from momkd_ray import storage
from momkd_ray.cohort.table_files import read_table
from momkd_ray.crossval.class_evaluate import pool_classes
from momkd_ray.crossval.evaluate import pool_patients
from momkd_ray.crossval.trained_run import TrainedRun, read_run
from momkd_ray.errors import InputError
from momkd_ray.run.finished import label_and_classes, parquet, read_finished
from momkd_ray.run.layout import RunDirectory
from momkd_ray.train.validation import REGRESSION


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """The content of a finished cross-validation's directory; what an earlier version did not write is None or empty.

    Attributes:
        directory: where it is.
        figures: metrics.json.
        predictions: predictions.parquet, one row per patient and fold in which it was tested.
        configuration: the text of run.yaml.
        tree: its content.
        label: name of the label.
        classes: names of the classes in order; of two, the negative one first.
        epochs: metrics of each fold's epochs.
        seconds: that training and validating each fold took, a refit on its validation patients included.
        provenance: fingerprint and versions.
        excluded: excluded.csv.
        trained: training prevalence and validation predictions.
        genes: of each fold the chosen genes.
        slides: predictions of the test slides of all folds.
        clinical: the clinical table, if it is still there.
        patient_column: its column of patients.
    """

    directory: RunDirectory
    figures: dict[str, Any]
    predictions: pd.DataFrame
    configuration: str
    tree: dict[str, Any]
    label: str
    classes: tuple[str, ...]
    epochs: dict[int, pd.DataFrame]
    seconds: dict[int, float | None]
    provenance: dict[str, Any]
    excluded: pd.DataFrame
    trained: TrainedRun | None
    genes: dict[int, pd.DataFrame]
    slides: pd.DataFrame
    clinical: pd.DataFrame | None
    patient_column: str | None

    @property
    def thresholds(self) -> dict[int, float]:
        """The threshold of each fold."""
        return {fold["fold"]: fold["threshold"] for fold in self.figures["folds"]}

    @property
    def patients(self) -> pd.DataFrame:
        """One row per tested patient, as pooled in metrics.json."""
        if len(self.classes) > 2:
            return pool_classes(self.predictions, self.classes)
        return pool_patients(self.predictions, self.thresholds, self.classes)

    @property
    def predicts_number(self) -> bool:
        """Whether it is a regression, whose classes are ranges of a number."""
        return self.figures.get("task") == REGRESSION

    def section(self, name: str) -> dict[str, Any]:
        """Returns a section of run.yaml, empty if there is none."""
        value = self.tree.get(name)
        return value if isinstance(value, dict) else {}


def read_finished_run(directory: RunDirectory) -> FinishedRun:
    """Reads the files of a finished cross-validation.

    Raises:
        InputError: a file is missing or damaged.
    """
    metrics = read_finished(directory, directory.metrics, json.loads)
    configuration = read_finished(directory, directory.configuration, bytes.decode)
    tree = read_finished(directory, directory.configuration, yaml.safe_load)
    predictions = read_finished(directory, directory.predictions, parquet)
    try:
        label, classes = label_and_classes(tree)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{directory.configuration} lacks the cohort's label or classes: run momkd-ray crossval again"
        ) from error
    _check(directory, metrics, predictions, classes)
    folds = [fold["fold"] for fold in metrics["folds"]]
    epochs = {fold: read_finished(directory, directory.fold(fold).metrics, _epochs) for fold in folds}
    refits = {fold: _optional(directory, directory.fold(fold).refit.metrics, _epochs, pd.DataFrame()) for fold in folds}
    genes = {fold: _optional(directory, directory.fold(fold).genes, _csv, pd.DataFrame()) for fold in folds}
    slides = [_optional(directory, directory.fold(fold).slides("test"), parquet, pd.DataFrame()) for fold in folds]
    validated = all(storage.exists(directory.fold(fold).slides("val")) for fold in folds)
    has_folds = storage.exists(directory.folds)
    return FinishedRun(
        directory=directory,
        figures=metrics,
        predictions=predictions,
        configuration=configuration,
        tree=tree,
        label=label,
        classes=classes,
        epochs=epochs,
        seconds={fold: _seconds(pd.concat([own, refits[fold]])) for fold, own in epochs.items()},
        provenance=_optional(directory, directory.provenance, json.loads, {}),
        excluded=_optional(directory, directory.excluded, _csv, pd.DataFrame(columns=["kind", "id", "reason"])),
        trained=read_run(directory.location) if has_folds and validated and len(classes) == 2 else None,
        genes={fold: table for fold, table in genes.items() if len(table)},
        slides=pd.concat([own.assign(fold=fold) for fold, own in zip(folds, slides, strict=True) if len(own)])
        if any(map(len, slides))
        else pd.DataFrame(),
        clinical=_clinical(tree),
        patient_column=str(read_table(directory.folds).columns[0]) if has_folds else None,
    )


def _check(
    directory: RunDirectory, metrics: dict[str, Any], predictions: pd.DataFrame, classes: tuple[str, ...]
) -> None:
    missing = [name for name in ("metrics", "counts", "folds") if name not in metrics]
    if missing:
        raise InputError(f"{directory.metrics} lacks {missing[0]!r}: run momkd-ray crossval again")
    required = ["patient_id", "label", "predicted", "fold", *(f"p_{name}" for name in classes)]
    absent = [column for column in required if column not in predictions.columns]
    if absent:
        raise InputError(f"{directory.predictions} lacks the column {absent[0]}: run momkd-ray crossval again")
    if set(predictions["fold"]) != {fold["fold"] for fold in metrics["folds"]}:
        raise InputError(
            f"{directory.predictions} and {directory.metrics} have different folds: run momkd-ray crossval again"
        )


def _optional(directory: RunDirectory, location: str, parse: Any, default: Any) -> Any:
    return read_finished(directory, location, parse) if storage.exists(location) else default


def _clinical(tree: dict[str, Any]) -> pd.DataFrame | None:
    """Reads the clinical table, which may have been moved since; it only describes the patients here."""
    location = tree["cohort"].get("clinical")
    try:
        return read_table(str(location)) if location else None
    except InputError:
        return None


def _csv(content: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)


def _seconds(epochs: pd.DataFrame) -> float | None:
    columns = [name for name in ("seconds_start", "seconds_train", "seconds_validate") if name in epochs.columns]
    return float(epochs[columns].sum().sum()) if columns else None


def _epochs(content: bytes) -> pd.DataFrame:
    table = pd.DataFrame([json.loads(line) for line in content.decode().splitlines() if line.strip()])
    table[["epoch", "val_auc", "loss_total"]] = table[["epoch", "val_auc", "loss_total"]].astype(float)
    return table
