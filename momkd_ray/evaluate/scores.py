"""Statistics of a predicted number on an external cohort, with their files, figure and page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.crossval.classes_run import ClassesRun
from momkd_ray.crossval.score_metrics import SCORE_METRICS, TRUE_SCORE, score_intervals, score_metrics
from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import ExternalCohort
from momkd_ray.evaluate.decisions import plain
from momkd_ray.evaluate.page import environment
from momkd_ray.evaluate.predictions import overlap_notes, patients_of_run
from momkd_ray.evaluate.tables import shown, with_interval
from momkd_ray.model.expected_score import SCORE
from momkd_ray.report.drawings import Drawing, write_drawings
from momkd_ray.report.score_figures import score_figure
from momkd_ray.report.score_page import SCORE_NAMES
from momkd_ray.run.layout import EXCLUDED
from momkd_ray.statistics.linear_calibration import linear_calibration
from momkd_ray.statistics.percentiles import NO_WIDTH, listed

FIGURES, SEED = "figures", 1
FEWEST = 3  # patients of an evaluation
_CALIBRATION = {
    "slope": "slope of true on predicted (right: 1)",
    "intercept": "intercept (right: 0)",
    "mean_error": "mean error, predicted minus true (right: 0)",
}


def evaluate_patients_of_number(table: pd.DataFrame, run: ClassesRun) -> dict[str, Any]:
    """Computes the statistics of patients with a true and a predicted number.

    Args:
        table: index `patient_id`; `score` and `true_score`.
        run: of the models.

    Raises:
        InputError: there are fewer than three patients, or all have the same number.
    """
    true_N, score_N = table[TRUE_SCORE].to_numpy(dtype=float), table[SCORE].to_numpy(dtype=float)
    if len(table) < FEWEST or len(set(true_N.tolist())) < 2:
        raise InputError(
            f"{len(table)} patients with {len(set(true_N.tolist()))} different {run.label} are evaluated, but an "
            f"evaluation takes {FEWEST} or more that are not all the same: label or predict more patients"
        )
    values, intervals = score_metrics(true_N, score_N), score_intervals(true_N, score_N, SEED)
    calibration = linear_calibration(true_N, score_N)
    overlap = patients_of_run(table.index, run)
    return {
        "label": run.label,
        "task": "regression",
        "run": {"dir": run.location, "fingerprint": run.fingerprint, "folds": list(run.folds)},
        "cohort": {
            "patients": len(table),
            "mean": float(true_N.mean()),
            "mean_predicted": float(score_N.mean()),
            "also_in_the_run": {"patients": len(overlap), "examples": overlap[:3]},
        },
        "metrics": {
            name: {"value": values[name], "bootstrap_interval": listed(intervals[name])} for name in SCORE_METRICS
        },
        "calibration": {name: plain(getattr(calibration, name)) for name in _CALIBRATION},
    }


def scores_summary(evaluation: dict[str, Any]) -> str:
    """Formats the main metrics for a terminal."""
    rows = _rows(evaluation)
    width = max(len(name) for name, _ in rows)
    return "\n".join([scores_verdict(evaluation), "", *(f"{name:<{width}}  {value}" for name, value in rows)])


def scores_verdict(evaluation: dict[str, Any]) -> str:
    """Says in one sentence what the evaluation found."""
    spearman = evaluation["metrics"]["spearman"]
    relation = f"as {NO_WIDTH}"
    if spearman["bootstrap_interval"] is not None:
        low, high = spearman["bootstrap_interval"]
        sure = "above 0 by its interval" if low > 0 else "below 0 by its interval, the wrong way round"
        relation = "no relation by its interval" if low <= 0 <= high else sure
    told = {name: with_interval(one["value"], one["bootstrap_interval"]) for name, one in evaluation["metrics"].items()}
    return (
        f"On {evaluation['cohort']['patients']:,} patients the {evaluation['label']} that the ensemble predicts has a "
        f"Spearman correlation of {told['spearman']} with the true one, {relation}; R2 is {told['r2']}, and the mean "
        f"absolute error {told['mae']}."
    )


def _rows(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    of_patients = evaluation["metrics"].items()
    metrics = [(SCORE_NAMES[name], with_interval(one["value"], one["bootstrap_interval"])) for name, one in of_patients]
    of_line = [(_CALIBRATION[name], shown(one["value"], one["interval"])) for name, one in _line(evaluation)]
    return metrics + of_line


def _line(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, evaluation["calibration"][name]) for name in _CALIBRATION]


def score_notes(evaluation: dict[str, Any]) -> list[str]:
    """Returns the notes above the results: patients of the run, few patients, and what is not computed."""
    notes, cohort = overlap_notes(evaluation), evaluation["cohort"]
    if cohort["patients"] < 20:
        notes.append(f"{cohort['patients']} patients are few: every interval is wide.")
    return [
        *notes,
        "Thresholds, decision curves, subgroups and comparisons with other predictions are of two classes and are not "
        "given here.",
    ]


def write_scores(
    run: ClassesRun, cohort: ExternalCohort, table: pd.DataFrame, evaluation: dict[str, Any], out: str
) -> None:
    """Writes the tables, the figure, evaluation.json and evaluation.html."""
    probabilities = [name for name in table.columns if str(name).startswith("p_")]
    patients = table[[TRUE_SCORE, SCORE, *probabilities]].reset_index(names="patient_id")
    performance = [
        (SCORE_NAMES[name], one["value"], *(one["bootstrap_interval"] or (None, None)), "bootstrap")
        for name, one in evaluation["metrics"].items()
    ]
    performance += [
        (_CALIBRATION[name], one["value"], *(one["interval"] or (None, None)), "least squares")
        for name, one in _line(evaluation)
    ]
    tables = {
        "performance.csv": pd.DataFrame(performance, columns=["measure", "value", "low", "high", "method"]),
        EXCLUDED: cohort.excluded,
        "predictions.csv": patients.rename(columns={"patient_id": cohort.patient_column}),
    }
    for name, one in tables.items():
        storage.write_text(storage.join(out, name), one.to_csv(index=False, lineterminator="\n"))
    drawing: Drawing = score_figure(patients, evaluation["label"], evaluation["metrics"]["spearman"]["value"])
    write_drawings([drawing], storage.join(out, FIGURES))
    page = (
        environment()
        .get_template("scores_evaluation.html.jinja")
        .render(
            e=evaluation,
            drawing=drawing,
            figures=FIGURES,
            verdict=scores_verdict(evaluation),
            rows=[list(row) for row in _rows(evaluation)],
            version=__version__,
        )
    )
    storage.write_text(storage.join(out, "evaluation.html"), page)
    storage.write_json(storage.join(out, "evaluation.json"), evaluation)
