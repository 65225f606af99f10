"""The drawings of a cross-validation's report: curves of folds and pooled patients, training, genes, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from momkd_ray.report.curves import roc_band
from momkd_ray.report.drawings import BLUE, INK, MUTED, SERIES_COLOURS, VERMILLION, Drawing, short
from momkd_ray.train.validation import AUC, SPEARMAN

# dashes distinguish more than six folds
_FOLD_DASHES = ("-", "--", ":", "-.")
_LEGEND_COLUMNS = 3
_DOTS = (0, (1, 2))


def roc_figure(
    y_by_fold: Mapping[int, np.ndarray],
    p_by_fold: Mapping[int, np.ndarray],
    pooled: tuple[np.ndarray, np.ndarray],
    auc: Mapping[str, Any],
    seed: int,
) -> Drawing:
    """Draws ROC curves of the folds and of the pooled patients (y, p) with a band; `auc` is of metrics.json."""
    band = roc_band(pooled[0], pooled[1], seed)
    curves = {f"fold {fold}": roc_curve(y_by_fold[fold], p_by_fold[fold])[:2] for fold in y_by_fold}
    fpr, tpr, _ = roc_curve(*pooled)

    def draw() -> Figure:
        figure, axes = _square(curves=len(y_by_fold) + 3)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS, label="chance 0.500")
        for index, ((name, (x, y)), value) in enumerate(zip(curves.items(), auc["folds"], strict=True)):
            axes.plot(x, y, **_fold_line(index), label=f"{name}  {value:.3f}")
        axes.fill_between(band.x_G, band.low_G, band.high_G, color=MUTED, alpha=0.2, linewidth=0, label="95 % band")
        axes.plot(fpr, tpr, color=INK, linewidth=2.4, label=f"pooled  {auc['pooled']:.3f}")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", title="AUC", ncols=_LEGEND_COLUMNS)
        return figure

    alt = f"ROC curves of {len(y_by_fold)} folds; pooled AUC {auc['pooled']:.3f}"
    data = _curve_table({**curves, "pooled": (fpr, tpr)}, "one_minus_specificity", "sensitivity")
    caption = "ROC: each fold (thin), pooled (bold), and a pointwise 95 % band of the pooled curve."
    return Drawing("roc", caption, alt, draw, data)


def pr_figure(
    y_by_fold: Mapping[int, np.ndarray],
    p_by_fold: Mapping[int, np.ndarray],
    pooled: tuple[np.ndarray, np.ndarray],
    auprc: Mapping[str, Any],
) -> Drawing:
    """Draws precision-recall curves of the folds and of the pooled patients; `auprc` is that entry of metrics.json."""
    prevalence = float(np.mean(pooled[0]))

    def curve(y_N: np.ndarray, p_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(y_N, p_N)
        return recall, precision

    curves = {f"fold {fold}": curve(y_by_fold[fold], p_by_fold[fold]) for fold in y_by_fold}
    whole = curve(*pooled)

    def draw() -> Figure:
        figure, axes = _square(curves=len(y_by_fold) + 2)
        axes.axhline(prevalence, color=MUTED, linewidth=1, linestyle=_DOTS, label=f"prevalence  {prevalence:.3f}")
        for index, ((name, (x, y)), value) in enumerate(zip(curves.items(), auprc["folds"], strict=True)):
            axes.step(x, y, where="post", **_fold_line(index), label=f"{name}  {value:.3f}")
        axes.step(*whole, where="post", color=INK, linewidth=2.4, label=f"pooled  {auprc['pooled']:.3f}")
        axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", title="average precision", ncols=_LEGEND_COLUMNS)
        return figure

    alt = (
        f"Precision-recall curves of {len(y_by_fold)} folds; pooled average precision "
        f"{auprc['pooled']:.3f}, prevalence {prevalence:.3f}"
    )
    data = _curve_table({**curves, "pooled": whole}, "recall", "precision")
    return Drawing("precision-recall", "Precision and recall: each fold (thin) and pooled (bold).", alt, draw, data)


def histogram_figure(y_N: np.ndarray, p_N: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> Drawing:
    """Draws histograms of the probabilities of the patients of each true class, and the thresholds."""
    bins = np.linspace(0, 1, 21)

    def draw() -> Figure:
        figure = Figure(figsize=(4.4, 3.8))
        axes = figure.subplots()
        for value, colour, hatch in ((0, BLUE, "//"), (1, VERMILLION, "..")):
            of_class = p_N[y_N == value]
            label = f"truly {short(classes[value])}, n = {len(of_class)}"
            axes.hist(of_class, bins.tolist(), histtype="stepfilled", facecolor=colour, alpha=0.3, label=label)
            axes.hist(of_class, bins.tolist(), histtype="step", edgecolor=colour, linewidth=1.6, hatch=hatch)
        for index, threshold in enumerate(thresholds):
            label = "threshold of a fold" if index == 0 else "_nolegend_"
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label=label)
        axes.set(xlabel=f"probability of {short(classes[1])}", ylabel="patients", xlim=(0, 1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left")
        return figure

    data = pd.DataFrame({"low": bins[:-1], "high": bins[1:]})
    for value, name in enumerate(classes):
        data[name] = np.histogram(p_N[y_N == value], bins)[0]
    alt = f"Histogram of the pooled probabilities of {classes[1]} by true class"
    return Drawing("histogram", "Pooled probabilities by true class.", alt, draw, data)


def training_figure(fold: int, epochs: pd.DataFrame, kept_epoch: int) -> Drawing:
    """Draws validation AUC or correlation (`criterion_of`) and total loss over epochs, counted from 1; marks the kept.

    Args:
        fold: its number.
        epochs: the lines of `metrics.jsonl`, which counts them from 0.
        kept_epoch: counted from 0.
    """
    criterion = SPEARMAN if SPEARMAN.metric in epochs else AUC
    data = epochs[["epoch", criterion.metric, "loss_total"]].assign(epoch=epochs["epoch"] + 1)

    def draw() -> Figure:
        figure = Figure(figsize=(3.4, 3.2))
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, column, label, colour in (
            (above, criterion.metric, f"validation {criterion.name}", BLUE),
            (below, "loss_total", "total loss", VERMILLION),
        ):
            axes.plot(data["epoch"], data[column], color=colour, linewidth=1.4, marker="o", markersize=2)
            axes.axvline(kept_epoch + 1, color=INK, linewidth=1, linestyle="--")
            axes.set_ylabel(label)
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure

    shown = f"validation {criterion.name} and total loss over {len(epochs)} epochs"
    alt = f"Fold {fold}: {shown}; epoch {kept_epoch + 1} kept"
    return Drawing(f"training-fold-{fold}", f"Fold {fold}", alt, draw, data)


def memory_use_figure(epochs_by_fold: Mapping[int, pd.DataFrame], classes: Sequence[str]) -> Drawing | None:
    """Draws the share of each class's memory components in use over training; None if it was not recorded."""
    columns = [f"memory_use_{y}" for y in range(len(classes))]
    known = {fold: table for fold, table in epochs_by_fold.items() if set(columns) <= set(table.columns)}
    known = {fold: table for fold, table in known.items() if table[columns].notna().all(axis=None)}
    if not known:
        return None

    def draw() -> Figure:
        figure = Figure(figsize=(3.2 * len(classes), 3.2))
        panels = figure.subplots(1, len(classes), sharey=True)
        for axes, column, name in zip(panels, columns, classes, strict=True):
            for index, (fold, table) in enumerate(known.items()):
                axes.plot(table["epoch"] + 1, table[column], **_fold_line(index), label=f"fold {fold}")
            axes.set(xlabel="epoch", ylim=(-0.02, 1.05))
            axes.set_title(short(name), fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("share of components in use")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        return figure

    data = pd.concat(
        [table[["epoch", *columns]].assign(epoch=table["epoch"] + 1, fold=fold) for fold, table in known.items()]
    )
    data = data.rename(columns=dict(zip(columns, classes, strict=True)))
    alt = f"Share of the memory components of {listed(classes)} in use over the epochs of each fold"
    caption = "Memory components in use: those whose mass is at least a tenth of their class's mean."
    return Drawing("memory-use", caption, alt, draw, data)


def memory_similarity_figure(fold: int, components_YKS: np.ndarray, classes: Sequence[str]) -> Drawing:
    """Draws the cosine between all pairs of memory components of a fold's model."""
    classes_n, count, width = components_YKS.shape
    flat = components_YKS.reshape(classes_n * count, width)
    cosine = flat @ flat.T

    def draw() -> Figure:
        figure = Figure(figsize=(4.6, 4.0))
        axes = figure.subplots()
        image = axes.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
        for y in range(1, classes_n):
            axes.axhline(y * count - 0.5, color=INK, linewidth=1)
            axes.axvline(y * count - 0.5, color=INK, linewidth=1)
        places = [(y + 0.5) * count - 0.5 for y in range(classes_n)]
        axes.set_xticks(places, [short(name) for name in classes])
        axes.set_yticks(places, [short(name) for name in classes], rotation=90, va="center")
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("cosine")
        bar.ax.tick_params(colors=MUTED)
        return figure

    names = [f"{name} {k}" for name in classes for k in range(count)]
    data = pd.DataFrame(cosine, columns=names)
    data.insert(0, "component", names)
    alt = f"Fold {fold}: cosine between the memory components of {listed(classes)}"
    caption = f"Fold {fold}: cosine between components. Off the diagonal, dark red within a class: they hold the same."
    return Drawing(f"memory-similarity-fold-{fold}", caption, alt, draw, data)


def gene_figure(genes: pd.DataFrame, folds: int) -> Drawing:
    """Draws in how many folds each of the most frequent genes was chosen, and its mean importance."""
    shown = genes.iloc[::-1]

    def draw() -> Figure:
        figure = Figure(figsize=(6.4, 0.8 + 0.2 * len(shown)))
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(range(len(shown)), shown["folds"], color=BLUE)
        left.set(xlabel=f"folds of {folds} that chose it", xlim=(0, folds))
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.barh(range(len(shown)), shown["mean_importance"], color=VERMILLION)
        right.set_xlabel("mean importance")
        left.set_yticks(range(len(shown)), [short(str(gene)) for gene in shown["gene"]])
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
            axes.set_ylim(-0.6, len(shown) - 0.4)
        return figure

    alt = f"The {len(genes)} genes chosen most often over {folds} folds, with their mean importance"
    return Drawing("genes", f"{alt}.", alt, draw, genes)


def listed(names: Sequence[str]) -> str:
    """Returns names as an enumeration."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _curve_table(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], x: str, y: str) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"curve": name, x: own[0], y: own[1]}) for name, own in curves.items()])


def _square(curves: int) -> tuple[Figure, Axes]:
    """Returns a figure whose axes have the same size for any number of curves in the legend below them."""
    figure = Figure(figsize=(4.4, 4.4 + 0.17 * -(-curves // _LEGEND_COLUMNS)))
    axes: Axes = figure.subplots()
    return figure, axes


def _fold_line(index: int) -> dict[str, Any]:
    dashes = _FOLD_DASHES[index // len(SERIES_COLOURS) % len(_FOLD_DASHES)]
    return {"color": SERIES_COLOURS[index % len(SERIES_COLOURS)], "linestyle": dashes, "linewidth": 1.1}
