"""Tests a fold with the threshold of its validation patients, and summarises the folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.crossval.class_evaluate import (
    check_columns,
    check_every_class,
    evaluate_fold_of_classes,
    summarise_classes,
)
from momkd_ray.crossval.fold_result import FoldResult, summarise_metrics
from momkd_ray.crossval.metrics import (
    METRICS,
    Bools,
    Floats,
    bootstrap_intervals,
    patient_table,
    scores,
    scores_of_predictions,
)
from momkd_ray.crossval.threshold import best_threshold
from momkd_ray.errors import InputError


def evaluate_fold(
    fold: int,
    val_slides: pd.DataFrame,
    test_slides: pd.DataFrame,
    classes: tuple[str, ...],
    n_train: int,
    best_epoch: int,
    *,
    ordered: bool = True,
) -> tuple[FoldResult, pd.DataFrame]:
    """Chooses the threshold on the validation patients and applies it to the test patients (docs/method.md §5).

    Args:
        fold: its number.
        val_slides: one row per slide: `slide_id, patient_id, label, p_<negative>, p_<positive>`.
        test_slides: the same of the test patients; their labels are used for the scores only.
        classes: names of the negative and the positive class; or of more classes, of which the likeliest is predicted.
        n_train: number of training patients.
        best_epoch: the epoch of the model's weights.
        ordered: whether more than two classes are in an order.

    Returns:
        The result, and one row per test patient:
        `patient_id, label, p_<negative>, p_<positive>, predicted, fold`.

    Raises:
        InputError: a patient is in both sets, a set lacks a class, or a label is not one of the classes.
    """
    validation, test = patient_table(val_slides), patient_table(test_slides)
    shared = sorted(set(validation["patient_id"]) & set(test["patient_id"]))
    if shared:
        raise InputError(f"fold {fold}: patient {shared[0]} is both validated and tested on: correct the folds")
    if len(classes) > 2:
        return evaluate_fold_of_classes(fold, validation, test, classes, n_train, best_epoch, ordered=ordered)
    y_V, p_V = _truth(validation, classes, f"the validation patients of fold {fold}")
    y_T, p_T = _truth(test, classes, f"the test patients of fold {fold}")
    threshold = best_threshold(y_V, p_V)
    result = FoldResult(
        fold=fold,
        threshold=threshold,
        n_train=n_train,
        n_val=len(validation),
        n_test=len(test),
        best_epoch=best_epoch,
        val_scores=scores(y_V, p_V, threshold),
        test_scores=scores(y_T, p_T, threshold),
    )
    columns = ["patient_id", "label", *(f"p_{name}" for name in classes)]
    predicted = np.where(p_T >= threshold, classes[1], classes[0])
    return result, test[columns].assign(predicted=predicted, fold=fold)


def summarise(
    results: list[FoldResult], pooled: pd.DataFrame, classes: tuple[str, ...], seed: int, *, ordered: bool = True
) -> dict[str, Any]:
    """Computes the content of metrics.json, which does not depend on the order of folds or patients.

    Args:
        results: of the folds; one of a fixed split.
        pooled: predictions of all folds, one row per patient and fold in which it was tested, as `evaluate_fold`
            returns them. Pooled metrics are of the patients of `pool_patients`.
        classes: names of the negative and the positive class.
        seed: of the bootstrap.
        ordered: whether more than two classes are in an order.

    Returns:
        `metrics`: for each metric `mean` and `sd` (of a sample, n - 1; None of one fold) over folds, `pooled`,
        `interval` (95 %, see `bootstrap_intervals`) and `folds`; `counts`: tested patients, in total and of each class;
        `folds`: every `FoldResult`.

    Raises:
        InputError: a fold is there twice, or the predictions are not those of the folds.
    """
    results = sorted(results, key=lambda result: result.fold)
    _check_pooled(results, pooled)
    if len(classes) > 2:
        return summarise_classes(results, pooled, classes, seed, ordered=ordered)
    patients = pool_patients(pooled, {one.fold: one.threshold for one in results if one.threshold is not None}, classes)
    y_N, p_N = _truth(patients, classes, "the pooled test patients")
    predicted_N = _as_positive(patients["predicted"], classes, "the pooled predictions")
    pooled_scores = scores_of_predictions(y_N, p_N, predicted_N)
    intervals = bootstrap_intervals(y_N, p_N, predicted_N, seed)
    metrics = summarise_metrics(METRICS, results, pooled_scores, intervals)
    per_class = {classes[0]: int((~y_N).sum()), classes[1]: int(y_N.sum())}
    counts = {"patients": len(patients), "classes": per_class}
    return {"metrics": metrics, "counts": counts, "folds": [result.to_json() for result in results]}


def pool_patients(predictions: pd.DataFrame, thresholds: Mapping[int, float], classes: tuple[str, ...]) -> pd.DataFrame:
    """Combines the predictions of each patient's folds, for splits that test patients several times.

    The probability is the mean over those folds, and the class is the one that most of them predict. In a tie it is the
    positive class if the mean of probability minus threshold over the folds is not negative. The prediction of a
    patient tested once does not change.

    Args:
        predictions: `patient_id, label, p_<negative>, p_<positive>, predicted, fold`, one row per patient and fold.
        thresholds: by fold.
        classes: names of the negative and the positive class.

    Returns:
        One row per patient: `patient_id` (sorted), `label`, `p_<negative>`, `p_<positive>`, `predicted`.

    Raises:
        InputError: a column or class is missing, or a patient has another label in another fold.
    """
    ordered = predictions.sort_values(["patient_id", "fold"])
    y_R, p_R = _truth(ordered, classes, "the test patients")
    table = pd.DataFrame(
        {
            "patient_id": ordered["patient_id"],
            "positive": y_R,
            "votes": np.where(_as_positive(ordered["predicted"], classes, "the predictions"), 1, -1),
            "margin": p_R - ordered["fold"].map(thresholds).to_numpy(),
        }
    )
    probabilities = [f"p_{name}" for name in classes]
    by_patient = pd.concat([table, ordered[probabilities]], axis=1).groupby("patient_id", sort=True)
    several = by_patient["positive"].nunique()
    for patient in several.index[several > 1]:
        raise InputError(f"patient {patient} has another label in another fold: cross-validate again")
    votes = by_patient["votes"].sum()
    called = (votes > 0) | ((votes == 0) & (by_patient["margin"].mean() >= 0))
    pooled = by_patient[probabilities].mean()
    pooled.insert(0, "label", np.where(by_patient["positive"].first(), classes[1], classes[0]))
    pooled["predicted"] = np.where(called, classes[1], classes[0])
    return pooled.reset_index()


def _check_pooled(results: list[FoldResult], pooled: pd.DataFrame) -> None:
    folds = [result.fold for result in results]
    if len(set(folds)) < len(folds):
        raise InputError(f"the folds {folds} cannot be summarised: each may be there once")
    twice = pooled[pooled.duplicated(["patient_id", "fold"])]
    if len(twice):
        patient, fold = twice["patient_id"].iloc[0], twice["fold"].iloc[0]
        raise InputError(f"patient {patient} is predicted twice in fold {fold}: keep one row per patient and fold")
    counts = pooled["fold"].value_counts().to_dict()
    expected = {result.fold: result.n_test for result in results}
    if counts != expected:
        raise InputError(f"the pooled predictions have {counts} patients by fold, but the folds tested {expected}")


def _truth(patients: pd.DataFrame, classes: tuple[str, ...], whose: str) -> tuple[Bools, Floats]:
    """Returns whether each patient is positive (N,), and its predicted probability of the positive class (N,)."""
    check_columns(patients, classes, whose)
    y_N = _as_positive(patients["label"], classes, whose)
    check_every_class(y_N.astype(np.int64), classes, whose)
    return y_N, patients[f"p_{classes[1]}"].to_numpy(dtype=float)


def _as_positive(names: pd.Series[Any], classes: tuple[str, ...], whose: str) -> Bools:
    unknown = names[~names.isin(classes)]
    if len(unknown):
        raise InputError(f"{whose} have the label {unknown.iloc[0]!r}, not {classes[0]!r} or {classes[1]!r}")
    return np.asarray(names == classes[1], dtype=bool)
