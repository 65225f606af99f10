"""Decision curves: the net benefit of calling patients by a probability (Vickers, Elkin 2006, Med Decis Making 26:565).

Shapes: N patients, T threshold probabilities, R bootstrap replicates.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def net_benefit(y_N: ArrayLike, p_N: ArrayLike, threshold: float) -> float:
    """Computes true positives less false positives weighted by the odds of the threshold, per patient.

    Args:
        y_N: (N,) classes, 0 or 1.
        p_N: (N,) probabilities of class 1; a patient is called positive if p >= threshold.
        threshold: the probability at which one would treat, below 1.
    """
    y, called = np.asarray(y_N).astype(bool), np.asarray(p_N) >= threshold
    return float(((y & called).sum() - (~y & called).sum() * threshold / (1 - threshold)) / len(y))


def decision_curve(
    y_N: ArrayLike,
    p_N: ArrayLike,
    seed: int,
    thresholds_T: ArrayLike | None = None,
    replicates: int = 500,
    level: float = 0.95,
) -> pd.DataFrame:
    """Computes the net benefit over thresholds, with a bootstrap band, and that of calling everybody and nobody.

    Returns:
        A row per threshold: `threshold, net_benefit, low, high, call_all, call_none`.
    """
    y, p = np.asarray(y_N).astype(bool), np.asarray(p_N, dtype=np.float64)
    at_T = np.asarray(np.arange(1, 100) / 100 if thresholds_T is None else thresholds_T, dtype=np.float64)
    odds_T = at_T / (1 - at_T)
    # a patient's contribution to the net benefit at each threshold; its weighted mean is that of a replicate
    gain_NT = (p[:, None] >= at_T) * np.where(y[:, None], 1.0, -odds_T)
    weights_RN = np.random.default_rng(seed).multinomial(len(y), np.full(len(y), 1 / len(y)), size=replicates)
    low_T, high_T = np.quantile(weights_RN @ gain_NT / len(y), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame(
        {
            "threshold": at_T,
            "net_benefit": gain_NT.mean(axis=0),
            "low": low_T,
            "high": high_T,
            "call_all": y.mean() - (1 - y.mean()) * odds_T,
            "call_none": 0.0,
        }
    )
