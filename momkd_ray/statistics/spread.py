"""Writes means with their standard deviations as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mean_and_sd(mean: float, sd: float | None, sign: str = "±") -> str:
    """Returns `0.712 ± 0.031`; of a single value, which has no standard deviation (None), `0.712`."""
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} {sign} {sd:.3f}"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Returns the metrics as plain text: mean +- sd over folds, pooled value and interval."""
    width = max(12, *map(len, metrics))
    lines = [f"{'':<{width}} {'mean +- sd over folds':>22}   {'pooled':>6}   95 % interval"]
    for name, m in metrics.items():
        low, high = m["interval"]
        spread = mean_and_sd(m["mean"], m["sd"], "+-")
        lines.append(f"{name:<{width}} {spread:>22}   {m['pooled']:>6.3f}   {low:.3f} to {high:.3f}")
    return "\n".join(lines)
