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
Interval = tuple[float, float]

NO_VARIANCE = "DeLong's variance is 0"  # the reason why there is no interval, for tables and pages


@dataclass(frozen=True)
class DeLongResult:
    """The AUCs of models on the same patients and their covariance.

    Attributes:
        auc_M: the AUCs.
        covariance_MM: their covariance.
        rank_MN: the patients' ranks by each model, ties sharing theirs.
        v10_MI, v01_MJ: the structural components, of each patient the share of the other class that it is ranked
            rightly against.
    """

    auc_M: Floats
    covariance_MM: Floats
    rank_MN: Floats
    v10_MI: Floats
    v01_MJ: Floats

    def sd(self, model: int) -> float:
        """Returns the standard error of one model's AUC, exactly 0 where the components are all alike."""
        return _standard_error(self.v10_MI[model], self.v01_MJ[model])

    def interval(self, model: int, level: float = 0.95) -> Interval | None:
        """Returns a normal interval of one model's AUC, cut at 0 and 1; None where its variance is 0.

        It is 0 if every positive patient ranks above every negative one, or all have one score: these patients then say
        nothing of how far the AUC of others may be from theirs.
        """
        sd = self.sd(model)
        if sd == 0:
            return None
        half = float(norm.ppf((1 + level) / 2)) * sd
        return max(0.0, float(self.auc_M[model]) - half), min(1.0, float(self.auc_M[model]) + half)

    def difference(self, first: int, second: int, level: float = 0.95) -> tuple[float, Interval | None, float | None]:
        """Returns the difference of two AUCs (first minus second), its interval, and the two-sided p-value.

        Two models with the same ranking have difference 0 and p-value 1. Others whose difference has the variance 0,
        such as a perfect and a constant one, have neither interval nor p-value.
        """
        if np.array_equal(self.rank_MN[first], self.rank_MN[second]):
            return 0.0, (0.0, 0.0), 1.0
        difference = float(self.auc_M[first] - self.auc_M[second])
        sd = _standard_error(self.v10_MI[first] - self.v10_MI[second], self.v01_MJ[first] - self.v01_MJ[second])
        if sd == 0:
            return difference, None, None
        half = float(norm.ppf((1 + level) / 2)) * sd
        return difference, (difference - half, difference + half), float(2 * norm.sf(abs(difference) / sd))


def _standard_error(of_positives_I: Floats, of_negatives_J: Floats) -> float:
    """Returns the standard error of an AUC, or of a difference of two, from its structural components."""
    # components are multiples of half of one over the other class's size: closer ones differ by rounding alone
    if max(np.ptp(of_positives_I), np.ptp(of_negatives_J)) <= 1e-12:
        return 0.0
    variances = (float(np.var(of_class, ddof=1)) / len(of_class) for of_class in (of_positives_I, of_negatives_J))
    return float(np.sqrt(sum(variances)))


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
    return DeLongResult(v10_MI.mean(axis=1), covariance_MM, rank_MN, v10_MI, v01_MJ)
