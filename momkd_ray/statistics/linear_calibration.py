"""Calibration of predicted numbers: the line of the true numbers on them, and the means of groups.

Shapes: N patients, B groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import linregress
from scipy.stats import t as student

from momkd_ray.statistics.proportions import Estimate


@dataclass(frozen=True)
class LinearCalibration:
    """The line of true on predicted numbers by least squares.

    Attributes:
        intercept: 0 is right, given a slope of 1.
        slope: 1 is right; below 1 predictions are too extreme, above 1 too close to each other.
        mean_error: mean of predicted minus true numbers, 0 is right: calibration in the large.
    """

    intercept: Estimate
    slope: Estimate
    mean_error: Estimate


def linear_calibration(true_N: ArrayLike, predicted_N: ArrayLike, level: float = 0.95) -> LinearCalibration:
    """Fits the line, with Student's intervals; of equal predictions or fewer than three patients it is not defined.

    Args:
        true_N: (N,) the patients' numbers.
        predicted_N: (N,) the predicted ones.
        level: of the intervals.
    """
    true, predicted = np.asarray(true_N, dtype=float), np.asarray(predicted_N, dtype=float)
    mean_error = _mean(predicted - true, level)
    if len(true) < 3 or np.ptp(predicted) == 0:
        return LinearCalibration(Estimate(None, None), Estimate(None, None), mean_error)
    line = linregress(predicted, true)
    wide = float(student.ppf((1 + level) / 2, len(true) - 2))
    found = [
        Estimate(float(value), (float(value - wide * error), float(value + wide * error)))
        for value, error in ((line.intercept, line.intercept_stderr), (line.slope, line.stderr))
    ]
    return LinearCalibration(found[0], found[1], mean_error)


def group_means(true_N: ArrayLike, predicted_N: ArrayLike, groups: int = 5, level: float = 0.95) -> pd.DataFrame:
    """Groups patients by predicted number into groups of equal size, and compares mean predicted and true numbers.

    Patients of the same prediction stay together, so groups may be fewer.

    Returns:
        `predicted, true, low, high, patients`, with Student's interval of the mean; NaN for a single patient.
    """
    table = pd.DataFrame({"true": np.asarray(true_N, dtype=float), "predicted": np.asarray(predicted_N, dtype=float)})
    own = pd.qcut(table["predicted"], min(groups, len(table)), labels=False, duplicates="drop")
    rows = []
    for _, of in table.groupby(own.fillna(0)):
        mean = _mean(of["true"].to_numpy(), level)
        low, high = mean.interval or (np.nan, np.nan)
        rows.append((float(of["predicted"].mean()), mean.value, low, high, len(of)))
    return pd.DataFrame(rows, columns=["predicted", "true", "low", "high", "patients"])


def _mean(values_N: np.ndarray, level: float) -> Estimate:
    value = float(values_N.mean())
    if len(values_N) < 2:
        return Estimate(value, None)
    wide = float(student.ppf((1 + level) / 2, len(values_N) - 1) * values_N.std(ddof=1) / np.sqrt(len(values_N)))
    return Estimate(value, (value - wide, value + wide))
