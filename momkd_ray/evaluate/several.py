"""Evaluates a finished run of more than two classes, or of a number, on an external cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.crossval.classes_run import ClassesRun
from momkd_ray.crossval.score_metrics import TRUE_SCORE
from momkd_ray.evaluate.classes import classes_notes, classes_summary, evaluate_patients_of_classes, write_classes
from momkd_ray.evaluate.cohort import ExternalCohort, Labels, read_cohort
from momkd_ray.evaluate.predictions import predicted_cohort
from momkd_ray.evaluate.scores import evaluate_patients_of_number, score_notes, scores_summary, write_scores
from momkd_ray.input_faults import REJECTED, OnError
from momkd_ray.progress import ProgressReporter


@dataclass(frozen=True)
class _Kind:
    """What differs between several classes and a number: statistics, notes, files and a summary as text."""

    statistics: Callable[[pd.DataFrame, ClassesRun], dict[str, Any]]
    notes: Callable[[dict[str, Any]], list[str]]
    write: Callable[[ClassesRun, ExternalCohort, pd.DataFrame, dict[str, Any], str], None]
    summary: Callable[[dict[str, Any]], str]


_CLASSES = _Kind(evaluate_patients_of_classes, classes_notes, write_classes, classes_summary)
_NUMBER = _Kind(evaluate_patients_of_number, score_notes, write_scores, scores_summary)


def evaluate_several(
    run: ClassesRun,
    labels: Labels,
    out: str,
    progress: ProgressReporter,
    *,
    features: str | None = None,
    predictions: str | None = None,
    gpus: float = 0,
    address: str | None = None,
    on_error: OnError = "stop",
) -> tuple[dict[str, Any], str]:
    """Evaluates a run's ensemble and writes evaluation.json, tables, figures and evaluation.html.

    Args:
        run: the run.
        labels: the clinical table of the cohort.
        out: the folder to write.
        progress: receives counts and notes.
        features: folder of feature files, which the folds' models predict; or else
        predictions: a file of predictions.
        gpus: number of GPUs of each task of prediction.
        address: of a running Ray cluster; by default one is started if the predictions take long.
        on_error: whether bad rows and feature files end it or are left out; all are listed in rejected.csv.

    Returns:
        The content of evaluation.json, and a summary as text.

    Raises:
        InputError: an input is bad; the message names it and its remedy.
        RunError: a task failed.
    """
    cohort = read_cohort(labels)
    for entry in cohort.understood:
        progress.info(entry.sentence())
    cohort, predicted = predicted_cohort(
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
    kind = _NUMBER if run.predicts_number else _CLASSES
    table = cohort.patients.join(predicted, how="inner").rename(columns={"number": TRUE_SCORE})
    evaluation = kind.statistics(table, run)
    evaluation["cohort"] |= {"flow": [asdict(step) for step in cohort.flow]}
    evaluation |= {
        "notes": kind.notes(evaluation),
        "source": {"features": features, "predictions": predictions},
        "version": __version__,
    }
    kind.write(run, cohort, table, evaluation, out)
    return evaluation, kind.summary(evaluation)
