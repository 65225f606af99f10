"""report.html: what a cross-validation came to, in one file that needs no network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from pyarrow import ArrowException

from momkd_ray import __version__, storage
from momkd_ray.crossval.evaluate import pool_patients
from momkd_ray.errors import InputError
from momkd_ray.report import figures

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
    """What a finished cross-validation left in its directory."""

    figures: dict[str, Any]  # metrics.json
    predictions: pd.DataFrame  # predictions.parquet: a row a patient and fold it was tested in
    settings: str  # run.yaml
    label: str
    classes: tuple[str, str]
    epochs: dict[int, pd.DataFrame]  # by fold

    @property
    def patients(self) -> pd.DataFrame:
        """One row a tested patient, as pooled in metrics.json."""
        thresholds = {fold["fold"]: fold["threshold"] for fold in self.figures["folds"]}
        return pool_patients(self.predictions, thresholds, self.classes)


def write_report(run_dir: str) -> str:
    """Build `report.html` from what a finished cross-validation wrote, and return its location.

    Args:
        run_dir: local or s3://, holding `metrics.json`, `predictions.parquet`, `run.yaml` and, for every
            fold, `fold=<i>/metrics.jsonl`.

    Raises:
        InputError: a file is missing, or is not what a cross-validation writes.
    """
    run = _read_run(run_dir)
    loader = PackageLoader("momkd_ray.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.jinja").render(_content(run))
    location = storage.join(run_dir, "report.html")
    storage.write_text(location, page)
    return location


def _read_run(run_dir: str) -> FinishedRun:
    metrics = _read(run_dir, "metrics.json", json.loads)
    settings = _read(run_dir, "run.yaml", bytes.decode)
    tree = _read(run_dir, "run.yaml", yaml.safe_load)
    predictions = _read(run_dir, "predictions.parquet", lambda content: pd.read_parquet(io.BytesIO(content)))
    try:
        cohort = tree["cohort"]
        label, classes = str(cohort["label"]), (str(cohort["negative"]), str(cohort["positive"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{run_dir}/run.yaml is no configuration: it lacks cohort's label or classes") from error
    missing = [name for name in ("metrics", "counts", "folds") if name not in metrics]
    if missing:
        raise InputError(f"{run_dir}/metrics.json lacks {missing[0]!r}: run momkd-ray crossval again")
    wanted = ["patient_id", "label", "predicted", "fold", *(f"p_{name}" for name in classes)]
    absent = [column for column in wanted if column not in predictions.columns]
    if absent:
        raise InputError(f"{run_dir}/predictions.parquet lacks the column {absent[0]}: run momkd-ray crossval again")
    folds = [fold["fold"] for fold in metrics["folds"]]
    if set(predictions["fold"]) != set(folds):
        raise InputError(f"{run_dir}/predictions.parquet and metrics.json have different folds: cross-validate again")
    epochs = {fold: _read(run_dir, f"fold={fold}/metrics.jsonl", _epochs) for fold in folds}
    return FinishedRun(metrics, predictions, settings, label, classes, epochs)


def _read(run_dir: str, name: str, parse: Callable[[bytes], Any]) -> Any:
    location = storage.join(run_dir, name)
    try:
        content = storage.read_bytes(location)
    except FileNotFoundError as error:
        raise InputError(
            f"no finished cross-validation in {run_dir}: {name} is missing; run momkd-ray crossval first"
        ) from error
    try:
        return parse(content)
    except (ValueError, KeyError, yaml.YAMLError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} is damaged ({reason}): run momkd-ray crossval again") from error


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
        "settings": run.settings,
        **_figures(run),
    }


def _confusion(run: FinishedRun) -> list[list[int]]:
    """Patients by true class (rows) and predicted class (columns)."""
    cells = run.patients.groupby(["label", "predicted"]).size()
    return [[int(cells.get((truth, called), 0)) for called in run.classes] for truth in run.classes]


def _search(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Every setting, its mean validation AUC or why there is none, and the folds that chose it."""
    stopped = {stop["setting"]: stop for stop in search.get("stopped", [])}
    rows = []
    for place, setting in enumerate(search["settings"]):
        known = [auc for auc in search["val_auc"][place] if auc is not None]
        if stop := stopped.get(place):
            outcome = f"stopped after {stop['epoch']} epochs at {stop['val_auc']:.3f}, median {stop['median']:.3f}"
        elif len(known) < len(search["val_auc"][place]):
            outcome = f"diverged in {len(search['val_auc'][place]) - len(known)} folds"
        else:
            outcome = f"{np.mean(known):.3f}"
        folds = ", ".join(fold for fold, choice in search["chosen"].items() if choice == place) or "none"
        words = ", ".join(f"{key} = {value}" for key, value in setting.items())
        rows.append({"setting": words, "outcome": outcome, "folds": folds})
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
