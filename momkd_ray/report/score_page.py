"""The section of a regression's report that a classification's lacks: predicted against true numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from momkd_ray.config.data_sections import class_labels
from momkd_ray.config.quantile_ranges import bounds_of
from momkd_ray.crossval.score_metrics import TRUE_SCORE
from momkd_ray.model.expected_score import SCORE
from momkd_ray.report import figures
from momkd_ray.report.drawings import Drawing
from momkd_ray.report.finished_run import FinishedRun
from momkd_ray.report.score_figures import score_figure
from momkd_ray.statistics.linear_calibration import LinearCalibration, linear_calibration
from momkd_ray.statistics.percentiles import NO_WIDTH
from momkd_ray.statistics.spread import interval_text

SCORE_NAMES = {
    "spearman": "Spearman's rank correlation",
    "r2": "R2 (coefficient of determination)",
    "mae": "mean absolute error",
}
CALIBRATION = ("mean predicted", "mean true", "mean error (right: 0)", "slope (right: 1)", "intercept (right: 0)")


def calibration_row(patients: pd.DataFrame, calibration: LinearCalibration) -> list[str]:
    """Returns the cells under `CALIBRATION` of patients with `score` and `true_score`."""
    estimates = (calibration.mean_error, calibration.slope, calibration.intercept)
    return [f"{patients[SCORE].mean():.4g}", f"{patients[TRUE_SCORE].mean():.4g}", *(one.text for one in estimates)]


def score_section(run: FinishedRun) -> dict[str, Any] | None:
    """Returns what the section on the number shows; None for a classification."""
    if not run.predicts_number:
        return None
    patients = run.patients
    calibration = linear_calibration(patients[TRUE_SCORE], patients[SCORE])
    bounds = bounds_of(class_labels(run.section("cohort")["classes"]))
    drawing: Drawing = score_figure(patients, run.label, run.figures["metrics"]["spearman"]["pooled"])
    return {
        "header": CALIBRATION,
        "calibration": [calibration_row(patients, calibration)],
        "bounds": figures.listed(bounds),
        "drawing": drawing,
    }


def score_verdict(run: FinishedRun) -> str:
    """Says in a sentence how well the number was predicted."""
    spearman, r2, mae = (run.figures["metrics"][name] for name in SCORE_NAMES)
    of_spearman = f"no interval, as {NO_WIDTH}"
    if spearman["interval"] is not None:
        low, high = spearman["interval"]
        includes = "includes" if low <= 0 <= high else "excludes"
        of_spearman = f"95 % interval {interval_text(spearman['interval'])}, which {includes} 0, no relation"
    count = run.figures["counts"]["patients"]
    return (
        f"In {count:,} patients whom the models had not seen, Spearman's correlation of predicted and true {run.label} "
        f"is {spearman['pooled']:.3f} ({of_spearman}), R2 is {r2['pooled']:.3f} "
        f"({interval_text(r2['interval'])}), and the mean absolute error is {mae['pooled']:.3g} "
        f"({interval_text(mae['interval'], '.3g')})."
    )


def with_errors(table: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Adds `score`, `true_score` and `error` (their difference) to wrong calls, and puts the largest errors first.

    Args:
        table: `patient_id, fold` of each call.
        predictions: of the run.
    """
    own = predictions[["patient_id", "fold", SCORE, TRUE_SCORE]]
    joined = table.merge(own, on=["patient_id", "fold"], how="left", validate="one_to_one")
    joined[SCORE] = joined[SCORE].round(6)
    joined["error"] = (joined[SCORE] - joined[TRUE_SCORE]).round(6)
    order = joined.assign(size=joined["error"].abs()).sort_values(["size", "patient_id"], ascending=[False, True]).index
    return joined.loc[order].reset_index(drop=True)
