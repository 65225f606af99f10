"""Reads from a finished run what evaluating other patients takes: models, thresholds, prevalence, validation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from momkd_ray.cohort.table_files import read_table, texts
from momkd_ray.config.model_names import DEFAULT_MODEL, pools_components
from momkd_ray.crossval.metrics import patient_table
from momkd_ray.errors import InputError
from momkd_ray.run.finished import label_and_classes, pair, parquet, read_finished
from momkd_ray.run.layout import RunDirectory
from momkd_ray.statistics.calibration import LogisticMap, prevalence_shift, recalibration

BALANCED = 0.5  # the share of positive bags that balanced sampling draws


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a finished cross-validation holds for the evaluation of other patients.

    Attributes:
        location: the run directory.
        label: name of the label.
        classes: names of the negative and the positive class.
        labels_of: the labels or cut-offs of the two classes, as the run's configuration gives them.
        thresholds: of each fold's model, on the uncorrected probability.
        train_prevalence: mean over folds of the share of positive training patients.
        shifts: of each fold, from the prevalence of balanced sampling to that of training; the identity if the model
            does not answer as if both classes were equally common.
        validation: one row per fold and validation patient: `fold, patient_id, y, p`, predicted by that fold's model as
            it was before the refit, if there was one.
        patients: every patient of the run's folds.
        fingerprint: of the run.
    """

    location: str
    label: str
    classes: tuple[str, str]
    labels_of: tuple[tuple[str, ...], tuple[str, ...]]
    thresholds: dict[int, float]
    train_prevalence: float
    shifts: dict[int, LogisticMap]
    validation: pd.DataFrame
    patients: frozenset[str]
    fingerprint: str

    @property
    def models(self) -> list[str]:
        """The folders of the folds' model bundles."""
        return [RunDirectory(self.location).fold(fold).model for fold in self.thresholds]

    @property
    def threshold(self) -> float:
        """The frozen threshold of the ensemble, the mean of the folds'."""
        return float(np.mean(list(self.thresholds.values())))

    @property
    def shift(self) -> LogisticMap:
        """The shift of the ensemble's probability, the mean of the folds' on the log odds."""
        return LogisticMap(float(np.mean([shift.intercept for shift in self.shifts.values()])), 1.0)

    def recalibration(self) -> LogisticMap:
        """Fits the recalibration of the uncorrected probability on the validation patients of all folds."""
        return recalibration(self.validation["y"], self.validation["p"])

    def threshold_at(self, measure: str, value: float) -> float:
        """Chooses a threshold on the validation patients: the mean over folds of each fold's own.

        Args:
            measure: `sensitivity` or `specificity`.
            value: that at least is reached on the validation patients, with the other as high as possible.
        """
        return float(np.mean([_threshold_at(of["y"], of["p"], measure, value) for _, of in self._by_fold()]))

    def _by_fold(self) -> Any:
        return self.validation.groupby("fold", sort=True)


def _threshold_at(y: pd.Series[Any], p: pd.Series[Any], measure: str, value: float) -> float:
    of_class = np.sort(p[y == (measure == "sensitivity")].to_numpy())
    needed = int(np.ceil(value * len(of_class) - 1e-9))
    if measure == "sensitivity":
        return float(of_class[len(of_class) - max(needed, 1)])
    below = of_class[max(needed, 1) - 1]
    higher = p[p > below]
    return float((below + higher.min()) / 2) if len(higher) else float(np.nextafter(below, 2.0))


