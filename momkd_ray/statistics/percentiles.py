"""Percentile intervals of bootstrap replicates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

NO_WIDTH = "the bootstrap replicates have the same value"  # why there is no interval, for tables and pages


def listed(interval: Interval | None) -> list[float] | None:
    """Returns an interval as a list, for a JSON file; None where there is none."""
    return None if interval is None else list(interval)


def percentile_interval(values_R: Floats, level: float = 0.95) -> Interval | None:
    """Returns the percentile interval of the replicates of a figure; None where it has no width.

    It has none if the replicates have the same value, such as the AUC 1 where every positive patient ranks above every
    negative one. As with DeLong's variance of 0, these patients then say nothing of how far the figure of others may be
    from theirs.

    Args:
        values_R: the replicates.
        level: nominal coverage.
    """
    low, high = map(float, np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2]))
    return (low, high) if high - low > 1e-12 * max(abs(low), abs(high)) else None  # less is rounding
