"""Patient-level metrics of a binary classifier and their bootstrap intervals.

Shapes: N patients, R bootstrap replicates, G distinct scores. Class 1 is the positive class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from momkd_ray.cohort.patient_mean import patient_mean
from momkd_ray.errors import InputError
from momkd_ray.statistics.percentiles import Interval, percentile_interval

METRICS = ("auc", "auprc", "macro_f1", "accuracy", "sensitivity", "specificity")
_REPLICATES_PER_PASS = 100  # keeps the weights of a pass in tens of megabytes up to 100,000 patients

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def patient_table(slides: pd.DataFrame) -> pd.DataFrame:
    """Averages the probabilities of each patient's slides.

    Args:
        slides: one row per slide: `slide_id`, `patient_id`, every `p_<class>` and, optionally, `label`.

    Returns:
        One row per patient, sorted by patient: `patient_id`, `label` (if given), every `p_<class>`. It does not depend
        on the order of the slides.

    Raises:
        InputError: a column or value is missing, a slide is listed twice, or a patient has two labels.
    """
    probabilities = [column for column in slides.columns if str(column).startswith("p_")]
    _check_slides(slides, probabilities)
    ordered = slides.sort_values(["patient_id", "slide_id"])
    ordered[probabilities] = ordered[probabilities].astype(float)
    table = patient_mean(ordered, probabilities)
    if "label" in slides.columns:
        by_patient = ordered.groupby("patient_id", sort=True)
        several = by_patient["label"].nunique(dropna=False)
        for patient in several.index[several > 1]:
            labels = " and ".join(map(repr, ordered.loc[ordered["patient_id"] == patient, "label"].unique()))
            raise InputError(f"patient {patient} has the labels {labels}: give all its slides the same one")
        table.insert(1, "label", by_patient["label"].first().to_numpy())
    return table


def _check_slides(slides: pd.DataFrame, probabilities: list[str]) -> None:
    missing = [column for column in ("slide_id", "patient_id") if column not in slides.columns]
    if missing or not probabilities:
        raise InputError(f"the slide predictions lack the column {(missing or ['p_<class>'])[0]}")
    if slides[["slide_id", "patient_id"]].isna().any(axis=None):
        raise InputError("the slide predictions have a row without slide_id or patient_id: fill both in")
    twice = slides.loc[slides["slide_id"].duplicated(), "slide_id"]
    if len(twice):
        raise InputError(f"slide {twice.iloc[0]} is predicted twice: keep one row per slide")
    numbers = slides[probabilities].apply(pd.to_numeric, errors="coerce")
    bad = ~((numbers >= 0) & (numbers <= 1)).all(axis=1)
    if bad.any():
        slide = slides.loc[bad, "slide_id"].iloc[0]
        raise InputError(f"slide {slide} has no probability between 0 and 1: predict it again")


def scores(y_N: ArrayLike, p_N: ArrayLike, threshold: float) -> dict[str, float]:
    """Computes AUC, AUPRC (average precision), macro F1, accuracy, sensitivity and specificity.

    Args:
        y_N: (N,) the classes, 0 or 1.
        p_N: (N,) probabilities of class 1.
        threshold: class 1 is predicted if p >= threshold.

    Raises:
        ValueError: a class has no patient or is neither 0 nor 1, or a probability is not between 0 and 1.

    >>> scores([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], threshold=0.5)["auc"]
    0.75
    """
    y, p = checked_classes_and_probabilities(y_N, p_N)
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}")
    return scores_of_predictions(y, p, p >= threshold)


def scores_of_predictions(y_N: ArrayLike, p_N: ArrayLike, predicted_N: ArrayLike) -> dict[str, float]:
    """Computes the metrics of `scores` for predicted classes (N,), such as those of folds with different thresholds."""
    y, p = checked_classes_and_probabilities(y_N, p_N)
    predicted = _classes(predicted_N, len(y), "predicted class")
    once_1N = np.ones((1, len(y)))
    return {name: float(value[0]) for name, value in weighted_scores(y, p, predicted, once_1N).items()}


def bootstrap_intervals(
    y_N: ArrayLike, p_N: ArrayLike, predicted_N: ArrayLike, seed: int, n: int = 2000, level: float = 0.95
) -> dict[str, Interval | None]:
    """Computes percentile intervals of every metric by a bootstrap of patients, stratified by class.

    Each replicate draws as many patients of each class as there are, with replacement. Probabilities of different
    folds' models are pooled unchanged: the pooled AUC also ranks patients against those of other folds, so a shift of
    one fold's probabilities lowers it. The models are not trained again, so the variance of training is not included.

    Args:
        y_N: (N,) the classes, 0 or 1.
        p_N: (N,) probabilities of class 1.
        predicted_N: (N,) predicted classes, 0 or 1.
        seed: of the draws; the same seed gives the same intervals.
        n: number of replicates.
        level: nominal coverage.

    Returns:
        (low, high) of each metric; None of one that is the same in every replicate.

    Raises:
        ValueError: as `scores`.
    """
    y, p = checked_classes_and_probabilities(y_N, p_N)
    predicted = _classes(predicted_N, len(y), "predicted class")
    # a canonical order, so that the replicates depend only on the seed and not on the order of the patients
    order = np.lexsort((predicted, y, p))
    y, p, predicted = y[order], p[order], predicted[order]
    return percentile_intervals(
        y, lambda weights_RN: weighted_scores(y, p, predicted, weights_RN), seed=seed, n=n, level=level
    )


def percentile_intervals(
    y_N: NDArray[Any], scores_of: Callable[[Floats], dict[str, Floats]], *, seed: int, n: int, level: float
) -> dict[str, Interval | None]:
    """Resamples patients within their classes, and takes percentiles of every score.

    Args:
        y_N: class of each patient.
        scores_of: computes every score (R,) with each patient counted `weights_RN` times.
        seed: of the draws.
        n: number of replicates.
        level: nominal coverage.

    Returns:
        (low, high) of each score; None of one that is the same in every replicate.
    """
    rng = np.random.default_rng(seed)
    passes = [min(_REPLICATES_PER_PASS, n - done) for done in range(0, n, _REPLICATES_PER_PASS)]
    drawn = [scores_of(_resampled(y_N, size, rng)) for size in passes]
    return {name: percentile_interval(np.concatenate([one[name] for one in drawn]), level) for name in drawn[0]}


def _resampled(y_N: NDArray[Any], size: int, rng: np.random.Generator) -> Floats:
    """Draws replicates; returns how often each patient is in each replicate (R, N)."""
    weights_RN = np.zeros((size, len(y_N)))
    for of_class in (np.flatnonzero(y_N == y) for y in np.unique(y_N)):
        count = len(of_class)
        drawn_RC = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights_RN[:, of_class] = np.bincount(drawn_RC.ravel(), minlength=size * count).reshape(size, count)
    return weights_RN


def weighted_scores(y_N: Bools, p_N: Floats, predicted_N: Bools, weights_RN: Floats) -> dict[str, Floats]:
    """Computes every metric (R,) with each patient counted `weights_RN` times."""
    order = np.argsort(p_N, kind="stable")
    first_G = np.unique(p_N[order], return_index=True)[1]
    positive_RG = np.add.reduceat(weights_RN[:, order] * y_N[order], first_G, axis=1)
    negative_RG = np.add.reduceat(weights_RN[:, order] * ~y_N[order], first_G, axis=1)
    positives_R, negatives_R = positive_RG.sum(axis=1), negative_RG.sum(axis=1)
    # Mann-Whitney: a positive is ranked above the negatives with lower scores, and half above those with its own
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    tp_RG = np.cumsum(positive_RG[:, ::-1], axis=1)[:, ::-1]
    called_RG = tp_RG + np.cumsum(negative_RG[:, ::-1], axis=1)[:, ::-1]
    precision_RG = tp_RG / np.maximum(called_RG, 1)  # with nobody called positive, no recall is gained either
    return {
        "auc": (positive_RG * below_RG).sum(axis=1) / (positives_R * negatives_R),
        "auprc": (positive_RG * precision_RG).sum(axis=1) / positives_R,
        **_scores_of_counts(*_confusion(weights_RN, y_N, predicted_N)),
    }


def _confusion(weights_RN: Floats, y_N: Bools, predicted_N: Bools) -> tuple[Floats, Floats, Floats, Floats]:
    """Counts true positives, false positives, false negatives and true negatives, (R,) each."""
    cells = (y_N & predicted_N, ~y_N & predicted_N, y_N & ~predicted_N, ~y_N & ~predicted_N)
    tp, fp, fn, tn = (weights_RN @ cell.astype(float) for cell in cells)
    return tp, fp, fn, tn


def _scores_of_counts(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> dict[str, Floats]:
    return {
        "macro_f1": tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn),  # the mean of both classes' 2 t / (2 t + f)
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
    }


def checked_classes_and_probabilities(y_N: ArrayLike, p_N: ArrayLike) -> tuple[Bools, Floats]:
    """Returns classes and probabilities as arrays.

    Raises:
        ValueError: a class has no patient or is neither 0 nor 1, or a probability is not between 0 and 1.
    """
    p = np.asarray(p_N, dtype=float)
    if p.ndim != 1:
        raise ValueError(f"probabilities must be one number per patient, but their shape is {p.shape}")
    y = _classes(y_N, len(p), "class")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"a probability is {p[~((p >= 0) & (p <= 1))][0]}, not within 0 and 1")
    for name, present in (("positive", y.any()), ("negative", (~y).any())):
        if not present:
            raise ValueError(f"no patient of the {name} class: its scores are not defined")
    return y, p


def _classes(values_N: ArrayLike, count: int, name: str) -> Bools:
    values = np.asarray(values_N)
    if values.shape != (count,):
        raise ValueError(f"{count} probabilities, but the shape of the {name} is {values.shape}")
    if not np.isin(values, [0, 1]).all():
        raise ValueError(f"a {name} is neither 0 nor 1")
    return values.astype(bool)
