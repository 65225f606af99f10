"""Writes a mean with its standard deviation."""

from __future__ import annotations


def mean_and_sd(mean: float, sd: float | None, sign: str = "±") -> str:
    """Returns `0.712 ± 0.031`; of a single value, which has no standard deviation (None), `0.712`."""
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} {sign} {sd:.3f}"
