"""A fold's test predictions, by the threshold of its validation patients, and the summary over folds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.crossval.metrics import (
    METRICS,
    Bools,
    Floats,
    best_threshold,
    bootstrap_intervals,
    patient_table,
    scores,
    scores_of_predictions,
)
from momkd_ray.errors import InputError


@dataclass(frozen=True)
class FoldResult:
    """What one fold came to; counts are patients."""

    fold: int
    threshold: float
    n_train: int
    n_val: int
    n_test: int
    best_epoch: int
    val_scores: dict[str, float]
    test_scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """The result that `to_json` wrote."""
        return cls(**value)


def evaluate_fold(
    fold: int,
    val_slides: pd.DataFrame,
    test_slides: pd.DataFrame,
    classes: tuple[str, str],
    n_train: int,
    best_epoch: int,
) -> tuple[FoldResult, pd.DataFrame]:
    """Choose the threshold on the validation patients and apply it to the test patients (method 5).

    Args:
        fold: its number.
        val_slides: one row a slide: `slide_id, patient_id, label, p_<negative>, p_<positive>`.
        test_slides: the same of the test patients, whose labels are only scored against.
        classes: names of the negative and the positive class.
        n_train: training patients.
        best_epoch: the epoch that the model is of.

    Returns:
        The result, and one row a test patient:
        `patient_id, label, p_<negative>, p_<positive>, predicted, fold`.

    Raises:
        InputError: a patient is in both sets, a set lacks a class, or a label is not one of the classes.
    """
    validation, test = patient_table(val_slides), patient_table(test_slides)
    shared = sorted(set(validation["patient_id"]) & set(test["patient_id"]))
    if shared:
        raise InputError(f"fold {fold}: patient {shared[0]} is both validated and tested on: make the folds again")
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


def summarise(results: list[FoldResult], pooled: pd.DataFrame, classes: tuple[str, str], seed: int) -> dict[str, Any]:
    """The figures of metrics.json: equal inputs, in any order, give equal figures.

    Args:
        results: of two or more folds.
        pooled: out-of-fold predictions, one row a patient, as `evaluate_fold` returns them. Metrics of
            classes use `predicted`, and so the threshold of each patient's own fold.
        classes: names of the negative and the positive class.
        seed: of the bootstrap.

    Returns:
        `metrics`: for each metric `mean` and `sd` (of a sample, n - 1) over the folds' test patients,
        `pooled`, `interval` (95 %, see `bootstrap_intervals`) and `folds`; `counts`: patients, in all and
        of each class; `folds`: every `FoldResult`.

    Raises:
        InputError: fewer than two folds, or predictions that are not those of the folds.
    """
    results = sorted(results, key=lambda result: result.fold)
    _check_pooled(results, pooled)
    ordered = pooled.sort_values("patient_id")
    y_N, p_N = _truth(ordered, classes, "the pooled test patients")
    predicted_N = _as_positive(ordered["predicted"], classes, "the pooled predictions")
    together = scores_of_predictions(y_N, p_N, predicted_N)
    intervals = bootstrap_intervals(y_N, p_N, predicted_N, seed)
    metrics = {}
    for name in METRICS:
        values = [result.test_scores[name] for result in results]
        metrics[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "pooled": together[name],
            "interval": list(intervals[name]),
            "folds": values,
        }
    of_class = {classes[0]: int((~y_N).sum()), classes[1]: int(y_N.sum())}
    counts = {"patients": len(ordered), "classes": of_class}
    return {"metrics": metrics, "counts": counts, "folds": [result.to_json() for result in results]}


def _check_pooled(results: list[FoldResult], pooled: pd.DataFrame) -> None:
    folds = [result.fold for result in results]
    if len(folds) < 2 or len(set(folds)) < len(folds):
        raise InputError(f"the folds {folds} cannot be summarised: two or more different ones are needed")
    twice = pooled.loc[pooled["patient_id"].duplicated(), "patient_id"]
    if len(twice):
        raise InputError(f"patient {twice.iloc[0]} is tested in two folds: make the folds again")
    found = pooled["fold"].value_counts().to_dict()
    wanted = {result.fold: result.n_test for result in results}
    if found != wanted:
        raise InputError(f"the pooled predictions have the patients {found} by fold, but the folds tested {wanted}")


def _truth(patients: pd.DataFrame, classes: tuple[str, str], whose: str) -> tuple[Bools, Floats]:
    """Whether each patient is positive (N,), and its probability of that (N,)."""
    for column in ("label", *(f"p_{name}" for name in classes)):
        if column not in patients.columns:
            raise InputError(f"{whose} lack the column {column}")
    y_N = _as_positive(patients["label"], classes, whose)
    for name, there in ((classes[0], (~y_N).any()), (classes[1], y_N.any())):
        if not there:
            raise InputError(f"{whose} have nobody of class {name!r}: use fewer, stratified folds")
    return y_N, patients[f"p_{classes[1]}"].to_numpy(dtype=float)


def _as_positive(names: pd.Series[Any], classes: tuple[str, str], whose: str) -> Bools:
    unknown = names[~names.isin(classes)]
    if len(unknown):
        raise InputError(f"{whose} have the label {unknown.iloc[0]!r}, not {classes[0]!r} or {classes[1]!r}")
    return np.asarray(names == classes[1], dtype=bool)
