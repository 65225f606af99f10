"""Tests a fold of a regression, whose score is the expectation over quantile classes, and summarises the folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from momkd_ray.crossval.class_evaluate import pool_classes
from momkd_ray.crossval.fold_result import FoldResult, summarise_metrics
from momkd_ray.crossval.score_metrics import SCORE_METRICS, TRUE_SCORE, score_intervals, score_metrics
from momkd_ray.model.expected_score import SCORE
from momkd_ray.train.validation import REGRESSION


def with_scores(
    result: FoldResult,
    tested: pd.DataFrame,
    number: pd.Series[Any],
    predicted: Mapping[str, pd.Series[Any]],
) -> tuple[FoldResult, pd.DataFrame]:
    """Adds the scores and their metrics to what `evaluate_fold` returned.

    Args:
        result: of the fold.
        tested: one row per test patient.
        number: of each patient, by `patient_id`.
        predicted: of `val` and `test`, the score of each patient by `patient_id`.

    Returns:
        The result, with `SCORE_METRICS` of both; and the test patients with the columns `score` and `true_score`.
    """
    measured = {
        role: score_metrics(number.loc[own.index].to_numpy(), own.to_numpy()) for role, own in predicted.items()
    }
    result = replace(
        result,
        val_scores=measured["val"] | result.val_scores,
        test_scores=measured["test"] | result.test_scores,
    )
    own = predicted["test"].loc[tested["patient_id"]].to_numpy()
    return result, tested.assign(**{SCORE: own, TRUE_SCORE: number.loc[tested["patient_id"]].to_numpy()})


def summarise_scores(
    content: Mapping[str, Any], results: Sequence[FoldResult], pooled: pd.DataFrame, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Adds the metrics of the scores to the content of metrics.json, before those of the classes.

    Args:
        content: as `summarise` returns it.
        results: of the folds.
        pooled: predictions of all folds.
        classes: their names.
        seed: of the bootstrap.

    Returns:
        The content, with `task: regression`.
    """
    patients = pool_classes(pooled, classes)
    true_N, predicted_N = patients[TRUE_SCORE].to_numpy(), patients[SCORE].to_numpy()
    of_patients = score_metrics(true_N, predicted_N)
    intervals = score_intervals(true_N, predicted_N, seed)
    ordered = sorted(results, key=lambda result: result.fold)
    found = summarise_metrics(SCORE_METRICS, ordered, of_patients, intervals)
    return {"task": REGRESSION, **content, "metrics": found | content["metrics"]}
