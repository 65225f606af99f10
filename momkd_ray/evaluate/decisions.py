"""Sensitivity, specificity, predictive values and likelihood ratios at a threshold, each with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_ray.statistics.percentiles import listed, percentile_interval
from momkd_ray.statistics.proportions import Counts, Estimate, likelihood_ratios, predictive_values, proportion

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_REPLICATES = 2000


def counts_of(y_N: Bools, called_N: Bools) -> Counts:
    """Counts the patients by true and called class."""
    cells = (y_N & called_N, ~y_N & called_N, y_N & ~called_N, ~y_N & ~called_N)
    return Counts(*(int(cell.sum()) for cell in cells))


def decisions(y_N: Bools, p_N: Floats, threshold: float, prevalences: Sequence[float]) -> dict[str, Any]:
    """Computes sensitivity, specificity, predictive values and likelihood ratios at a threshold.

    Returns:
        `threshold`, `counts`, and of each measure `value` and `interval`; `at_prevalence`: the predictive values where
        the prevalence is another.
    """
    c = counts_of(y_N, p_N >= threshold)
    positive_ratio, negative_ratio = likelihood_ratios(c)
    measures = {
        "sensitivity": proportion(c.tp, c.tp + c.fn),
        "specificity": proportion(c.tn, c.tn + c.fp),
        "ppv": proportion(c.tp, c.tp + c.fp),
        "npv": proportion(c.tn, c.tn + c.fn),
        "accuracy": proportion(c.tp + c.tn, len(y_N)),
        "lr_positive": positive_ratio,
        "lr_negative": negative_ratio,
    }
    at = []
    for prevalence in prevalences:
        ppv, npv = predictive_values(c, prevalence)
        at.append({"prevalence": prevalence, "ppv": plain(ppv), "npv": plain(npv)})
    return {
        "threshold": threshold,
        "counts": asdict(c),
        **{name: plain(estimate) for name, estimate in measures.items()},
        "at_prevalence": at,
    }


def plain(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate as values for a JSON file."""
    return {"value": estimate.value, "interval": None if estimate.interval is None else list(estimate.interval)}


def at_fixed(y_N: Bools, p_N: Floats, measure: str, value: float, seed: int) -> dict[str, Any]:
    """Computes the specificity at a fixed sensitivity on this cohort's ROC curve, or the reverse.

    The threshold is chosen on the very patients, so this describes the curve and is no result of a frozen model. The
    interval is a bootstrap, stratified by class, that chooses the threshold in each replicate; None if it has no width.

    Args:
        y_N: classes.
        p_N: probabilities of the positive class.
        measure: `sensitivity` or `specificity`, which is fixed.
        value: at least this.
        seed: of the bootstrap.

    Returns:
        `threshold`, the lowest probability that is called positive, and the `value` and `interval` of the `other`
        measure there.
    """
    fixes_positives = measure == "sensitivity"
    # specificity is the sensitivity for the other class: turn the scores
    fixed_J, other_I = (p_N[y_N], p_N[~y_N]) if fixes_positives else (-p_N[~y_N], -p_N[y_N])

    def other(fixed_RJ: Floats, other_RI: Floats) -> Floats:
        needed = max(1, int(np.ceil(value * fixed_RJ.shape[1] - 1e-9)))
        cut_R1 = np.sort(fixed_RJ, axis=1)[:, [fixed_RJ.shape[1] - needed]]
        share_R: Floats = (other_RI < cut_R1).mean(axis=1)
        return share_R

    rng = np.random.default_rng(seed)
    drawn = [
        other(
            fixed_J[rng.integers(len(fixed_J), size=(100, len(fixed_J)))],
            other_I[rng.integers(len(other_I), size=(100, len(other_I)))],
        )
        for _ in range(_REPLICATES // 100)
    ]
    needed = max(1, int(np.ceil(value * len(fixed_J) - 1e-9)))
    cut = float(np.sort(fixed_J)[len(fixed_J) - needed])
    return {
        "fixed": measure,
        "at": value,
        "threshold": cut if fixes_positives else _lowest_above(-cut, p_N),
        "other": "specificity" if fixes_positives else "sensitivity",
        "value": float(other(fixed_J[None], other_I[None])[0]),
        "interval": listed(percentile_interval(np.concatenate(drawn))),
    }


def _lowest_above(limit: float, p_N: Floats) -> float:
    """Returns the lowest probability above a limit; the next number if there is none."""
    above = p_N[p_N > limit]
    return float(above.min() if len(above) else np.nextafter(limit, np.inf))
