"""DeLong's covariance of AUCs on the same patients, and the test of their difference.

Source: DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44:837, equations 3 to 6; computed from midranks (Sun and Xu
2014, IEEE Signal Processing Letters 21:1389). Shapes: N patients, M models, I positives, J negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeLongResult:
    """The AUCs of models on the same patients and their covariance."""

    auc_M: Floats
    covariance_MM: Floats

    def interval(self, model: int, level: float = 0.95) -> tuple[float, float]:
        """Returns a normal interval of one model's AUC, cut at 0 and 1."""
        half = float(norm.ppf((1 + level) / 2) * np.sqrt(self.covariance_MM[model, model]))
        return max(0.0, float(self.auc_M[model]) - half), min(1.0, float(self.auc_M[model]) + half)

    def difference(self, first: int, second: int, level: float = 0.95) -> tuple[float, tuple[float, float], float]:
        """Returns the difference of two AUCs (first minus second), its interval, and the two-sided p-value.

        Two models with the same ranking have difference 0 and p-value 1.
        """
        c = self.covariance_MM
        difference = float(self.auc_M[first] - self.auc_M[second])
        sd = float(np.sqrt(max(c[first, first] + c[second, second] - 2 * c[first, second], 0.0)))
        if sd <= 1e-12:
            return difference, (difference, difference), 1.0 if abs(difference) <= 1e-12 else 0.0
        half = float(norm.ppf((1 + level) / 2)) * sd
        return difference, (difference - half, difference + half), float(2 * norm.sf(abs(difference) / sd))


def delong(y_N: ArrayLike, scores_MN: ArrayLike) -> DeLongResult:
    """Computes the AUC of every model and their covariance.

    Args:
        y_N: (N,) classes, 0 or 1.
        scores_MN: (M, N) scores, higher for class 1; a row per model.

    Raises:
        ValueError: a class has fewer than two patients, or a score is not a number.
    """
    y, scores = np.asarray(y_N).astype(bool), np.atleast_2d(np.asarray(scores_MN, dtype=np.float64))
    if scores.shape[1] != len(y):
        raise ValueError(f"{scores.shape[1]} scores, but {len(y)} classes")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    positives, negatives = int(y.sum()), int((~y).sum())
    if min(positives, negatives) < 2:
        raise ValueError(f"DeLong's variance takes two patients of each class; there are {negatives} and {positives}")
    rank_MN = rankdata(scores, axis=1)
    # structural components: how much of the other class each patient beats, ties counting half
    v10_MI = (rank_MN[:, y] - rankdata(scores[:, y], axis=1)) / negatives
    v01_MJ = 1 - (rank_MN[:, ~y] - rankdata(scores[:, ~y], axis=1)) / positives
    covariance_MM = np.atleast_2d(np.cov(v10_MI)) / positives + np.atleast_2d(np.cov(v01_MJ)) / negatives
    return DeLongResult(v10_MI.mean(axis=1), covariance_MM)
