"""Statistics of more than two classes on an external cohort, with their files, figures and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.crossval.class_metrics import auc_name, class_intervals, class_scores, confusion_counts
from momkd_ray.crossval.classes_run import ClassesRun
from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import ExternalCohort
from momkd_ray.evaluate.decisions import plain
from momkd_ray.evaluate.page import environment
from momkd_ray.evaluate.predictions import overlap_notes, patients_of_run
from momkd_ray.evaluate.tables import shown, with_interval
from momkd_ray.report.class_figures import classes_roc_figure, confusion_figure
from momkd_ray.report.classes_page import metric_name
from momkd_ray.report.curves import calibration_drawing
from momkd_ray.report.drawings import Drawing, write_drawings
from momkd_ray.run.layout import EXCLUDED
from momkd_ray.statistics.calibration import brier, calibration_intercept, calibration_slope
from momkd_ray.statistics.delong import NO_VARIANCE, delong
from momkd_ray.statistics.percentiles import NO_WIDTH, listed

FIGURES, SEED = "figures", 1
NOT_GIVEN = (
    "Thresholds, decision curves, recalibration, subgroups and comparisons with other predictions are of two classes "
    "and are not given here."
)


def refuse_options(given: Mapping[str, object], run: ClassesRun) -> None:
    """Raises `InputError` if an option is given that is for two classes only."""
    what = f"tells {len(run.classes)} apart ({', '.join(run.classes)})"
    for option, value in given.items():
        if value:
            told = f"predicts a number, {run.label}" if run.predicts_number else what
            raise InputError(f"--{option} is for two classes, but this run {told}: leave it out")


def evaluate_patients_of_classes(table: pd.DataFrame, run: ClassesRun) -> dict[str, Any]:
    """Computes the statistics of labelled and predicted patients.

    Args:
        table: index `patient_id`; `y`, the number of the class, and `p_<class>` of each.
        run: of the models.

    Raises:
        InputError: a class has fewer than two patients.
    """
    y_N, p_NY = _arrays(table, run)
    counts = np.bincount(y_N, minlength=len(run.classes))
    for name, count in zip(run.classes, counts, strict=True):
        if count < 2:
            raise InputError(
                f"{count} of the evaluated patients are {name}, but an evaluation takes two of each class: label or "
                "predict more patients"
            )
    predicted_N = p_NY.argmax(axis=1)
    scores = class_scores(y_N, p_NY, predicted_N, run.classes, ordered=run.ordered)
    intervals = class_intervals(y_N, p_NY, predicted_N, run.classes, SEED, ordered=run.ordered)
    overlap = patients_of_run(table.index, run)
    of_class = {}
    for y, name in enumerate(run.classes):
        result = delong(y_N == y, p_NY[:, y])
        interval = result.interval(0)
        of_class[name] = {
            "patients": int(counts[y]),
            "auc": float(result.auc_M[0]),
            "delong_interval": listed(interval),
            "sensitivity": float((predicted_N[y_N == y] == y).mean()),
            "specificity": float((predicted_N[y_N != y] != y).mean()),
            "mean_probability": float(p_NY[:, y].mean()),
            "observed_share": float((y_N == y).mean()),
            "intercept": plain(calibration_intercept(y_N == y, p_NY[:, y])),
            "slope": plain(calibration_slope(y_N == y, p_NY[:, y])),
            "brier": brier(y_N == y, p_NY[:, y]),
        }
    confusion = confusion_counts(y_N, predicted_N, np.ones((1, len(y_N))), len(run.classes))[0].astype(int)
    return {
        "label": run.label,
        "classes": list(run.classes),
        "ordered": run.ordered,
        "run": {"dir": run.location, "fingerprint": run.fingerprint, "folds": list(run.folds)},
        "cohort": {
            "patients": len(table),
            "classes": {name: int(count) for name, count in zip(run.classes, counts, strict=True)},
            "also_in_the_run": {"patients": len(overlap), "examples": overlap[:3]},
        },
        "metrics": {
            name: {"value": value, "bootstrap_interval": listed(intervals[name])} for name, value in scores.items()
        },
        "of_class": of_class,
        "confusion": confusion.tolist(),
    }


def classes_summary(evaluation: dict[str, Any]) -> str:
    """Formats the main metrics for a terminal."""
    classes = tuple(evaluation["classes"])
    lines = [classes_verdict(evaluation), ""]
    for name, one in evaluation["metrics"].items():
        lines.append(f"{metric_name(name, classes):<44} {with_interval(one['value'], one['bootstrap_interval'])}")
    lines += ["", "patients by true class (rows) and predicted class:"]
    width = max(6, *map(len, classes))
    lines.append(" " * (width + 2) + " ".join(f"{name:>{width}}" for name in classes))
    for name, row in zip(classes, evaluation["confusion"], strict=True):
        lines.append(f"  {name:<{width}}" + " ".join(f"{count:>{width}}" for count in row))
    return "\n".join(lines)


def classes_verdict(evaluation: dict[str, Any]) -> str:
    """Says in one sentence what the evaluation found."""
    cohort, auc = evaluation["cohort"], evaluation["metrics"]["auc"]
    counts = ", ".join(f"{count:,} {name}" for name, count in cohort["classes"].items())
    if auc["bootstrap_interval"] is None:
        chance = f"as {NO_WIDTH}"
    else:
        low = auc["bootstrap_interval"][0]
        chance = "no better than chance by its interval" if low <= 0.5 else "better than chance"
    return (
        f"On {cohort['patients']:,} patients ({counts}) the ensemble tells the classes of {evaluation['label']} apart "
        f"with a macro AUC of {with_interval(auc['value'], auc['bootstrap_interval'])}, {chance}."
    )


def _arrays(table: pd.DataFrame, run: ClassesRun) -> tuple[np.ndarray, np.ndarray]:
    return table["y"].to_numpy(dtype=np.int64), table[[f"p_{name}" for name in run.classes]].to_numpy(dtype=float)


def classes_notes(evaluation: dict[str, Any]) -> list[str]:
    """Returns the notes above the results: patients of the run, small classes, intervals that are not given."""
    notes, cohort = overlap_notes(evaluation), evaluation["cohort"]
    name, fewest = min(cohort["classes"].items(), key=lambda one: one[1])
    if fewest < 20:
        notes.append(f"The smallest class, {name}, has {fewest} patients: every interval of it is wide.")
    without = [name for name, one in evaluation["of_class"].items() if one["delong_interval"] is None]
    if without:
        notes.append(
            f"The AUC of {', '.join(without)} has no interval by DeLong: {NO_VARIANCE}, as where every patient of "
            "the class ranks above all others."
        )
    return [*notes, NOT_GIVEN]


def write_classes(
    run: ClassesRun, cohort: ExternalCohort, table: pd.DataFrame, evaluation: dict[str, Any], out: str
) -> None:
    """Writes the tables, the figures, evaluation.json and evaluation.html."""
    y_N, p_NY = _arrays(table, run)
    predicted = [run.classes[y] for y in p_NY.argmax(axis=1)]
    named = pd.DataFrame({cohort.patient_column: table.index.astype(str), "label": [run.classes[y] for y in y_N]})
    for y, name in enumerate(run.classes):
        named[f"p_{name}"] = p_NY[:, y]
    classes = tuple(run.classes)
    performance = [
        (metric_name(name, classes), one["value"], *(one["bootstrap_interval"] or (None, None)), "bootstrap")
        for name, one in evaluation["metrics"].items()
    ]
    for name, one in evaluation["of_class"].items():
        low, high = one["delong_interval"] or (None, None)
        performance.append((metric_name(auc_name(name), classes), one["auc"], low, high, "DeLong"))
        measures = ("sensitivity", "specificity", "brier")
        performance += [(f"{measure} of {name}", one[measure], None, None, "") for measure in measures]
    columns = ["measure", "value", "low", "high", "method"]
    tables = {
        "performance.csv": pd.DataFrame(performance, columns=columns),
        EXCLUDED: cohort.excluded,
        "predictions.csv": named.assign(predicted=predicted),
    }
    for name, one in tables.items():
        storage.write_text(storage.join(out, name), one.to_csv(index=False, lineterminator="\n"))
    aucs = {name: evaluation["of_class"][name]["auc"] for name in run.classes}
    drawings: list[Drawing] = [
        classes_roc_figure(y_N, p_NY, run.classes, aucs, evaluation["metrics"]["auc"]["value"]),
        confusion_figure(np.array(evaluation["confusion"]), run.classes),
        *(
            calibration_drawing(y_N == y, {"raw": p_NY[:, y]}, name, SEED, f"calibration-{y}")
            for y, name in enumerate(run.classes)
        ),
    ]
    write_drawings(drawings, storage.join(out, FIGURES))
    page = (
        environment()
        .get_template("classes_evaluation.html.jinja")
        .render(
            e=evaluation,
            drawings=drawings,
            figures=FIGURES,
            verdict=classes_verdict(evaluation),
            metrics=[
                [metric_name(name, classes), with_interval(one["value"], one["bootstrap_interval"])]
                for name, one in evaluation["metrics"].items()
            ],
            of_class=[_row(name, one) for name, one in evaluation["of_class"].items()],
            version=__version__,
        )
    )
    storage.write_text(storage.join(out, "evaluation.html"), page)
    storage.write_json(storage.join(out, "evaluation.json"), evaluation)


def _row(name: str, one: dict[str, Any]) -> list[str]:
    return [
        name,
        str(one["patients"]),
        with_interval(one["auc"], one["delong_interval"]),
        f"{one['sensitivity']:.2f}",
        f"{one['specificity']:.2f}",
        f"{one['mean_probability']:.3f}",
        f"{one['observed_share']:.3f}",
        shown(one["intercept"]["value"], one["intercept"]["interval"], 2),
        shown(one["slope"]["value"], one["slope"]["interval"], 2),
        f"{one['brier']:.3f}",
    ]
