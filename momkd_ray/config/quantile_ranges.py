"""Ranges of numbers as classes of a continuous label: `under 11`, `11 to 16`, `16 and over`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

Ranges = tuple[tuple[str, tuple[str, ...]], ...]
"""The name of each class and its labels, which are one cut-off or range."""

_FIRST = re.compile(r"< (\S+)")
QUANTILE_CLASSES = 4  # the default number of classes
FEWEST = 3  # classes that stand for a continuous label


def ranges_of(bounds: Sequence[str]) -> Ranges:
    """Returns the classes between bounds, each of which belongs to the class above it.

    Args:
        bounds: rising numbers as text.

    >>> ranges_of(["11", "16.5"])
    (('under 11', ('< 11',)), ('11 to 16.5', ('>= 11 and < 16.5',)), ('16.5 and over', ('>= 16.5',)))
    """
    between = itertools.pairwise(bounds)
    return (
        (f"under {bounds[0]}", (f"< {bounds[0]}",)),
        *((f"{low} to {high}", (f">= {low} and < {high}",)) for low, high in between),
        (f"{bounds[-1]} and over", (f">= {bounds[-1]}",)),
    )


def bounds_of(classes: Ranges) -> list[str]:
    """Returns the bounds between classes that `ranges_of` has made."""
    return [own[0].rpartition(" ")[2] for _, own in classes[:-1]]


def is_ranges(classes: Ranges) -> bool:
    """Returns whether classes are what `ranges_of` makes of their own bounds."""
    return bool(_FIRST.fullmatch(classes[0][1][0])) and classes == ranges_of(bounds_of(classes))


def regression_fault(classes: Ranges | None, given: Sequence[str], *, ordered: bool, slide_labels: str) -> str:
    """Returns what is wrong with the keys beside `cohort.task: regression`, and the cure; '' if they go together.

    Args:
        classes: `cohort.classes`.
        given: which of `positive` and `negative` are not at their defaults.
        ordered: `cohort.ordered`.
        slide_labels: `cohort.slide_labels`.
    """
    if given:
        return (
            f"task is regression, whose label is a number without {' or '.join(given)}: leave {' and '.join(given)} out"
        )
    # those of a run's own run.yaml have this form
    if classes is not None and not is_ranges(classes):
        return (
            "task is regression, whose classes are quantiles of the label and are computed: leave classes out, or set "
            "task to classification"
        )
    if not ordered:
        return "task is regression, and numbers are in an order: leave ordered out"
    if slide_labels == "any_positive":
        return "slide_labels is any_positive, which is for two classes: set slide_labels to agree or leave_out"
    return ""
