"""The classes of a continuous label: its quantiles over the labelled patients of the cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal, localcontext

import numpy as np

from momkd_ray.cohort.joining import JoinedSlides
from momkd_ray.cohort.labels import label_numbers, says_missing
from momkd_ray.cohort.slide_labels import LabelRows
from momkd_ray.cohort.table_files import texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.quantile_ranges import FEWEST, ranges_of
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError

_SHOWN = 3  # values in a message
_MOST_DIGITS = 800  # more than a float has before and after its point


def with_quantile_classes(
    settings: CohortConfig, rows: LabelRows, slides: JoinedSlides
) -> tuple[CohortConfig, tuple[Understood, ...]]:
    """Replaces the classes of a regression by quantiles of the label; a classification stays as it is.

    The quantiles are of all patients who have a number and a slide, of whatever fold: of their numbers only the ranks
    decide, and only on how folds are stratified and which classes the memory has. What a class means as a number is
    learnt from each fold's training patients.

    Args:
        settings: the configuration's `cohort` section.
        rows: the rows of the label.
        slides: the table of slides.

    Returns:
        The section, with `classes`, and what there is to tell.

    Raises:
        InputError: the label is no column of numbers, or has too few different ones for three classes; or the section
            has classes of other patients.
    """
    if settings.task != "regression":
        return settings, ()
    labels = [label for label in rows.labels if label is not None]
    number = label_numbers(labels)
    _check_numbers(settings, rows.path, Counter(label for label in labels if not says_missing(label)), set(number))
    with_slide = {cell for cell in texts(slides.frame[slides.column]) if cell is not None} & set(rows.rows_of)
    values: list[float] = []
    for patient, own_rows in rows.rows_of.items():
        own = {number[label] for row in own_rows if (label := rows.labels[row - 1]) in number}
        if len(own) == 1 and (patient in with_slide or not with_slide):
            values += own
    bounds = quantile_bounds(values, settings.quantile_classes)
    if len(bounds) < FEWEST - 1:
        raise InputError(
            f"{rows.path}: the '{settings.label}' of {len(values):,} patients has {len(set(values)):,} different "
            f"numbers, too few or too unevenly spread for {FEWEST} classes of patients: name another column in "
            "cohort.label, or set cohort.task to classification and name the classes in cohort.classes"
        )
    classes = ranges_of(bounds)
    if settings.classes not in (None, classes):
        raise InputError(
            f"cohort.classes are not the quantiles of '{settings.label}' in {rows.path}, which are "
            f"{', '.join(name for name, _ in classes)}: leave cohort.classes out, since cohort.task is regression"
        )
    told: tuple[Understood, ...] = ()
    if len(classes) < settings.quantile_classes:
        what = (
            f"the '{settings.label}' makes {len(classes)} classes, not {settings.quantile_classes} "
            "(cohort.quantile_classes), since many patients have the same number"
        )
        told = (Understood(rows.path, "labels", what, len(classes)),)
    return settings.model_copy(update={"classes": classes}), told


def quantile_bounds(values_N: Sequence[float], classes: int) -> list[str]:
    """Returns bounds that cut numbers into classes of about the same size, written with as few digits as that takes.

    A bound lies above the numbers of the class below it, and not above those of the class above. Numbers that are equal
    stay together, so that there may be fewer classes than asked for. The classes depend on the ranks of the numbers
    alone.

    Args:
        values_N: the numbers.
        classes: how many classes.

    Returns:
        The rising bounds, at most `classes - 1`.

    >>> quantile_bounds([1, 2, 3.14, 3.2, 5, 6], 3)
    ['3', '5']
    >>> quantile_bounds([0, 0, 0, 0, 0, 1, 2, 3], 4)
    ['1', '2']
    """
    distinct, counts = np.unique(np.asarray(values_N, dtype=float), return_counts=True)
    below = np.cumsum(counts)[:-1]  # how many numbers are below each distinct number but the first
    cuts = (
        {int(np.argmin(np.abs(below - len(values_N) * k / classes))) for k in range(1, classes)} if len(below) else ()
    )
    return [_shortest_between(float(distinct[cut]), float(distinct[cut + 1])) for cut in sorted(cuts)]


def _shortest_between(low: float, high: float) -> str:
    """Returns the number of the fewest digits above `low` and not above `high`, the largest of them, as text."""
    with localcontext(prec=_MOST_DIGITS):
        below, above = Decimal(repr(low)), Decimal(repr(high))
        first = max(above.adjusted(), below.adjusted(), 0) + 1
        cuts = (above.quantize(Decimal(1).scaleb(place), ROUND_FLOOR) for place in range(first, -_MOST_DIGITS, -1))
        return f"{next(cut for cut in cuts if cut > below) + 0:f}"  # + 0 makes 0 of -0


def _check_numbers(settings: CohortConfig, path: str, counts: Counter[str], numbers: set[str]) -> None:
    """Refuses a column most of whose labels are no numbers."""
    words = Counter({label: count for label, count in counts.items() if label not in numbers})
    if 2 * words.total() < counts.total():
        return
    shown = ", ".join(f"'{label}' ({count})" for label, count in sorted(words.items(), key=_most_first)[:_SHOWN])
    which = f"{words.total():,} of its {counts.total():,} values are none, such as {shown}" if words else "it is blank"
    raise InputError(
        f"{path}: '{settings.label}' is no column of numbers ({which}): name one in cohort.label, or set cohort.task "
        "to classification"
    )


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
