"""The drawing of predicted numbers: every patient's true number over its score, with the line and group means."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from momkd_ray.crossval.score_metrics import TRUE_SCORE
from momkd_ray.model.expected_score import SCORE
from momkd_ray.report.drawings import BLUE, INK, MUTED, VERMILLION, Drawing, short
from momkd_ray.statistics.linear_calibration import group_means, linear_calibration

_DOTS = (0, (1, 2))


def score_figure(patients: pd.DataFrame, label: str, spearman: float) -> Drawing:
    """Draws the true numbers of patients over their scores.

    Args:
        patients: one row per patient: `patient_id`, `score`, `true_score`.
        label: the name of the number.
        spearman: Spearman's correlation, for the description.
    """
    score_N, true_N = patients[SCORE].to_numpy(dtype=float), patients[TRUE_SCORE].to_numpy(dtype=float)
    line, groups = linear_calibration(true_N, score_N), group_means(true_N, score_N)
    ends = np.array([score_N.min(), score_N.max()])

    def draw() -> Figure:
        figure = Figure(figsize=(4.8, 5.2))
        axes = figure.subplots()
        axes.axline((ends[0], ends[0]), slope=1, color=MUTED, linewidth=1, linestyle=_DOTS, label="right")
        axes.plot(score_N, true_N, "o", color=BLUE, markersize=3.5, alpha=0.5, label="a patient")
        if line.slope.value is not None and line.intercept.value is not None:
            at_ends = line.intercept.value + line.slope.value * ends
            axes.plot(ends, at_ends, color=INK, linewidth=1.4, label=f"line, slope {line.slope.value:.2f}")
        error = np.nan_to_num(np.abs(groups[["low", "high"]].to_numpy() - groups[["true"]].to_numpy())).T
        axes.errorbar(
            groups["predicted"],
            groups["true"],
            error,
            fmt="s",
            color=VERMILLION,
            markersize=5,
            capsize=3,
            label="mean of a fifth",
        )
        axes.set(xlabel=f"predicted {short(label)}", ylabel=f"true {short(label)}")
        figure.legend(loc="outside lower center", ncols=2)
        return figure

    named = ["patient_id", *(["fold"] if "fold" in patients.columns else []), SCORE, TRUE_SCORE]
    caption = (
        f"True {label} over the predicted one, a point a patient; squares: means of fifths of the patients by "
        "prediction, with 95 % intervals; dotted: where both are equal."
    )
    alt = f"Scatter of true over predicted {label} of {len(patients)} patients; Spearman's correlation {spearman:.3f}"
    return Drawing("score", caption, alt, draw, patients[named])
