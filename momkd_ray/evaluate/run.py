"""Evaluates a finished run on an external cohort: from tables and features to files, figures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.crossval.trained_run import TrainedRun, read_run
from momkd_ray.evaluate.against import check_shared
from momkd_ray.evaluate.cohort import ExternalCohort, Labels, read_cohort
from momkd_ray.evaluate.evaluation import evaluate_patients, with_probabilities
from momkd_ray.evaluate.options import EvaluationOptions
from momkd_ray.evaluate.page import drawings_of, render_page
from momkd_ray.evaluate.predictions import FOLD, overlap_notes, predicted_cohort, read_predictions
from momkd_ray.evaluate.subgroups import levels_of
from momkd_ray.evaluate.tables import comparison_table, performance_table, subgroup_table
from momkd_ray.input_faults import REJECTED, OnError
from momkd_ray.progress import ProgressReporter
from momkd_ray.report.drawings import write_drawings
from momkd_ray.run.layout import EXCLUDED
from momkd_ray.statistics.delong import NO_VARIANCE

FIGURES = "figures"


def evaluate_run(
    run_dir: str,
    labels: Labels,
    out: str,
    options: EvaluationOptions,
    progress: ProgressReporter,
    *,
    features: str | None = None,
    predictions: str | None = None,
    against: Sequence[str] = (),
    gpus: float = 0,
    address: str | None = None,
    on_error: OnError = "stop",
) -> dict[str, Any]:
    """Evaluates a run's ensemble and writes evaluation.json, tables, figures and evaluation.html.

    Args:
        run_dir: a finished cross-validation.
        labels: the clinical table of the cohort.
        out: the folder to write.
        options: fixed points and subgroups.
        progress: receives counts and notes.
        features: folder of feature files, which the folds' models predict; or else
        predictions: a file of predictions.
        against: files of other predictions.
        gpus: number of GPUs of each task of prediction.
        address: of a running Ray cluster; by default one is started if the predictions take long.
        on_error: whether bad rows and feature files end it or are left out; all are listed in rejected.csv.

    Returns:
        The content of evaluation.json.

    Raises:
        InputError: an input is bad; the message names it and its remedy.
        RunError: a task failed.
    """
    run = read_run(run_dir)
    cohort = read_cohort(labels)
    for entry in cohort.understood:
        progress.info(entry.sentence())
    others = {path: read_predictions(path, run.classes, run.label, cohort) for path in against}
    # what is wrong with them is said before any model runs
    check_shared(cohort.patients, others)
    for group in options.subgroups:
        levels_of(cohort.patients[group.column], group)
    cohort, table = predicted_cohort(
        run,
        cohort,
        labels,
        storage.join(out, REJECTED),
        progress,
        features=features,
        predictions=predictions,
        gpus=gpus,
        address=address,
        on_error=on_error,
    )
    return _evaluate(run, cohort, table, options, others, out, {"features": features, "predictions": predictions})


def _evaluate(
    run: TrainedRun,
    cohort: ExternalCohort,
    predicted: pd.DataFrame,
    options: EvaluationOptions,
    others: dict[str, pd.DataFrame],
    out: str,
    source: dict[str, str | None],
) -> dict[str, Any]:
    table = cohort.patients.join(with_probabilities(predicted, run, run.recalibration()), how="inner")
    evaluation = evaluate_patients(table, run, options, others)
    evaluation["cohort"] |= {"flow": [asdict(step) for step in cohort.flow]}
    evaluation |= {"notes": _notes(evaluation), "source": source, "version": __version__}
    drawings = drawings_of(evaluation, table, options.seed)
    tables = {
        "performance.csv": performance_table(evaluation),
        "subgroups.csv": subgroup_table(evaluation),
        "comparisons.csv": comparison_table(evaluation),
        EXCLUDED: cohort.excluded,
        "predictions.csv": _named(table, run, cohort.patient_column),
    }
    for name, one in tables.items():
        location = storage.join(out, name)
        if len(one.columns):
            storage.write_text(location, one.to_csv(index=False, lineterminator="\n"))
        else:  # of an earlier evaluation with subgroups or comparisons
            storage.delete(location)
    write_drawings(list(drawings.values()), storage.join(out, FIGURES))
    storage.write_text(storage.join(out, "evaluation.html"), render_page(evaluation, drawings, FIGURES))
    storage.write_json(storage.join(out, "evaluation.json"), evaluation)
    return evaluation


def _notes(evaluation: dict[str, Any]) -> list[str]:
    """Returns what a reader must know before any figure."""
    notes, cohort = overlap_notes(evaluation), evaluation["cohort"]
    slope = evaluation["calibration"]["recalibrated"]["map"]["slope"]
    if slope <= 0:
        notes.append(
            f"On the run's validation patients the slope of the recalibration is {slope:.2f}, not above 0: higher "
            "probabilities did not go with more positive patients there, so the recalibrated probability is of no use."
        )
    if evaluation["discrimination"]["auc"]["delong_interval"] is None:
        notes.append(
            f"The AUC has no interval by DeLong: {NO_VARIANCE}, as where every {evaluation['classes'][1]} patient "
            "ranks above all others, or all have one probability. The bootstrap draws from the same patients, and "
            "gives none either then."
        )
    fewest = min(cohort["positives"], cohort["negatives"])
    if fewest < 20:
        notes.append(
            f"The smaller class has {fewest} patients: every interval is wide, and calibration cannot be judged."
        )
    return notes


def _named(table: pd.DataFrame, run: TrainedRun, patient_column: str) -> pd.DataFrame:
    """Returns the evaluated patients with the user's names of columns and classes."""
    negative, positive = run.classes
    named = pd.DataFrame(
        {
            patient_column: table.index.astype(str),
            "label": [run.classes[y] for y in table["y"]],
            f"p_{negative}": 1 - table["p"].to_numpy(),
            f"p_{positive}": table["p"].to_numpy(),
            "predicted": [positive if p >= run.threshold else negative for p in table["p"]],
            f"corrected_p_{positive}": table["corrected"].to_numpy(),
            f"recalibrated_p_{positive}": table["recalibrated"].to_numpy(),
        }
    )
    for column in table.columns:
        if column.startswith(FOLD):
            named[column] = table[column].to_numpy()
    return named
