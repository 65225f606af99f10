"""Holm's correction for several comparisons."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values so that the chance of any false rejection stays below the level (Holm 1979, Scand J Stat 6:65).

    The i-th smallest of n is multiplied by n - i (from 0), never less than the one before it and at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def holm_of_known(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts the p-values of the tests that there are; None, for no test, stays and counts as no comparison."""
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]
