"""The content of report.html for more than two classes, where the likeliest class is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.crossval.class_evaluate import numbers_of_classes
from momkd_ray.crossval.class_metrics import auc_name, confusion_counts
from momkd_ray.crossval.score_metrics import TRUE_SCORE, score_metrics
from momkd_ray.model.expected_score import SCORE
from momkd_ray.report import figures
from momkd_ray.report.choices import told_choices
from momkd_ray.report.class_figures import classes_roc_figure, confusion_figure
from momkd_ray.report.curves import calibration_drawing
from momkd_ray.report.drawings import Drawing
from momkd_ray.report.finished_run import FinishedRun
from momkd_ray.report.patients import MOST_WRONG, described, flow_of, site_column, table_one
from momkd_ray.report.score_page import SCORE_NAMES, score_section, score_verdict, with_errors
from momkd_ray.report.sections import shared_sections
from momkd_ray.statistics.calibration import brier, calibration_intercept, calibration_slope
from momkd_ray.statistics.spread import beside_chance, interval_text
from momkd_ray.train.class_auc import auc_of_classes
from momkd_ray.train.validation import SPEARMAN

TEMPLATE = "classes.html.jinja"
_BY_SITE = ("Spearman", "mean absolute error")  # columns by site of a regression
_NAMES = {
    **SCORE_NAMES,
    "auc": "macro AUC, one against the rest",
    "auprc": "macro AUPRC (average precision)",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean sensitivity)",
    "kappa": "quadratic-weighted kappa",
}


def metric_name(key: str, classes: tuple[str, ...]) -> str:
    """Returns a metric's name in words."""
    of_class = {auc_name(name): f"AUC of {name} against the rest" for name in classes}
    return _NAMES.get(key) or of_class.get(key, key)


def classes_content(run: FinishedRun, compared: str | None) -> dict[str, Any]:
    """Collects what the page of several classes shows, drawings included; `compared` is as for `shared_sections`."""
    patients, seed = run.patients, int(run.section("folds").get("seed", 1))
    y_N = numbers_of_classes(patients["label"], run.classes, "the pooled patients")
    p_NY = patients[[f"p_{name}" for name in run.classes]].to_numpy(dtype=float)
    predicted_N = numbers_of_classes(patients["predicted"], run.classes, "the pooled predictions")
    confusion_YY = confusion_counts(y_N, predicted_N, np.ones((1, len(y_N))), len(run.classes))[0].astype(int)
    metrics = run.figures["metrics"]
    best = {fold["fold"]: fold["best_epoch"] for fold in run.figures["folds"]}
    aucs = {name: metrics[auc_name(name)]["pooled"] for name in run.classes}
    calibrations = [
        calibration_drawing(y_N == y, {"raw": p_NY[:, y]}, name, seed, f"calibration-{y}")
        for y, name in enumerate(run.classes)
    ]
    score = score_section(run)
    found: list[Drawing] = [
        *([] if score is None else [score["drawing"]]),
        classes_roc_figure(y_N, p_NY, run.classes, aucs, metrics["auc"]["pooled"]),
        confusion_figure(confusion_YY, run.classes),
        *calibrations,
        *(figures.training_figure(fold, epochs, best[fold]) for fold, epochs in run.epochs.items()),
    ]
    table = described(run)
    site = site_column(run, table)
    wrong = wrong_classes(run)
    shared = shared_sections(run, wrong, site, compared)
    return shared | {
        "label": run.label,
        "classes": run.classes,
        "ordered": "kappa" in metrics,
        "verdict": score_verdict(run) if run.predicts_number else _verdict(run),
        "score": score,
        "counts": run.figures["counts"],
        "flow": flow_of(run),
        "table_one": {by: table_one(table, by) for by in ("class", "fold")},
        "cohort": run.figures.get("cohort", []),
        "metrics": [{"name": metric_name(key, run.classes), **value} for key, value in metrics.items()],
        "folds": run.figures["folds"],
        "calibration": _calibration_rows(y_N, p_NY, run.classes),
        "calibrations": [drawing.name for drawing in calibrations],
        "wrong": [[str(cell) for cell in row] for row in wrong.head(MOST_WRONG).to_numpy().tolist()],
        "wrong_columns": list(wrong.columns),
        "n_wrong": len(wrong),
        "site": site,
        "groups": [] if site is None else _site_rows(run, table[site]),
        "groups_header": ["patients", "share of right calls", "macro AUC", *(_BY_SITE if run.predicts_number else ())],
        **told_choices(run, SPEARMAN.name if run.predicts_number else "macro AUC"),
        "training": [f"training-fold-{fold}" for fold in run.epochs],
        "drawings": {drawing.name: drawing for drawing in found} | shared["drawings"],
        "figures_folder": "figures",
    }


