"""Metrics of predicted numbers whose table of slides has the true ones, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from momkd_ray.cohort.labels import label_numbers, says_missing
from momkd_ray.cohort.table_files import texts
from momkd_ray.crossval.score_metrics import score_intervals, score_metrics
from momkd_ray.model.expected_score import SCORE
from momkd_ray.predict.labels import label_column, labelled_rows, not_counted, of_training
from momkd_ray.statistics.percentiles import listed
from momkd_ray.statistics.spread import interval_text

_SEED = 0  # of the bootstrap


def numbers_of_patients(
    frame: pd.DataFrame, patient_column: str, label: str
) -> tuple[dict[str, float], Counter[str]] | None:
    """Reads the number of each patient from the table of slides.

    Args:
        frame: the table.
        patient_column: its column of patients.
        label: the label's name.

    Returns:
        The numbers, and why other patients have none; None if the table has no such column.
    """
    column = label_column(frame, label)
    if column is None:
        return None
    cells = texts(frame[column])
    number = label_numbers([cell for cell in cells if cell is not None])
    found: dict[str, set[float | str]] = {}
    for patient, cell in zip(texts(frame[patient_column]), cells, strict=True):
        if patient is not None:
            own = found.setdefault(patient, set())
            if cell is not None and not says_missing(cell):
                own.add(number.get(cell, f"'{cell}', which is no number"))
    numbers: dict[str, float] = {}
    reasons: Counter[str] = Counter()
    for patient, values in found.items():
        value = next(iter(values), "no label")
        if len(values) == 1 and isinstance(value, float):
            numbers[patient] = value
        else:
            reasons[str(value) if len(values) < 2 else "slides with different labels"] += 1
    return numbers, reasons


def score_metrics_of(patients: pd.DataFrame, numbers: Mapping[str, float], label: str) -> dict[str, Any]:
    """Computes the metrics of the patients that have a number, with intervals by a bootstrap of patients.

    Args:
        patients: one row per patient: `patient_id`, `score` and, if known, `trained_on`.
        numbers: of the patients.
        label: its name.

    Returns:
        `patients` (with a number), `of_training` (on whom a model was trained; None if it is not known) and `metrics`:
        `value` and `interval` of each; none of fewer than two different numbers.
    """
    table, true_N, beginning = labelled_rows(patients, numbers, label)
    predicted_N = table[SCORE].to_numpy()
    content = beginning | {"task": "regression", "metrics": {}}
    if len(set(true_N.tolist())) > 1:
        values, intervals = score_metrics(true_N, predicted_N), score_intervals(true_N, predicted_N, _SEED)
        content["metrics"] = {name: {"value": values[name], "interval": listed(intervals[name])} for name in values}
    return content


def score_sentence(content: Mapping[str, Any], reasons: Counter[str], source: str, written: str) -> str:
    """Says how well the numbers were predicted, or why that cannot be said.

    Args:
        content: of `score_metrics_of`.
        reasons: why patients have no number.
        source: the table with the numbers.
        written: the file with all metrics.
    """
    others = f" ({left_out})" if (left_out := not_counted(reasons)) else ""
    whose = f"{content['patients']:,} patients with {content['label']} in {source}{others}"
    if not content["metrics"]:
        return f"no metrics: they need two patients of different {content['label']}, and there are {whose}"
    told = []
    for key, name in (("spearman", "Spearman"), ("r2", "R2")):
        one = content["metrics"][key]
        told.append(f"{name} {one['value']:.3f}, {'' if one['interval'] is None else '95 % interval '}")
        told[-1] += interval_text(one["interval"])
    mae = content["metrics"]["mae"]["value"]
    return (
        f"{'; '.join(told)}; mean absolute error {mae:.3g}; of {whose}{of_training(content)}; {written} has all metrics"
    )
