"""Tests a fold of more than two classes, where the likeliest class is predicted, and summarises the folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.crossval.class_metrics import Integers, class_intervals, class_metric_names, class_scores
from momkd_ray.crossval.fold_result import FoldResult, summarise_metrics
from momkd_ray.crossval.metrics import Floats
from momkd_ray.crossval.score_metrics import TRUE_SCORE
from momkd_ray.errors import InputError
from momkd_ray.model.expected_score import SCORE


def evaluate_fold_of_classes(
    fold: int,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    classes: Sequence[str],
    n_train: int,
    best_epoch: int,
    *,
    ordered: bool,
) -> tuple[FoldResult, pd.DataFrame]:
    """Scores the validation and the test patients, one row each; see `evaluate_fold`. No threshold is chosen."""
    y_V, p_VY = truth_of_classes(validation, classes, f"the validation patients of fold {fold}")
    y_T, p_TY = truth_of_classes(test, classes, f"the test patients of fold {fold}")
    predicted_T = p_TY.argmax(axis=1)
    result = FoldResult(
        fold=fold,
        threshold=None,
        n_train=n_train,
        n_val=len(validation),
        n_test=len(test),
        best_epoch=best_epoch,
        val_scores=class_scores(y_V, p_VY, p_VY.argmax(axis=1), classes, ordered=ordered),
        test_scores=class_scores(y_T, p_TY, predicted_T, classes, ordered=ordered),
    )
    columns = ["patient_id", "label", *(f"p_{name}" for name in classes)]
    return result, test[columns].assign(predicted=[classes[y] for y in predicted_T], fold=fold)


def summarise_classes(
    results: Sequence[FoldResult], pooled: pd.DataFrame, classes: Sequence[str], seed: int, *, ordered: bool
) -> dict[str, Any]:
    """Computes the content of metrics.json; see `summarise`.

    Args:
        results: sorted by fold.
        pooled: predictions of all folds, as `evaluate_fold_of_classes` returns them.
        classes: their names.
        seed: of the bootstrap.
        ordered: whether they are in an order.

    Returns:
        As `summarise`, with `classes`: their names in order and whether they are `ordered`.
    """
    patients = pool_classes(pooled, classes)
    y_N, p_NY = truth_of_classes(patients, classes, "the pooled test patients")
    predicted_N = numbers_of_classes(patients["predicted"], classes, "the pooled predictions")
    pooled_scores = class_scores(y_N, p_NY, predicted_N, classes, ordered=ordered)
    intervals = class_intervals(y_N, p_NY, predicted_N, classes, seed, ordered=ordered)
    metrics = summarise_metrics(class_metric_names(classes, ordered=ordered), results, pooled_scores, intervals)
    counts = {
        "patients": len(patients),
        "classes": {name: int((y_N == y).sum()) for y, name in enumerate(classes)},
    }
    folds = [result.to_json() for result in results]
    return {
        "metrics": metrics,
        "counts": counts,
        "folds": folds,
        "classes": {"names": list(classes), "ordered": ordered},
    }


def pool_classes(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Averages each patient's probabilities over the folds that test it; the likeliest class is predicted.

    Returns:
        One row per patient: `patient_id` (sorted), `label`, every `p_<class>`, `predicted`; of a regression also the
        mean `score`, and `true_score`.

    Raises:
        InputError: a column or class is missing, or a patient has another label in another fold.
    """
    ordered = predictions.sort_values(["patient_id", "fold"])
    truth_of_classes(ordered, classes, "the test patients")
    by_patient = ordered.groupby("patient_id", sort=True)
    several = by_patient["label"].nunique()
    for patient in several.index[several > 1]:
        raise InputError(f"patient {patient} has another label in another fold: cross-validate again")
    pooled = by_patient[[f"p_{name}" for name in classes]].mean()
    pooled.insert(0, "label", by_patient["label"].first())
    likeliest = pooled[[f"p_{name}" for name in classes]].to_numpy().argmax(axis=1)
    pooled["predicted"] = [classes[y] for y in likeliest]
    if SCORE in predictions.columns:
        pooled[SCORE], pooled[TRUE_SCORE] = by_patient[SCORE].mean(), by_patient[TRUE_SCORE].first()
    return pooled.reset_index()


def truth_of_classes(patients: pd.DataFrame, classes: Sequence[str], whose: str) -> tuple[Integers, Floats]:
    """Returns the class of each patient (N,), and its probabilities of all classes (N, Y).

    Raises:
        InputError: a column or a class is missing, or a label is none of a class.
    """
    check_columns(patients, classes, whose)
    y_N = numbers_of_classes(patients["label"], classes, whose)
    check_every_class(y_N, classes, whose)
    return y_N, patients[[f"p_{name}" for name in classes]].to_numpy(dtype=float)


def check_columns(patients: pd.DataFrame, classes: Sequence[str], whose: str) -> None:
    """Raises `InputError` if a table of predictions lacks the label or a class's probability."""
    for column in ("label", *(f"p_{name}" for name in classes)):
        if column not in patients.columns:
            raise InputError(f"{whose} lack the column {column}")


def check_every_class(y_N: Integers, classes: Sequence[str], whose: str) -> None:
    """Raises `InputError` if no patient is of one of the classes, by their numbers."""
    for y, name in enumerate(classes):
        if y not in y_N:
            raise InputError(f"{whose} include no patient of class {name!r}: use fewer, stratified folds")


def numbers_of_classes(names: pd.Series[Any], classes: Sequence[str], whose: str) -> Integers:
    """Returns the number of each patient's class.

    Raises:
        InputError: a label is none of a class.
    """
    unknown = names[~names.isin(list(classes))]
    if len(unknown):
        raise InputError(f"{whose} have the label {unknown.iloc[0]!r}, which is none of {', '.join(classes)}")
    number = {name: y for y, name in enumerate(classes)}
    return np.asarray([number[str(name)] for name in names], dtype=np.int64)
