"""Whether an estimate differs between independent groups of patients: Cochran's Q and I²."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2


@dataclass(frozen=True)
class Heterogeneity:
    """Cochran's test that all groups have one value.

    Attributes:
        q: the statistic, chi-squared with `df` degrees of freedom if they have.
        df: number of groups less one.
        p: its p-value.
        i_squared: the share of the variation between groups that is more than chance (Higgins 2002).
    """

    q: float
    df: int
    p: float
    i_squared: float


def cochran(values: Sequence[float], sds: Sequence[float]) -> Heterogeneity | None:
    """Tests the homogeneity of independent estimates (Cochran 1954, Biometrics 10:101).

    Args:
        values: of the groups.
        sds: their standard errors.

    Returns:
        The test; None with fewer than two groups.

    Raises:
        ValueError: a standard error is not above 0, so that the group has no weight. Who asks leaves it out, and says
            so.
    """
    value_G, sd_G = np.array(values, dtype=np.float64), np.array(sds, dtype=np.float64)
    if value_G.shape != sd_G.shape:
        raise ValueError(f"{len(value_G)} values, but {len(sd_G)} standard errors")
    if not (sd_G > 0).all():
        raise ValueError("a group's standard error is not above 0")
    if len(value_G) < 2:
        return None
    weight_G = sd_G**-2
    mean = (value_G * weight_G).sum() / weight_G.sum()
    q, df = float((weight_G * (value_G - mean) ** 2).sum()), len(value_G) - 1
    return Heterogeneity(q, df, float(chi2.sf(q, df)), max(0.0, (q - df) / q) if q > 0 else 0.0)