def _calibration_rows(y_N: np.ndarray, p_NY: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """Returns for each class its name, mean probability, share, calibration intercept and slope, and Brier score."""
    return [
        [
            name,
            f"{p_NY[:, y].mean():.3f}",
            f"{np.mean(y_N == y):.3f}",
            calibration_intercept(y_N == y, p_NY[:, y]).text,
            calibration_slope(y_N == y, p_NY[:, y]).text,
            f"{brier(y_N == y, p_NY[:, y]):.3f}",
        ]
        for y, name in enumerate(classes)
    ]


def _site_rows(run: FinishedRun, sites: pd.Series[Any]) -> list[list[str]]:
    """Returns name, patients, share of right calls and macro AUC of each site's patients; of a number `_BY_SITE`."""
    patients = run.patients
    own_site = patients["patient_id"].map(sites).fillna("missing").astype(str)
    rows = []
    for name in sorted(set(own_site)):
        own = patients[own_site == name]
        y_N = numbers_of_classes(own["label"], run.classes, "the pooled patients")
        p_NY = own[[f"p_{of_class}" for of_class in run.classes]].to_numpy(dtype=float)
        everyone = len(set(y_N.tolist())) == len(run.classes)
        auc = f"{auc_of_classes(y_N, p_NY):.3f}" if everyone else "not every class is there"
        rows.append([name, str(len(own)), f"{(own['label'] == own['predicted']).mean():.2f}", auc])
        if run.predicts_number:
            measured = own[TRUE_SCORE].nunique() > 1
            of_site = score_metrics(own[TRUE_SCORE], own[SCORE]) if measured else {}
            rows[-1] += [f"{of_site[key]:.3f}" if of_site else "one number only" for key in ("spearman", "mae")]
    return rows


def wrong_classes(run: FinishedRun) -> pd.DataFrame:
    """Lists the wrongly called test patients, those of the smallest probability of their own class first.

    Returns:
        `patient_id, fold, label, predicted, p_label, p_predicted`; of a regression also `score, true_score, error`, and
        the largest errors first.
    """
    wrong = run.predictions[run.predictions["label"] != run.predictions["predicted"]].copy()
    for name in ("label", "predicted"):
        wrong[f"p_{name} "] = [row[f"p_{row[name]}"] for row in wrong.to_dict("records")]
    table = wrong[["patient_id", "fold", "label", "predicted"]].copy()
    table["p_label"], table["p_predicted"] = wrong["p_label "].round(6), wrong["p_predicted "].round(6)
    if run.predicts_number:
        return with_errors(table, run.predictions)
    return table.sort_values(["p_label", "patient_id"]).reset_index(drop=True)


def _verdict(run: FinishedRun) -> str:
    auc, counts = run.figures["metrics"]["auc"], run.figures["counts"]
    kappa = run.figures["metrics"].get("kappa")
    agreement = (
        ""
        if kappa is None
        else f" The quadratic-weighted kappa of the predicted classes is {kappa['pooled']:.3f} "
        f"({interval_text(kappa['interval'])})."
    )
    return (
        f"{run.label}, {figures.listed(run.classes)}: tested on {counts['patients']:,} patients whom the models had "
        f"not seen, the pooled macro AUC is {auc['pooled']:.3f} {beside_chance(auc['interval'])}."
        f"{agreement}"
    )
