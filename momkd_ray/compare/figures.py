"""Figures of a comparison as inline SVG, in the report's style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from momkd_ray.compare.conclusion import omics_gain
from momkd_ray.compare.leaderboard import Row
from momkd_ray.report.drawings import SERIES_COLOURS, inline_svg, style

_FRACTIONS = {"label_fraction": "labels", "omics_fraction": "omics"}  # as `Entry.label` calls them


def omics_figure(pairs: Sequence[tuple[Row, Row]]) -> Markup:
    """Draws each fold's AUC or Spearman's correlation, averaged over seeds, without and with omics, a line per fold."""
    name = pairs[0][0].headline.name
    with rc_context(style()):
        figure = Figure(figsize=(2.2 + 1.9 * len(pairs), 3.4))
        panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        for axes, (without, with_omics) in zip(panels, pairs, strict=True):
            ends_2F = np.array([np.mean(row.headline.folds, axis=0) for row in (without, with_omics)])
            for fold, ends in enumerate(ends_2F.T):
                colour = SERIES_COLOURS[fold % len(SERIES_COLOURS)]
                axes.plot([0, 1], ends, marker="o", color=colour, label=f"fold {fold}")
            gain, interval = omics_gain(without, with_omics)
            ends = f"\n[{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
            axes.set(title=f"{with_omics.label}: {gain:+.3f} pooled{ends}", xlim=(-0.3, 1.3))
            axes.set_xticks([0, 1], ["without omics", "with omics"])
        panels[0].set_ylabel(f"test {name}")
        panels[-1].legend(loc="best")
        return inline_svg(figure, "omics", f"Test {name} of each fold without and with omics")


def fraction_figure(rows: Sequence[Row], key: str, name: str) -> Markup | None:
    """Draws the pooled metric over a fraction, a line per model with its interval; None with one value of it.

    A model that was trained with several values of the other fraction, too, has a line for each of them; one that was
    trained with a single value of this one is a level to compare with.
    """
    lines = _lines_over(rows, key)
    if all(len({getattr(row, key) for row in of}) < 2 for _, of in lines):
        return None
    measure = rows[0].headline.name
    with rc_context(style()):
        figure = Figure(figsize=(5.4, 3.4))
        axes = figure.subplots()
        for i, (model, of) in enumerate(lines):
            drawn = [row.headline for row in of]
            x, y = [getattr(row, key) for row in of], np.array([own.pooled for own in drawn])
            ends = [own.interval or (own.pooled, own.pooled) for own in drawn]
            error = np.array([[value - low, high - value] for value, (low, high) in zip(y, ends, strict=True)]).T
            colour = SERIES_COLOURS[i % len(SERIES_COLOURS)]
            if len(of) == 1:
                axes.axhline(y[0], linestyle="--", color=colour, label=model)
                continue
            axes.errorbar(x, y, np.maximum(error, 0), marker="o", capsize=3, color=colour, label=model)
        axes.set(xlabel=f"fraction of {name}", ylabel=f"pooled {measure}")
        axes.legend(loc="best")
        return inline_svg(figure, key.replace("_", "-"), f"Pooled {measure} over the fraction of {name}")


def _lines_over(rows: Sequence[Row], key: str) -> list[tuple[str, list[Row]]]:
    """Groups the rows by model and the fraction that is not `key`; returns each line's name and its sorted rows."""
    [(other, unit)] = [(fraction, unit) for fraction, unit in _FRACTIONS.items() if fraction != key]
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.name, getattr(row, other)), []).append(row)
    lines = Counter(model for model, _ in groups)
    return [
        (
            f"{model} ({value:g} {unit})" if lines[model] > 1 else model,
            sorted(of, key=lambda row: float(getattr(row, key))),
        )
        for (model, value), of in groups.items()
    ]


def forest_figure(rows: Sequence[Row], reference: str) -> Markup:
    """Draws each model's difference to the reference with its interval."""
    measure = f"pooled {rows[0].headline.name}"
    compared = [
        (row.label, own.difference, own.difference_interval)
        for row in rows
        if (own := row.headline).difference is not None
    ]
    with rc_context(style()):
        figure = Figure(figsize=(6.4, 0.9 + 0.32 * len(compared)))
        axes = figure.subplots()
        axes.axvline(0, color=SERIES_COLOURS[1], linewidth=1)
        for place, (_, difference, interval) in enumerate(reversed(compared)):
            if interval is not None:
                axes.plot(interval, [place, place], color=SERIES_COLOURS[0])
            axes.plot([difference], [place], marker="o", color=SERIES_COLOURS[0])
        axes.set_yticks(range(len(compared)), [label for label, *_ in reversed(compared)])
        axes.set_xlabel(f"{measure} minus that of {reference}")
        return inline_svg(figure, "differences", f"Differences of {measure} to {reference} with 95 % intervals")
