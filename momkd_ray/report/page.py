"""Writes report.html: the results of a cross-validation in one file that loads nothing from a network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from momkd_ray import __version__, storage
from momkd_ray.crossval.evaluate import pool_patients
from momkd_ray.crossval.progress_callback import format_setting
from momkd_ray.errors import InputError
from momkd_ray.report import figures
from momkd_ray.run.finished import label_and_classes, parquet, read_finished
from momkd_ray.run.layout import RunDirectory

_METRIC_NAMES = {
    "auc": "AUC",
    "auprc": "AUPRC (average precision)",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


@dataclass(frozen=True)
class FinishedRun:
    """The content of a finished cross-validation's directory.

    Attributes:
        figures: metrics.json.
        predictions: predictions.parquet, one row per patient and fold in which it was tested.
        configuration: the text of run.yaml.
        label: name of the label.
        classes: names of the negative and the positive class.
        epochs: metrics of each fold's epochs.
    """

    figures: dict[str, Any]
    predictions: pd.DataFrame
    configuration: str
    label: str
    classes: tuple[str, str]
    epochs: dict[int, pd.DataFrame]

    @property
    def patients(self) -> pd.DataFrame:
        """One row per tested patient, as pooled in metrics.json."""
        thresholds = {fold["fold"]: fold["threshold"] for fold in self.figures["folds"]}
        return pool_patients(self.predictions, thresholds, self.classes)


def write_report(run_dir: str) -> str:
    """Writes the report of a finished cross-validation.

    Args:
        run_dir: the run directory, local or `s3://`.

    Returns:
        The location of the report.

    Raises:
        InputError: a file of the cross-validation is missing or damaged.
    """
    directory = RunDirectory(run_dir)
    run = _read_run(directory)
    loader = PackageLoader("momkd_ray.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.jinja").render(_content(run))
    storage.write_text(directory.report, page)
    return directory.report


def _read_run(directory: RunDirectory) -> FinishedRun:
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
    missing = [name for name in ("metrics", "counts", "folds") if name not in metrics]
    if missing:
        raise InputError(f"{directory.metrics} lacks {missing[0]!r}: run momkd-ray crossval again")
    required = ["patient_id", "label", "predicted", "fold", *(f"p_{name}" for name in classes)]
    absent = [column for column in required if column not in predictions.columns]
    if absent:
        raise InputError(f"{directory.predictions} lacks the column {absent[0]}: run momkd-ray crossval again")
    folds = [fold["fold"] for fold in metrics["folds"]]
    if set(predictions["fold"]) != set(folds):
        raise InputError(
            f"{directory.predictions} and {directory.metrics} have different folds: run momkd-ray crossval again"
        )
    epochs = {fold: read_finished(directory, directory.fold(fold).metrics, _epochs) for fold in folds}
    return FinishedRun(metrics, predictions, configuration, label, classes, epochs)


def _epochs(content: bytes) -> pd.DataFrame:
    table = pd.DataFrame([json.loads(line) for line in content.decode().splitlines() if line.strip()])
    return table[["epoch", "val_auc", "loss_total"]].astype(float)


def _content(run: FinishedRun) -> dict[str, Any]:
    return {
        "version": __version__,
        "label": run.label,
        "classes": run.classes,
        "counts": run.figures["counts"],
        "cohort": run.figures.get("cohort", []),
        "metrics": [{"name": name, **run.figures["metrics"][key]} for key, name in _METRIC_NAMES.items()],
        "folds": run.figures["folds"],
        "several_tests": bool(run.predictions["patient_id"].duplicated().any()),
        "confusion": _confusion(run),
        "search": _search(run.figures["search"]) if "search" in run.figures else [],
        "drawn_by": run.figures.get("search", {}).get("drawn_by"),
        "stopped_by": run.figures.get("search", {}).get("stopped_by"),
        "configuration": run.configuration,
        **_figures(run),
    }


def _confusion(run: FinishedRun) -> list[list[int]]:
    """Counts patients by true class (rows) and predicted class (columns)."""
    cells = run.patients.groupby(["label", "predicted"]).size()
    return [[int(cells.get((truth, called), 0)) for called in run.classes] for truth in run.classes]


def _search(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each setting: its mean validation AUC or why there is none, and the folds that chose it."""
    stopped = {stop["setting"]: stop for stop in search.get("stopped", [])}
    rows = []
    for number, setting in enumerate(search["settings"]):
        by_fold = search["val_auc"][number]
        aucs = [auc for auc in by_fold if auc is not None]
        if stop := stopped.get(number):
            outcome = f"stopped after {stop['epoch']} epochs at {stop['val_auc']:.3f}, median {stop['median']:.3f}"
        elif len(aucs) < len(by_fold):
            n_diverged = len(by_fold) - len(aucs)
            outcome = f"diverged in {n_diverged} fold{'' if n_diverged == 1 else 's'}"
        else:
            outcome = f"{np.mean(aucs):.3f}"
        folds = ", ".join(fold for fold, choice in search["chosen"].items() if choice == number) or "none"
        rows.append({"setting": format_setting(setting), "outcome": outcome, "folds": folds})
    return rows


def _figures(run: FinishedRun) -> dict[str, Any]:
    positive = run.classes[1]
    y_by_fold, p_by_fold = {}, {}
    for fold in run.figures["folds"]:
        of_fold = run.predictions[run.predictions["fold"] == fold["fold"]]
        y_by_fold[fold["fold"]] = (of_fold["label"] == positive).to_numpy()
        p_by_fold[fold["fold"]] = of_fold[f"p_{positive}"].to_numpy()
    patients = run.patients
    pooled = (patients["label"] == positive).to_numpy(), patients[f"p_{positive}"].to_numpy()
    thresholds = [fold["threshold"] for fold in run.figures["folds"]]
    best = {fold["fold"]: fold["best_epoch"] for fold in run.figures["folds"]}
    return {
        "roc": figures.roc_figure(y_by_fold, p_by_fold, pooled, run.figures["metrics"]["auc"]),
        "pr": figures.pr_figure(y_by_fold, p_by_fold, pooled, run.figures["metrics"]["auprc"]),
        "histogram": figures.histogram_figure(*pooled, thresholds, run.classes),
        "training": {fold: figures.training_figure(fold, epochs, best[fold]) for fold, epochs in run.epochs.items()},
    }
