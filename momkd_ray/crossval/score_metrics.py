"""Patient-level metrics of predicted numbers and their bootstrap intervals.

Shapes: N patients, R bootstrap replicates, G distinct numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from momkd_ray.crossval.metrics import Floats, percentile_intervals
from momkd_ray.statistics.percentiles import Interval

SCORE_METRICS = ("spearman", "r2", "mae")
TRUE_SCORE = "true_score"  # the column of predictions


def score_metrics(true_N: ArrayLike, predicted_N: ArrayLike) -> dict[str, float]:
    """Computes Spearman's correlation, the coefficient of determination R2 and the mean absolute error.

    Args:
        true_N: (N,) the patients' numbers.
        predicted_N: (N,) the predicted ones.

    Raises:
        ValueError: there are fewer than two patients, or their numbers are all the same.

    >>> score_metrics([1, 2, 3, 4], [1, 2, 4, 3])["spearman"]
    0.8
    """
    true, predicted = _checked(true_N, predicted_N)
    values = weighted_score_metrics(true, predicted, np.ones((1, len(true))))
    return {name: float(value[0]) for name, value in values.items()}


def score_intervals(
    true_N: ArrayLike, predicted_N: ArrayLike, seed: int, n: int = 2000, level: float = 0.95
) -> dict[str, Interval | None]:
    """Computes percentile intervals of `score_metrics` by a bootstrap of patients.

    Each replicate draws as many patients as there are, with replacement, whatever their class. The models are not
    trained again. The intervals do not depend on the order of the patients.

    Raises:
        ValueError: as `score_metrics`.
    """
    true, predicted = _checked(true_N, predicted_N)
    order = np.lexsort((predicted, true))
    true, predicted = true[order], predicted[order]
    return percentile_intervals(
        np.zeros(len(true)),
        lambda weights_RN: weighted_score_metrics(true, predicted, weights_RN),
        seed=seed,
        n=n,
        level=level,
    )


def weighted_score_metrics(true_N: Floats, predicted_N: Floats, weights_RN: Floats) -> dict[str, Floats]:
    """Computes every metric (R,) with each patient counted `weights_RN` times.

    Where all counted patients have the same number or the same prediction, Spearman's correlation is 0; R2 is 0 where
    they all have the same number.
    """
    total_R = weights_RN.sum(axis=1)
    error_N = true_N - predicted_N
    mean_R = weights_RN @ true_N / total_R
    # not as a difference of squares, which would lose digits where numbers are large
    spread_R = (weights_RN * np.square(true_N - mean_R[:, None])).sum(axis=1)
    unexplained_R = weights_RN @ np.square(error_N)
    return {
        "spearman": _correlation(_ranks(true_N, weights_RN), _ranks(predicted_N, weights_RN), weights_RN),
        "r2": np.where(spread_R > 0, 1 - unexplained_R / np.where(spread_R > 0, spread_R, 1), 0.0),
        "mae": weights_RN @ np.abs(error_N) / total_R,
    }


def _ranks(values_N: Floats, weights_RN: Floats) -> Floats:
    """Ranks patients (R, N) from 0, of equal ones the mean, with each counted `weights_RN` times."""
    order_N = np.argsort(values_N, kind="stable")
    _, first_G, group_N = np.unique(values_N[order_N], return_index=True, return_inverse=True)
    count_RG = np.add.reduceat(weights_RN[:, order_N], first_G, axis=1)
    rank_RG = np.cumsum(count_RG, axis=1) - count_RG / 2
    ranks_RN = np.empty_like(weights_RN)
    ranks_RN[:, order_N] = rank_RG[:, group_N]
    return ranks_RN


def _correlation(first_RN: Floats, second_RN: Floats, weights_RN: Floats) -> Floats:
    """Computes Pearson's correlation (R,) of patients counted `weights_RN` times; 0 where either is constant."""
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    first_RN = first_RN - (weights_RN * first_RN).sum(axis=1, keepdims=True) / total_R1
    second_RN = second_RN - (weights_RN * second_RN).sum(axis=1, keepdims=True) / total_R1
    spread_R = np.sqrt((weights_RN * first_RN**2).sum(axis=1) * (weights_RN * second_RN**2).sum(axis=1))
    together_R = (weights_RN * first_RN * second_RN).sum(axis=1)
    correlation_R: Floats = np.where(spread_R > 0, together_R / np.where(spread_R > 0, spread_R, 1), 0.0)
    return correlation_R


def _checked(true_N: ArrayLike, predicted_N: ArrayLike) -> tuple[Floats, Floats]:
    true, predicted = np.asarray(true_N, dtype=float), np.asarray(predicted_N, dtype=float)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"{true.shape} numbers, but {predicted.shape} predictions")
    if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
        raise ValueError("a number is not finite")
    if len(true) < 2 or len(np.unique(true)) < 2:
        raise ValueError("the numbers are all the same: their scores are not defined")
    return true, predicted
