"""Writes report.html: the results of a cross-validation in one file that loads nothing from a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from momkd_ray import storage
from momkd_ray.report import figures
from momkd_ray.report.choices import told_choices
from momkd_ray.report.classes_page import TEMPLATE as CLASSES_TEMPLATE
from momkd_ray.report.classes_page import classes_content, wrong_classes
from momkd_ray.report.curves import ForestRow, calibration_drawing, decision_drawing, forest_drawing
from momkd_ray.report.drawings import Drawing, write_drawings
from momkd_ray.report.finished_run import FinishedRun, read_finished_run
from momkd_ray.report.patients import (
    MOST_WRONG,
    described,
    flow_of,
    group_rows,
    site_column,
    table_one,
    wrong_calls,
)
from momkd_ray.report.sections import shared_sections
from momkd_ray.run.finished import pair
from momkd_ray.run.layout import RunDirectory
from momkd_ray.statistics.calibration import brier, calibration_intercept, calibration_slope, scaled_brier
from momkd_ray.statistics.percentiles import NO_WIDTH
from momkd_ray.statistics.spread import beside_chance, interval_text, mean_and_sd

_METRIC_NAMES = {
    "auc": "AUC",
    "auprc": "AUPRC (average precision)",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_FIGURES = "figures"


def write_report(run_dir: str, compared: str | None = None) -> str:
    """Writes the report of a finished cross-validation, and its figures as PNG, SVG and CSV beside it.

    Args:
        run_dir: the run directory, local or `s3://`.
        compared: directory of a finished comparison that says what the omics bought; by default the run directory, if
            it holds one.

    Returns:
        The location of the report.

    Raises:
        InputError: a file of the cross-validation is missing or damaged.
    """
    directory = RunDirectory(run_dir)
    run = read_finished_run(directory)
    several = len(run.classes) > 2
    content = (classes_content if several else _content)(run, compared)
    environment = Environment(
        loader=PackageLoader("momkd_ray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"mean_and_sd": mean_and_sd, "interval_text": interval_text, "NO_WIDTH": NO_WIDTH}
    page = environment.get_template(CLASSES_TEMPLATE if several else "page.html.jinja").render(content)
    write_drawings([one for one in content["drawings"].values() if one is not None], directory.figures)
    wrong = wrong_classes(run) if several else wrong_calls(run)
    storage.write_text(directory.wrong_calls, wrong.to_csv(index=False, lineterminator="\n"))
    storage.write_text(directory.report, page)
    return directory.report


def _content(run: FinishedRun, compared: str | None) -> dict[str, Any]:
    table = described(run)
    site = site_column(run, table)
    groups = _groups(run, table, site)
    probabilities = _probabilities(run)
    wrong = wrong_calls(run)
    shared = shared_sections(run, wrong, site, compared)
    drawings = _drawings(run, probabilities) | {"groups": _forest(run, groups)} | shared["drawings"]
    return shared | {
        "label": run.label,
        "classes": run.classes,
        "verdict": _verdict(run),
        **told_choices(run, "AUC", f"the threshold (highest F1 of the class “{run.classes[1]}”)"),
        "counts": run.figures["counts"],
        "flow": flow_of(run),
        "table_one": {by: table_one(table, by) for by in ("class", "fold")},
        "has_clinical": run.clinical is not None,
        "cohort": run.figures.get("cohort", []),
        "metrics": [{"name": name, **run.figures["metrics"][key]} for key, name in _METRIC_NAMES.items()],
        "folds": run.figures["folds"],
        "several_tests": bool(run.predictions["patient_id"].duplicated().any()),
        "confusion": _confusion(run),
        "calibration": _calibration(run, probabilities),
        "train_prevalence": None if run.trained is None else run.trained.train_prevalence,
        "site": site,
        "groups": groups,
        "wrong": _wrong_rows(run, wrong),
        "n_wrong": len(wrong),
        "drawings": drawings,
        "training": [f"training-fold-{fold}" for fold in run.epochs],
        "figures_folder": _FIGURES,
    }


def _verdict(run: FinishedRun) -> str:
    negative, positive = pair(run.classes, "this page")
    auc = run.figures["metrics"]["auc"]
    counts = run.figures["counts"]
    return (
        f"{run.label}, {positive} against {negative}: tested on {counts['patients']:,} patients whom the models had "
        f"not seen, the pooled AUC is {auc['pooled']:.3f} {beside_chance(auc['interval'])}."
    )


def _probabilities(run: FinishedRun) -> dict[str, np.ndarray]:
    """Returns each pooled patient's probability as given, and corrected by each fold's training prevalence."""
    positive = f"p_{run.classes[1]}"
    found = {"raw": run.patients[positive].to_numpy(dtype=float)}
    if run.trained is not None and any(shift.intercept for shift in run.trained.shifts.values()):
        corrected = run.predictions.assign(corrected=np.nan)
        for fold, shift in run.trained.shifts.items():
            own = corrected["fold"] == fold
            corrected.loc[own, "corrected"] = shift.apply(corrected.loc[own, positive])
        by_patient = corrected.sort_values(["patient_id", "fold"]).groupby("patient_id", sort=True)["corrected"].mean()
        found["corrected"] = by_patient.loc[run.patients["patient_id"]].to_numpy()
    return found


def _truth(run: FinishedRun) -> np.ndarray:
    truth: np.ndarray = (run.patients["label"] == run.classes[1]).to_numpy()
    return truth


def _calibration(run: FinishedRun, probabilities: dict[str, np.ndarray]) -> list[list[str]]:
    y, rows = _truth(run), []
    for kind, p in probabilities.items():
        estimates = [calibration_intercept(y, p).text, calibration_slope(y, p).text]
        rows.append([kind, f"{p.mean():.3f}", *estimates, f"{brier(y, p):.3f}", f"{scaled_brier(y, p):.3f}"])
    return rows


def _confusion(run: FinishedRun) -> list[list[int]]:
    """Counts patients by true class (rows) and predicted class (columns)."""
    cells = run.patients.groupby(["label", "predicted"]).size()
    return [[int(cells.get((truth, called), 0)) for called in run.classes] for truth in run.classes]


def _groups(run: FinishedRun, table: pd.DataFrame, site: str | None) -> dict[str, list[dict[str, Any]]]:
    by_fold = {f"fold {fold}": own for fold, own in run.predictions.groupby("fold", sort=True)}
    groups = {"By fold": group_rows(by_fold, run.classes)}
    if site is not None:
        sites = run.patients["patient_id"].map(table[site]).fillna("missing").astype(str)
        by_site = {str(name): run.patients[sites == name] for name in sorted(set(sites))}
        groups[f"By {site}"] = group_rows(by_site, run.classes)
    return groups


def _forest(run: FinishedRun, groups: dict[str, list[dict[str, Any]]]) -> Drawing:
    rows = []
    for title, own in groups.items():
        rows.append(ForestRow(title))
        rows += [
            ForestRow(f"  {row['name']}", row["auc"], row.get("interval"), f"{row['positives']} of {row['patients']}")
            for row in own
        ]
    caption = f"AUC with 95 % interval (DeLong); right: {run.classes[1]} of all patients; dashed: pooled."
    alt = "Forest plot of the AUC " + " and ".join(title.lower() for title in groups)
    return forest_drawing("groups", rows, "test AUC", run.figures["metrics"]["auc"]["pooled"], caption, alt)


def _wrong_rows(run: FinishedRun, wrong: pd.DataFrame) -> list[list[str]]:
    positive = f"p_{run.classes[1]}"
    return [
        [
            *(str(r[name]) for name in ("patient_id", "fold", "label", "predicted")),
            f"{r[positive]:.3f}",
            f"{r['threshold']:.3f}",
            str(r["slides"]),
        ]
        for r in wrong.head(MOST_WRONG).to_dict("records")
    ]


def _drawings(run: FinishedRun, probabilities: dict[str, np.ndarray]) -> dict[str, Drawing | None]:
    positive = run.classes[1]
    y_by_fold, p_by_fold = {}, {}
    for fold, own in run.predictions.groupby("fold", sort=True):
        y_by_fold[int(str(fold))] = (own["label"] == positive).to_numpy()
        p_by_fold[int(str(fold))] = own[f"p_{positive}"].to_numpy()
    pooled = _truth(run), probabilities["raw"]
    best = {fold["fold"]: fold["best_epoch"] for fold in run.figures["folds"]}
    seed = int(run.section("folds").get("seed", 1))
    found = [
        figures.roc_figure(y_by_fold, p_by_fold, pooled, run.figures["metrics"]["auc"], seed),
        figures.pr_figure(y_by_fold, p_by_fold, pooled, run.figures["metrics"]["auprc"]),
        figures.histogram_figure(*pooled, list(run.thresholds.values()), run.classes),
        calibration_drawing(pooled[0], probabilities, positive, seed),
        decision_drawing(pooled[0], {list(probabilities)[-1]: list(probabilities.values())[-1]}, positive, seed),
        *(figures.training_figure(fold, epochs, best[fold]) for fold, epochs in run.epochs.items()),
    ]
    return {drawing.name: drawing for drawing in found}
