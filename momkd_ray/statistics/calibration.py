"""Calibration of probabilities: intercept, slope, curve, Brier score, shift to another prevalence, recalibration.

Sources: Van Calster et al. 2016, J Clin Epidemiol 74:167 (intercept, slope and curve); Platt 1999 (recalibration);
Saerens, Latinne, Decaestecker 2002, Neural Comput 14:21, equation 2.4 (prevalence). Shapes: N patients, B bins.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from momkd_ray.statistics.proportions import Estimate, proportion

if TYPE_CHECKING:
    from statsmodels.genmod.generalized_linear_model import GLMResults

Floats = NDArray[np.float64]
SMALLEST = 1e-6  # probabilities are kept this far from 0 and 1, where their logit is infinite


@dataclass(frozen=True)
class LogisticMap:
    """A map of probabilities, expit(intercept + slope · logit(p))."""

    intercept: float
    slope: float

    def apply(self, p_N: ArrayLike) -> Floats:
        """Maps probabilities (N,)."""
        mapped: Floats = expit(self.intercept + self.slope * logits(p_N))
        return mapped


def logits(p_N: ArrayLike) -> Floats:
    """Returns the log odds of probabilities (N,), finite also at 0 and 1."""
    log_odds: Floats = logit(np.clip(np.asarray(p_N, dtype=np.float64), SMALLEST, 1 - SMALLEST))
    return log_odds


def prevalence_shift(trained_at: float, prevalence: float) -> LogisticMap:
    """Returns the map of probabilities from the prevalence that training saw to another.

    It multiplies the odds by the ratio of the two prevalences' odds, and so keeps the order of patients.

    >>> round(float(prevalence_shift(0.5, 0.2).apply([0.5])[0]), 3)
    0.2
    """
    return LogisticMap(float(logit(prevalence) - logit(trained_at)), 1.0)


def recalibration(y_N: ArrayLike, p_N: ArrayLike) -> LogisticMap:
    """Fits the logistic map that makes probabilities agree with classes (Platt scaling).

    Platt's targets, (n1 + 1) / (n1 + 2) for positives and 1 / (n0 + 2) for negatives, keep the slope finite where the
    classes are separated.

    Args:
        y_N: (N,) classes, 0 or 1, both present.
        p_N: (N,) probabilities of class 1.
    """
    y = np.asarray(y_N).astype(bool)
    target_N = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    x = logits(p_N)
    if np.ptp(x) == 0:  # one probability for all: only the level can be set
        return LogisticMap(float(logit(target_N.mean()) - x[0]), 1.0)
    # the targets lie between 0 and 1: a line through all of them is finite, and no sign of separated classes
    fitted = _logistic(target_N, np.vander(x, 2, increasing=True), exact=True)
    if fitted is None:
        return LogisticMap(0.0, 1.0)
    return LogisticMap(float(fitted.params[0]), float(fitted.params[1]))


def calibration_intercept(y_N: ArrayLike, p_N: ArrayLike, level: float = 0.95) -> Estimate:
    """Estimates calibration in the large: the intercept that the log odds lack, with slope 1; 0 is right.

    Above 0 the probabilities are too low, below 0 too high.
    """
    y, x = np.asarray(y_N, float), logits(p_N)
    if not 0 < y.sum() < len(y):
        return Estimate(None, None)

    def excess(intercept: float) -> float:
        return float(expit(intercept + x).sum() - y.sum())

    # it rises; Newton's steps leave its flat ends no more, where most probabilities are near 0 or 1
    margin = np.log(len(y)) + 1
    value = float(brentq(excess, -x.max() - margin, -x.min() + margin))
    predicted_N = expit(value + x)
    half = float(norm.ppf((1 + level) / 2) / np.sqrt((predicted_N * (1 - predicted_N)).sum()))
    return Estimate(value, (value - half, value + half))


def calibration_slope(y_N: ArrayLike, p_N: ArrayLike, level: float = 0.95) -> Estimate:
    """Estimates the slope of the classes on the log odds; 1 is right, below 1 the probabilities are too extreme.

    It is not defined where the classes are separated, if need be but for patients of one probability: it is infinite.
    """
    y, x = np.asarray(y_N, float), logits(p_N)
    if np.ptp(x) == 0 or _are_separated(y.astype(bool), x):
        return Estimate(None, None)
    return _estimate(_logistic(y, np.vander(x, 2, increasing=True)), 1, level)


def _are_separated(y_N: NDArray[np.bool_], x_N: Floats) -> bool:
    """Returns whether no patient of one class is above one of the other, or there is one class only."""
    negative, positive = x_N[~y_N], x_N[y_N]
    if not len(negative) or not len(positive):
        return True
    return bool(negative.max() <= positive.min() or positive.max() <= negative.min())


def brier(y_N: ArrayLike, p_N: ArrayLike) -> float:
    """Computes the mean squared difference of probability and class."""
    return float(np.mean((np.asarray(p_N, float) - np.asarray(y_N, float)) ** 2))


def scaled_brier(y_N: ArrayLike, p_N: ArrayLike) -> float:
    """Computes the share by which the Brier score is below that of the cohort's prevalence; 1 is perfect, 0 useless."""
    y = np.asarray(y_N, float)
    return float(1 - brier(y, p_N) / brier(y, np.full(len(y), y.mean())))


