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
        sds: their standard errors; a group of standard error 0 has no weight that could be used and is left out.

    Returns:
        The test; None with fewer than two groups.
    """
    pairs = [(value, sd) for value, sd in zip(values, sds, strict=True) if sd > 0]
    if len(pairs) < 2:
        return None
    value_G, weight_G = np.array([v for v, _ in pairs]), np.array([s**-2 for _, s in pairs])
    mean = (value_G * weight_G).sum() / weight_G.sum()
    q, df = float((weight_G * (value_G - mean) ** 2).sum()), len(pairs) - 1
    return Heterogeneity(q, df, float(chi2.sf(q, df)), max(0.0, (q - df) / q) if q > 0 else 0.0)
