"""Drawings of a classifier of several classes: each class against the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from momkd_ray.report.drawings import MUTED, SERIES_COLOURS, Drawing, short

_DOTS = (0, (1, 2))
_DASHES = ("-", "--", ":", "-.")


def classes_roc_figure(
    y_N: np.ndarray, p_NY: np.ndarray, classes: Sequence[str], aucs: Mapping[str, float], macro: float
) -> Drawing:
    """Draws the ROC curve of each class against the rest.

    Args:
        y_N: numbers of the classes.
        p_NY: probabilities of the classes.
        classes: their names.
        aucs: of each class, by its name.
        macro: their mean.
    """
    curves = {name: roc_curve(y_N == y, p_NY[:, y])[:2] for y, name in enumerate(classes)}

    def draw() -> Figure:
        figure = Figure(figsize=(4.8, 4.8 + 0.17 * len(classes)))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTS, label="chance 0.500")
        for y, (name, (fpr, tpr)) in enumerate(curves.items()):
            colour, dash = SERIES_COLOURS[y % len(SERIES_COLOURS)], _DASHES[y // len(SERIES_COLOURS) % len(_DASHES)]
            axes.plot(fpr, tpr, color=colour, linestyle=dash, linewidth=1.8, label=f"{short(name)}  {aucs[name]:.3f}")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", title=f"AUC against the rest, mean {macro:.3f}", ncols=2)
        return figure

    parts = [
        pd.DataFrame({"class": name, "one_minus_specificity": fpr, "sensitivity": tpr})
        for name, (fpr, tpr) in curves.items()
    ]
    alt = f"ROC curves of each of {len(classes)} classes against the rest; mean AUC {macro:.3f}"
    return Drawing("roc", "ROC of each class against the rest, pooled.", alt, draw, pd.concat(parts))


def confusion_figure(confusion_YY: np.ndarray, classes: Sequence[str]) -> Drawing:
    """Draws the confusion matrix: counts, shaded by the share of the true class."""
    share_YY = confusion_YY / np.maximum(confusion_YY.sum(axis=1, keepdims=True), 1)

    def draw() -> Figure:
        side = 2.4 + 0.6 * len(classes)
        figure = Figure(figsize=(side, side))
        axes = figure.subplots()
        axes.imshow(share_YY, cmap="Blues", vmin=0, vmax=1)
        for truth, row in enumerate(confusion_YY.tolist()):
            for called, count in enumerate(row):
                dark = share_YY[truth, called] > 0.5
                axes.text(called, truth, str(count), ha="center", va="center", color="white" if dark else "black")
        names = [short(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="truly")
        axes.grid(visible=False)
        return figure

    data = pd.DataFrame(confusion_YY, columns=[f"predicted {name}" for name in classes])
    data.insert(0, "truly", list(classes))
    caption = "Patients by true class (rows) and predicted class (columns), pooled; the shade is the share of the row."
    return Drawing("confusion", caption, f"Confusion matrix of {len(classes)} classes", draw, data)