def calibration_curve(y_N: ArrayLike, p_N: ArrayLike, bins: int = 10, level: float = 0.95) -> pd.DataFrame:
    """Groups patients by probability into bins of equal size, and compares mean probability and observed share.

    Patients of the same probability stay together, so bins may be fewer. There are at least ten patients in a bin, or
    one bin.

    Returns:
        A row per bin: `patients, positives, predicted, observed, low, high`; the interval is Wilson's.
    """
    y, p = np.asarray(y_N).astype(int), np.asarray(p_N, dtype=np.float64)
    bins = max(1, min(bins, len(p) // 10))
    of_bin = pd.qcut(p, bins, labels=False, duplicates="drop") if np.ptp(p) > 0 and bins > 1 else np.zeros(len(p), int)
    rows = []
    for _, members in pd.DataFrame({"bin": of_bin, "y": y, "p": p}).groupby("bin", sort=True):
        share = proportion(int(members["y"].sum()), len(members), level)
        low, high = share.interval or (np.nan, np.nan)
        rows.append((len(members), int(members["y"].sum()), members["p"].mean(), share.value, low, high))
    return pd.DataFrame(rows, columns=["patients", "positives", "predicted", "observed", "low", "high"])


def smooth_curve(y_N: ArrayLike, p_N: ArrayLike, seed: int, replicates: int = 200, level: float = 0.95) -> pd.DataFrame:
    """Fits the observed share as a smooth function of the predicted probability, with a pointwise bootstrap band.

    The function is logistic in the log odds and their square, so that it bends at most once.

    Returns:
        `predicted, observed, low, high` over the range of the probabilities; no rows where it cannot be fitted.
    """
    y, x = np.asarray(y_N, float), logits(p_N)
    at_G = np.linspace(float(np.min(p_N)), float(np.max(p_N)), 60)

    def fit(y_N: Floats, x_N: Floats) -> Floats | None:
        if np.unique(x_N).size < 4 or not 0 < y_N.mean() < 1:
            return None
        centre, spread = x.mean(), x.std()

        def design(values: Floats) -> Floats:
            return np.vander((values - centre) / spread, 3, increasing=True)

        fitted = _logistic(y_N, design(x_N))
        return None if fitted is None else np.asarray(expit(design(logits(at_G)) @ fitted.params))

    middle = fit(y, x)
    if middle is None:
        return pd.DataFrame(columns=["predicted", "observed", "low", "high"], dtype=float)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(replicates):
        chosen = rng.integers(len(y), size=len(y))
        if (curve := fit(y[chosen], x[chosen])) is not None:
            drawn.append(curve)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn, tails, axis=0) if len(drawn) >= replicates / 2 else (np.nan * middle,) * 2
    return pd.DataFrame({"predicted": at_G, "observed": middle, "low": low, "high": high})


def _logistic(y_N: Floats, x_NF: Floats, *, exact: bool = False) -> GLMResults | None:
    """Fits a logistic regression; None if it fits exactly (unless `exact`: then it may) or does not converge.

    Of classes, 0 or 1, an exact fit means that they are separated.
    """
    from statsmodels.genmod.families import Binomial  # takes most of a second to import, which training has no use for
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, PerfectSeparationError, PerfectSeparationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.simplefilter("ignore" if exact else "error", PerfectSeparationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            fitted = GLM(y_N, x_NF, family=Binomial()).fit()
        except (
            PerfectSeparationError,
            PerfectSeparationWarning,
            ConvergenceWarning,
            np.linalg.LinAlgError,
            ValueError,
        ):
            return None
    return fitted if np.isfinite(fitted.params).all() else None


def _estimate(fitted: object, index: int, level: float) -> Estimate:
    if fitted is None:
        return Estimate(None, None)
    low, high = fitted.conf_int(alpha=1 - level)[index]  # type: ignore[attr-defined]
    value = float(fitted.params[index])  # type: ignore[attr-defined]
    return Estimate(value, (float(low), float(high)))
