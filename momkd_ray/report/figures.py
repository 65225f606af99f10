"""The report's figures as inline SVG: text is kept as text, and greys follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

# placeholder colours, replaced by the page's CSS variables
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"}
# Okabe and Ito's colours, distinct for readers with any colour vision; dashes distinguish more than six folds
_BLUE, _VERMILLION = "#0072b2", "#d55e00"
SERIES_COLOURS = (_BLUE, _VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_FOLD_DASHES = ("-", "--", ":", "-.")
_LEGEND_COLUMNS = 3
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "momkd-ray",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $x
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


def roc_figure(
    y_by_fold: Mapping[int, np.ndarray],
    p_by_fold: Mapping[int, np.ndarray],
    pooled: tuple[np.ndarray, np.ndarray],
    auc: Mapping[str, Any],
) -> Markup:
    """Draws ROC curves of the folds and of the pooled patients (y, p); `auc` is that entry of metrics.json."""
    with rc_context(STYLE):
        figure, axes = _square(curves=len(y_by_fold) + 2)
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (1, 2)), label="chance 0.500")
        for index, (fold, value) in enumerate(zip(y_by_fold, auc["folds"], strict=True)):
            fpr, tpr, _ = roc_curve(y_by_fold[fold], p_by_fold[fold])
            axes.plot(fpr, tpr, **_fold_line(index), label=f"fold {fold}  {value:.3f}")
        fpr, tpr, _ = roc_curve(*pooled)
        axes.plot(fpr, tpr, color=_INK, linewidth=2.4, label=f"pooled  {auc['pooled']:.3f}")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", title="AUC", ncols=_LEGEND_COLUMNS)
        alt = f"ROC curves of {len(y_by_fold)} folds; pooled AUC {auc['pooled']:.3f}"
        return inline_svg(figure, "roc", alt)


def pr_figure(
    y_by_fold: Mapping[int, np.ndarray],
    p_by_fold: Mapping[int, np.ndarray],
    pooled: tuple[np.ndarray, np.ndarray],
    auprc: Mapping[str, Any],
) -> Markup:
    """Draws precision-recall curves of the folds and of the pooled patients; `auprc` is that entry of metrics.json."""
    with rc_context(STYLE):
        figure, axes = _square(curves=len(y_by_fold) + 2)
        prevalence = float(np.mean(pooled[0]))
        dots = (0, (1, 2))
        axes.axhline(prevalence, color=_MUTED, linewidth=1, linestyle=dots, label=f"prevalence  {prevalence:.3f}")
        for index, (fold, value) in enumerate(zip(y_by_fold, auprc["folds"], strict=True)):
            precision, recall, _ = precision_recall_curve(y_by_fold[fold], p_by_fold[fold])
            line = _fold_line(index)
            axes.step(recall, precision, where="post", **line, label=f"fold {fold}  {value:.3f}")
        precision, recall, _ = precision_recall_curve(*pooled)
        label = f"pooled  {auprc['pooled']:.3f}"
        axes.step(recall, precision, where="post", color=_INK, linewidth=2.4, label=label)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", title="average precision", ncols=_LEGEND_COLUMNS)
        alt = (
            f"Precision-recall curves of {len(y_by_fold)} folds; pooled average precision "
            f"{auprc['pooled']:.3f}, prevalence {prevalence:.3f}"
        )
        return inline_svg(figure, "pr", alt)


def histogram_figure(y_N: np.ndarray, p_N: np.ndarray, thresholds: Sequence[float], classes: tuple[str, str]) -> Markup:
    """Draws histograms of the probabilities of the patients of each true class, and the folds' thresholds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.8))
        axes = figure.subplots()
        bins = np.linspace(0, 1, 21).tolist()
        for value, colour, hatch in ((0, _BLUE, "//"), (1, _VERMILLION, "..")):
            of_class = p_N[y_N == value]
            label = f"truly {_short(classes[value])}, n = {len(of_class)}"
            axes.hist(of_class, bins, histtype="stepfilled", facecolor=colour, alpha=0.3, label=label)
            axes.hist(of_class, bins, histtype="step", edgecolor=colour, linewidth=1.6, hatch=hatch)
        for index, threshold in enumerate(thresholds):
            label = "threshold of a fold" if index == 0 else "_nolegend_"
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle="--", label=label)
        axes.set(xlabel=f"probability of {_short(classes[1])}", ylabel="patients", xlim=(0, 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left")
        alt = f"Histogram of the pooled probabilities of {classes[1]} by true class"
        return inline_svg(figure, "histogram", alt)


def training_figure(fold: int, epochs: pd.DataFrame, best_epoch: int) -> Markup:
    """Draws validation AUC and total loss of one fold over its epochs; the chosen epoch is marked."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4, 3.2))
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, column, label, colour in (
            (above, "val_auc", "validation AUC", _BLUE),
            (below, "loss_total", "total loss", _VERMILLION),
        ):
            axes.plot(epochs["epoch"], epochs[column], color=colour, linewidth=1.4, marker="o", markersize=2)
            axes.axvline(best_epoch, color=_INK, linewidth=1, linestyle="--")
            axes.set_ylabel(label)
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        alt = f"Fold {fold}: validation AUC and total loss over {len(epochs)} epochs; epoch {best_epoch} chosen"
        return inline_svg(figure, f"training{fold}", alt)


def _square(curves: int) -> tuple[Figure, Axes]:
    """Returns a figure whose axes have the same size for any number of curves in the legend below them."""
    figure = Figure(figsize=(4.4, 4.4 + 0.17 * -(-curves // _LEGEND_COLUMNS)))
    axes: Axes = figure.subplots()
    return figure, axes


def _fold_line(index: int) -> dict[str, Any]:
    dashes = _FOLD_DASHES[index // len(SERIES_COLOURS) % len(_FOLD_DASHES)]
    return {"color": SERIES_COLOURS[index % len(SERIES_COLOURS)], "linestyle": dashes, "linewidth": 1.1}


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Renders a figure to inline SVG whose ids begin with `name`, described by `alt`."""
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's ids are unique within a figure, and the page has several
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))
