"""Writes means with their standard deviations as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momkd_ray.statistics.percentiles import NO_WIDTH


def mean_and_sd(mean: float, sd: float | None, sign: str = "±") -> str:
    """Returns `0.712 ± 0.031`; of a single value, which has no standard deviation (None), `0.712`."""
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} {sign} {sd:.3f}"


def interval_text(interval: Sequence[float] | None, form: str = ".3f") -> str:
    """Returns `0.744 to 0.866`, or `no interval`."""
    return "no interval" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def beside_chance(interval: Sequence[float] | None) -> str:
    """Returns `(95 % interval 0.744 to 0.866); its interval excludes chance (0.5)` of an AUC, or why it has none."""
    if interval is None:
        return f"(no interval, as {NO_WIDTH})"
    includes = "includes" if interval[0] <= 0.5 <= interval[1] else "excludes"
    return f"(95 % interval {interval_text(interval)}); its interval {includes} chance (0.5)"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Returns the metrics as plain text: mean +- sd over folds, pooled value and interval."""
    width = max(12, *map(len, metrics))
    lines = [f"{'':<{width}} {'mean +- sd over folds':>22}   {'pooled':>6}   95 % interval"]
    for name, m in metrics.items():
        spread = mean_and_sd(m["mean"], m["sd"], "+-")
        lines.append(f"{name:<{width}} {spread:>22}   {m['pooled']:>6.3f}   {interval_text(m['interval'])}")
    return "\n".join(lines)
