"""Writes evaluation.html: an external evaluation in one file that loads nothing from a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from momkd_ray import __version__
from momkd_ray.evaluate.evaluation import PROBABILITIES
from momkd_ray.evaluate.predictions import FOLD
from momkd_ray.evaluate.tables import (
    MEASURES,
    difference_text,
    heterogeneity,
    p_value,
    shown,
    verdict,
    with_interval,
)
from momkd_ray.report.curves import (
    ForestRow,
    calibration_drawing,
    decision_drawing,
    forest_drawing,
    precision_recall_drawing,
    roc_drawing,
)
from momkd_ray.report.drawings import BLUE, INK, MUTED, VERMILLION, Drawing, short
from momkd_ray.statistics.delong import NO_VARIANCE
from momkd_ray.statistics.percentiles import NO_WIDTH
from momkd_ray.statistics.spread import interval_text


def drawings_of(evaluation: Mapping[str, Any], table: pd.DataFrame, seed: int) -> dict[str, Drawing]:
    """Makes the drawings of an evaluation, by name."""
    y, p = table["y"].to_numpy(dtype=bool), table["p"].to_numpy(dtype=float)
    positive = evaluation["classes"][1]
    auc = evaluation["discrimination"]["auc"]
    threshold = evaluation["decisions"][0]["threshold"]
    kinds = [
        kind for kind in PROBABILITIES if kind != "corrected" or evaluation["prevalence_shift"]["balanced_sampling"]
    ]
    by_kind = {kind: table[kind].to_numpy(dtype=float) for kind in kinds}
    found = [
        roc_drawing(y, p, auc["value"], auc["delong_interval"], seed, threshold),
        precision_recall_drawing(y, p, evaluation["discrimination"]["average_precision"]["value"]),
        calibration_drawing(y, by_kind, positive, seed),
        decision_drawing(y, {kind: by_kind[kind] for kind in kinds if kind != "raw"} or by_kind, positive, seed),
        _histogram(y, p, threshold, tuple(evaluation["classes"])),
    ]
    if evaluation["subgroups"]:
        found.append(_forest(evaluation))
    if evaluation["folds"] is not None:
        found.append(_spread(table, y, positive))
    return {drawing.name: drawing for drawing in found}


def _histogram(y_N: np.ndarray, p_N: np.ndarray, threshold: float, classes: tuple[str, ...]) -> Drawing:
    bins = np.linspace(0, 1, 21)

    def draw() -> Figure:
        figure = Figure(figsize=(4.4, 3.8))
        axes = figure.subplots()
        for value, colour, hatch in ((False, BLUE, "//"), (True, VERMILLION, "..")):
            own = p_N[y_N == value]
            label = f"truly {short(classes[int(value)])}, n = {len(own)}"
            axes.hist(own, bins.tolist(), histtype="stepfilled", facecolor=colour, alpha=0.3, label=label)
            axes.hist(own, bins.tolist(), histtype="step", edgecolor=colour, linewidth=1.6, hatch=hatch)
        axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="frozen threshold")
        axes.set(xlabel=f"probability of {short(classes[1])}, as the models give it", ylabel="patients", xlim=(0, 1))
        figure.legend(loc="outside lower center", ncols=1)
        return figure

    data = pd.DataFrame({"low": bins[:-1], "high": bins[1:]})
    for value, name in enumerate(classes):
        data[name] = np.histogram(p_N[y_N == bool(value)], bins)[0]
    alt = f"Histogram of the probabilities of {classes[1]} by true class"
    return Drawing("histogram", "Probabilities by true class; dashed: the frozen threshold.", alt, draw, data)


def _forest(evaluation: Mapping[str, Any]) -> Drawing:
    rows = []
    for one in evaluation["subgroups"]:
        test = one["heterogeneity"]
        rows.append(ForestRow(one["column"], note="" if test is None else f"heterogeneity p = {p_value(test['p'])}"))
        for level in one["levels"]:
            auc = level["auc"]
            note = f"{level['positives']} of {level['patients']}"
            interval = None if auc["interval"] is None else (auc["interval"][0], auc["interval"][1])
            rows.append(ForestRow(f"  {level['level']}", auc["value"], interval, note))
    overall = evaluation["discrimination"]["auc"]["value"]
    positive = evaluation["classes"][1]
    return forest_drawing(
        "subgroups",
        rows,
        "AUC with 95 % interval (DeLong)",
        overall,
        f"AUC in subgroups; right: {positive} patients of all in the level; dashed: all patients together.",
        "Forest plot of the AUC in subgroups: " + ", ".join(one["column"] for one in evaluation["subgroups"]),
    )


def _spread(table: pd.DataFrame, y_N: np.ndarray, positive: str) -> Drawing:
    columns = [name for name in table.columns if name.startswith(FOLD)]
    order = np.argsort(table["p"].to_numpy(), kind="stable")
    p_NF, p_N, y_N = table[columns].to_numpy(dtype=float)[order], table["p"].to_numpy()[order], y_N[order]

    def draw() -> Figure:
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        x_N = np.arange(1, len(p_N) + 1)
        axes.vlines(x_N, p_NF.min(axis=1), p_NF.max(axis=1), color=MUTED, linewidth=0.8, alpha=0.6)
        for value, colour, marker in ((False, BLUE, "o"), (True, VERMILLION, "^")):
            own = y_N == value
            label = f"truly {short(positive)}" if value else "truly the other class"
            axes.plot(x_N[own], p_N[own], marker, color=colour, markersize=3, label=label)
        axes.set(xlabel="patients by mean probability", ylabel=f"probability of {short(positive)}", ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", ncols=2)
        return figure

    data = table[["y", "p", *columns]].iloc[order].rename_axis("patient_id").reset_index()
    return Drawing(
        "disagreement",
        "Each patient's mean probability, and the range over the folds' models (grey).",
        "Mean probability of each patient with the range over the models of the folds",
        draw,
        data,
    )


def environment() -> Environment:
    """Returns Jinja's environment with the templates of evaluations and reports."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader("momkd_ray.evaluate", ""), PackageLoader("momkd_ray.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"shown": shown, "p_value": p_value, "with_interval": with_interval}
    found.globals |= {
        "difference_text": difference_text,
        "heterogeneity": heterogeneity,
        "interval_text": interval_text,
    }
    found.globals |= {"NO_VARIANCE": NO_VARIANCE, "NO_WIDTH": NO_WIDTH}
    return found


