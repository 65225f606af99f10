"""Drawings of a binary classifier on patients: ROC, precision and recall, calibration, decision curve, forest.

Shapes: N patients, G points of a grid, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from momkd_ray.report.drawings import BLUE, GREEN, INK, MUTED, VERMILLION, Drawing, short
from momkd_ray.statistics.calibration import calibration_curve, smooth_curve
from momkd_ray.statistics.net_benefit import decision_curve

Floats = NDArray[np.float64]
_GRID = np.linspace(0, 1, 101)
_REPLICATES = 500
_DOTS = (0, (1, 2))


@dataclass(frozen=True)
class Band:
    """A pointwise bootstrap band of a curve over a grid."""

    x_G: Floats
    low_G: Floats
    high_G: Floats


@dataclass(frozen=True)
class ForestRow:
    """A line of a forest plot: an estimate with its interval, or a heading without."""

    name: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""


def roc_band(y_N: np.ndarray, p_N: np.ndarray, seed: int) -> Band:
    """Resamples patients, stratified by class, and takes percentiles of sensitivity at each false positive rate."""
    rng = np.random.default_rng(seed)
    positive_J, negative_I = np.flatnonzero(y_N), np.flatnonzero(~y_N)
    drawn = []
    for _ in range(_REPLICATES):
        own = np.concatenate([rng.choice(positive_J, len(positive_J)), rng.choice(negative_I, len(negative_I))])
        fpr, tpr, _ = roc_curve(y_N[own], p_N[own], drop_intermediate=False)
        drawn.append(np.interp(_GRID, fpr, tpr))
    low_G, high_G = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Band(_GRID, low_G, high_G)


def roc_drawing(
    y_N: np.ndarray,
    p_N: np.ndarray,
    auc: float,
    interval: Sequence[float] | None,
    seed: int,
    threshold: float | None = None,
) -> Drawing:
    """Draws the ROC curve with its band; the point of the threshold is marked."""
    y_N = np.asarray(y_N, dtype=bool)
    fpr, tpr, _ = roc_curve(y_N, p_N, drop_intermediate=False)
    band = roc_band(y_N, p_N, seed)
    ends = "no interval" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"

    def draw() -> Figure:
        figure = Figure(figsize=(4.4, 4.6))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS)
        axes.fill_between(band.x_G, band.low_G, band.high_G, color=BLUE, alpha=0.18, linewidth=0, label="95 % band")
        axes.plot(fpr, tpr, color=BLUE, linewidth=2, label=f"AUC {auc:.3f} ({ends})")
        if threshold is not None:
            called = p_N >= threshold
            axes.plot(
                [called[~y_N].mean()], [called[y_N].mean()], "o", color=VERMILLION, label="at the frozen threshold"
            )
        _unit(axes, "1 - specificity", "sensitivity")
        figure.legend(loc="outside lower center", ncols=1)
        return figure

    data = pd.DataFrame({"one_minus_specificity": fpr, "sensitivity": tpr})
    alt = f"ROC curve; AUC {auc:.3f}, {ends if interval is None else f'95 % interval {ends}'}"
    return Drawing("roc", "ROC curve with a pointwise 95 % band, a bootstrap over patients.", alt, draw, data)


def precision_recall_drawing(y_N: np.ndarray, p_N: np.ndarray, value: float) -> Drawing:
    """Draws precision over recall, and the prevalence as the precision of chance."""
    precision, recall, _ = precision_recall_curve(y_N, p_N)
    prevalence = float(np.mean(y_N))

    def draw() -> Figure:
        figure = Figure(figsize=(4.4, 4.6))
        axes = figure.subplots()
        axes.axhline(prevalence, color=MUTED, linewidth=1, linestyle=_DOTS, label=f"prevalence {prevalence:.3f}")
        axes.step(recall, precision, where="post", color=BLUE, linewidth=2, label=f"average precision {value:.3f}")
        _unit(axes, "recall (sensitivity)", "precision (PPV)")
        figure.legend(loc="outside lower center", ncols=1)
        return figure

    data = pd.DataFrame({"recall": recall, "precision": precision})
    alt = f"Precision-recall curve; average precision {value:.3f}, prevalence {prevalence:.3f}"
    return Drawing("precision-recall", "Precision over recall; dotted: the prevalence.", alt, draw, data)


def calibration_drawing(
    y_N: np.ndarray, probabilities: Mapping[str, np.ndarray], positive: str, seed: int, name: str = "calibration"
) -> Drawing:
    """Draws observed shares over predicted probabilities, a panel for each kind of probability, with intervals."""
    bins = {kind: calibration_curve(y_N, p) for kind, p in probabilities.items()}
    smooth = {kind: smooth_curve(y_N, p, seed) for kind, p in probabilities.items()}

    def draw() -> Figure:
        figure = Figure(figsize=(3.4 * len(probabilities) + 0.4, 3.9))
        panels = figure.subplots(1, len(probabilities), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, probabilities, strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS)
            curve, points = smooth[kind], bins[kind]
            axes.fill_between(curve["predicted"], curve["low"], curve["high"], color=BLUE, alpha=0.18, linewidth=0)
            axes.plot(curve["predicted"], curve["observed"], color=BLUE, linewidth=1.6)
            error = np.abs(points[["low", "high"]].to_numpy() - points[["observed"]].to_numpy()).T
            axes.errorbar(
                points["predicted"], points["observed"], error, fmt="o", color=VERMILLION, markersize=4, capsize=2
            )
            axes.hist(probabilities[kind], np.linspace(0, 1, 41).tolist(), weights=_rug(len(y_N)), color=MUTED)
            _unit(axes, f"probability of {short(positive)}", "")
            axes.set_title(kind, fontsize=9)
        panels[0].set_ylabel(f"observed share of {short(positive)}")
        return figure

    parts = [table.assign(probability=kind, shape="bin") for kind, table in bins.items()]
    parts += [table.assign(probability=kind, shape="smooth") for kind, table in smooth.items() if len(table)]
    alt = f"Calibration: observed share of {positive} over the predicted probability, {' and '.join(probabilities)}"
    caption = (
        "Calibration: points are groups of equal size with Wilson's 95 % intervals, the line a smooth fit with a 95 % "
        "band; dotted: perfect. Along the bottom: how many patients have that probability."
    )
    return Drawing(name, caption, alt, draw, pd.concat(parts, ignore_index=True))


def _rug(count: int) -> np.ndarray:
    """Weights that make a histogram of all patients at most a sixth of a unit axis high."""
    return np.full(count, 1 / (6 * max(count, 1)))


def decision_drawing(
    y_N: np.ndarray, probabilities: Mapping[str, np.ndarray], positive: str, seed: int, name: str = "decision-curve"
) -> Drawing:
    """Draws net benefit over the threshold probability, of the model and of calling everybody and nobody."""
    curves = {kind: decision_curve(y_N, p, seed) for kind, p in probabilities.items()}
    prevalence = float(np.mean(y_N))

    def draw() -> Figure:
        figure = Figure(figsize=(5.2, 4.2))
        axes = figure.subplots()
        first = next(iter(curves.values()))
        axes.plot(first["threshold"], first["call_all"], color=MUTED, linestyle="--", label=f"all {short(positive)}")
        axes.axhline(0, color=MUTED, linewidth=1, linestyle=_DOTS, label=f"none {short(positive)}")
        for colour, (kind, curve) in zip((BLUE, GREEN, VERMILLION), curves.items(), strict=False):
            axes.fill_between(curve["threshold"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve["threshold"], curve["net_benefit"], color=colour, linewidth=1.8, label=kind)
        axes.set(xlim=(0, 1), ylim=(-0.12, max(prevalence, 0.05) * 1.12))
        axes.set(xlabel=f"probability from which {short(positive)} is acted on", ylabel="net benefit per patient")
        figure.legend(loc="outside lower center", ncols=2)
        return figure

    data = pd.concat([curve.assign(probability=kind) for kind, curve in curves.items()], ignore_index=True)
    alt = f"Decision curve: net benefit of the model against calling all or none {positive}"
    caption = (
        "Decision curve: true positives less false positives, weighted by the odds of the threshold, per patient; "
        "band: 95 %, bootstrap. A model is of use where its line is above both others."
    )
    return Drawing(name, caption, alt, draw, data)


def forest_drawing(
    name: str, rows: Sequence[ForestRow], axis: str, reference: float, caption: str, alt: str
) -> Drawing:
    """Draws estimates with intervals below one another; `reference` is a dashed line."""

    def draw() -> Figure:
        figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)))
        axes = figure.subplots()
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle="--")
        for place, row in enumerate(reversed(rows)):
            if row.value is None:
                continue
            if row.interval is not None:
                axes.plot(row.interval, [place, place], color=BLUE)
            axes.plot([row.value], [place], "s", color=BLUE, markersize=5)
        axes.set_yticks(range(len(rows)), [short(row.name) for row in reversed(rows)])
        for tick, row in zip(axes.get_yticklabels(), reversed(rows), strict=True):
            tick.set_color(INK)
            tick.set_fontweight("normal" if row.name.startswith(" ") else "bold")
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(rows)), [row.note for row in reversed(rows)])
        right.spines["right"].set_visible(False)
        right.tick_params(length=0)
        axes.grid(axis="y", visible=False)
        axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel=axis)
        return figure

    data = pd.DataFrame(
        [(r.name, r.value, *(r.interval or (None, None)), r.note) for r in rows],
        columns=["name", "value", "low", "high", "note"],
    )
    return Drawing(name, caption, alt, draw, data)


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