def read_run(location: str) -> TrainedRun:
    """Reads a finished run.

    Raises:
        InputError: it is not a finished cross-validation, or a file is damaged.
    """
    directory = RunDirectory(location)
    metrics = read_finished(directory, directory.metrics, json.loads)
    tree = read_finished(directory, directory.configuration, yaml.safe_load)
    predictions = read_finished(directory, directory.predictions, parquet)
    read_finished(directory, directory.folds, bytes.decode)
    table = read_table(directory.folds)
    try:
        label, names_of_classes = label_and_classes(tree)
        classes = pair(names_of_classes, "evaluate")
        given = tree["cohort"].get("classes")
        names = list(given.values()) if given else [tree["cohort"][key] for key in ("negative", "positive")]
        results = metrics["folds"]
        thresholds = {int(one["fold"]): float(one["threshold"]) for one in sorted(results, key=lambda one: one["fold"])}
        positive_column = f"p_{classes[1]}"
        labels = dict(zip(predictions["patient_id"].astype(str), predictions["label"].astype(str), strict=True))
        validation = [_validation(directory, fold, classes, positive_column) for fold in thresholds]
        for fold_table in validation:
            labels |= {p: classes[y] for p, y in zip(fold_table["patient_id"], fold_table["y"], strict=True)}
        prevalences = [
            _train_prevalence(table, fold, labels, classes[1], own["y"].tolist())
            for fold, own in zip(thresholds, validation, strict=True)
        ]
        shifts = [
            prevalence_shift(BALANCED, prevalence).intercept if _answers_balanced(tree, metrics, fold) else 0.0
            for fold, prevalence in zip(thresholds, prevalences, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{location} is not a run directory that this version wrote ({' '.join(str(error).split())} is missing or "
            "damaged): run momkd-ray crossval again"
        ) from error
    return TrainedRun(
        location=location,
        label=label,
        classes=classes,
        labels_of=(_labels(names[0]), _labels(names[1])),
        thresholds=thresholds,
        train_prevalence=float(np.mean(prevalences)),
        shifts={fold: LogisticMap(shift, 1.0) for fold, shift in zip(thresholds, shifts, strict=True)},
        validation=pd.concat(validation, ignore_index=True),
        patients=frozenset(str(name) for name in texts(table[table.columns[0]]) if name is not None),
        fingerprint=str(metrics.get("fingerprint", "")),
    )


def _labels(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _validation(directory: RunDirectory, fold: int, classes: tuple[str, str], positive: str) -> pd.DataFrame:
    patients = patient_table(read_finished(directory, directory.fold(fold).slides("val"), parquet))
    y = (patients["label"].astype(str) == classes[1]).to_numpy(dtype=int)
    return pd.DataFrame(
        {"fold": fold, "patient_id": patients["patient_id"].astype(str), "y": y, "p": patients[positive]}
    )


def _train_prevalence(
    folds: pd.DataFrame, fold: int, labels: dict[str, str], positive: str, validated: list[int]
) -> float:
    """Computes the share of positive training patients of a fold.

    Labels are known of patients who are validated or tested. Where a split never tests some training patients, those
    whose label is known stand for them, with the fold's validation patients, who were cut from the same patients.
    """
    roles, names = texts(folds[f"role_{fold}"]), texts(folds[folds.columns[0]])
    training = [name for name, role in zip(names, roles, strict=True) if role == "train"]
    known = [int(labels[name] == positive) for name in training if name in labels]
    share = float(np.mean(known if training and len(known) == len(training) else [*known, *validated]))
    if not 0 < share < 1:
        raise ValueError(f"the training patients' labels of fold {fold}")
    return share


def _answers_balanced(tree: dict[str, Any], metrics: dict[str, Any], fold: int) -> bool:
    """Whether a fold's model answers as if both classes were equally common (see `pools_components`).

    What counts is the configuration, and the setting that a search chose.
    """
    search, setting = metrics.get("search"), {}
    if search:
        setting = search["settings"][search["chosen"][str(fold)]]

    def value(section: str, key: str, default: Any) -> Any:  # by default as in runs from before there was the key
        return setting.get(f"{section}.{key}", tree.get(section, {}).get(key, default))

    by_component = pools_components(value("model", "name", DEFAULT_MODEL), value("model", "pooling", "attention"))
    return bool(value("train", "balanced", True)) and not by_component