def render_page(evaluation: Mapping[str, Any], drawings: Mapping[str, Drawing], figures: str) -> str:
    """Renders the page.

    Args:
        evaluation: the content of evaluation.json.
        drawings: by name.
        figures: folder of the figures' files beside the page.
    """
    return (
        environment()
        .get_template("evaluation.html.jinja")
        .render(
            e=evaluation,
            drawings=drawings,
            figures=figures,
            verdict=verdict(evaluation),
            measures=MEASURES,
            decisions=_decision_rows(evaluation),
            version=__version__,
        )
    )


def _decision_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    header = ["", *(at["name"] for at in evaluation["decisions"])]
    rows = [header, ["threshold", *(f"{at['threshold']:.3f}" for at in evaluation["decisions"])]]
    for name, title in MEASURES.items():
        rows.append([title, *(shown(at[name]["value"], at[name]["interval"]) for at in evaluation["decisions"])])
    for place, first in enumerate(evaluation["decisions"][0]["at_prevalence"]):
        if place == 0:
            continue  # this cohort's own, which PPV and NPV are of
        for name in ("ppv", "npv"):
            cells = [at["at_prevalence"][place][name] for at in evaluation["decisions"]]
            title = f"{MEASURES[name]} at prevalence {first['prevalence']:g}"
            rows.append([title, *(shown(cell["value"], cell["interval"]) for cell in cells)])
    return rows
