"""Metrics of predictions whose table of slides has the label, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.cohort.labels import label_key, says_missing
from momkd_ray.cohort.table_files import texts
from momkd_ray.crossval.class_metrics import class_intervals, class_scores
from momkd_ray.crossval.metrics import bootstrap_intervals, scores
from momkd_ray.model.bundle import BundleCard
from momkd_ray.predict.known_patients import TRAINED_ON
from momkd_ray.statistics.percentiles import listed
from momkd_ray.statistics.spread import interval_text

_SEED = 0  # of the bootstrap


def classes_of_patients(
    frame: pd.DataFrame, patient_column: str, card: BundleCard
) -> tuple[dict[str, int], Counter[str]] | None:
    """Reads the label of each patient from the table of slides.

    Args:
        frame: the table.
        patient_column: its column of patients.
        card: of the model, with the label's name and classes.

    Returns:
        The number of each patient's class, and why other patients have none; None if the table has no such column.
    """
    column = label_column(frame, card.label)
    if column is None:
        return None
    found: dict[str, set[int | str]] = {}
    for patient, label in zip(texts(frame[patient_column]), texts(frame[column]), strict=True):
        if patient is not None and label is not None and not says_missing(label):
            y_or_none = _class_of(label, card.classes)
            reason = f"'{label}', which is no class of the model"
            found.setdefault(patient, set()).add(reason if y_or_none is None else y_or_none)
    y: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    for patient in dict.fromkeys(name for name in texts(frame[patient_column]) if name is not None):
        own = list(found.get(patient, ()))
        if len(own) == 1 and isinstance(own[0], int):
            y[patient] = own[0]
        else:
            reasons["no label" if not own else str(own[0]) if len(own) == 1 else "slides with different labels"] += 1
    return y, reasons


def label_column(frame: pd.DataFrame, label: str) -> str | None:
    """Returns the column of a label, if need be without regard to case; None if the table has none."""
    columns = [name for name in frame.columns if str(name).casefold() == label.casefold()]
    return label if label in columns else next(iter(columns), None)


def _class_of(label: str, classes: Sequence[str]) -> int | None:
    """Returns the number of the class that a label names, if need be without regard to case."""
    key, keys = label_key(label), [label_key(name) for name in classes]
    if key in keys:
        return keys.index(key)
    same = [y for y, own in enumerate(keys) if str(own[1]).casefold() == str(key[1]).casefold() and own[0] == key[0]]
    return same[0] if len(same) == 1 else None


def metrics_of(
    patients: pd.DataFrame, y: Mapping[str, int], card: BundleCard, threshold: float | None
) -> dict[str, Any]:
    """Computes the metrics of the patients that have a label, with intervals by a bootstrap of patients.

    Args:
        patients: one row per patient: `patient_id`, `p_<class>`, `predicted` and, if known, `trained_on`.
        y: the number of each patient's class.
        card: of the model.
        threshold: on the probability of the positive class; None with more than two classes.

    Returns:
        `patients` (with a label), `classes` (number of each), `of_training` (on whom a model was trained; None if it is
        not known) and `metrics`: `value` and `interval` of each; none if a class has no patient.
    """
    table, own, beginning = labelled_rows(patients, y, card.label)
    counts = [int((own == number).sum()) for number in range(len(card.classes))]
    content = beginning | {"classes": dict(zip(card.classes, counts, strict=True)), "metrics": {}}
    if not all(counts):
        return content
    predicted = np.array([card.classes.index(name) for name in table["predicted"]])
    if threshold is not None:
        p = table[f"p_{card.classes[1]}"].to_numpy()
        values, intervals = scores(own, p, threshold), bootstrap_intervals(own, p, predicted, _SEED)
    else:
        p_NY = table[[f"p_{name}" for name in card.classes]].to_numpy()
        values = class_scores(own, p_NY, predicted, card.classes, ordered=False)
        intervals = class_intervals(own, p_NY, predicted, card.classes, _SEED, ordered=False)
    content["metrics"] = {name: {"value": values[name], "interval": listed(intervals[name])} for name in values}
    return content


def labelled_rows(
    patients: pd.DataFrame, labels: Mapping[str, Any], label: str
) -> tuple[pd.DataFrame, np.ndarray, dict[str, Any]]:
    """Chooses the predicted patients that have a label.

    Args:
        patients: one row per patient: `patient_id` and, if known, `trained_on`.
        labels: class or number of the labelled patients.
        label: its name.

    Returns:
        Their rows, their labels, and the beginning of their metrics: `label`, `patients` and `of_training`.
    """
    table = patients[patients["patient_id"].isin(list(labels))]
    trained = int((table[TRAINED_ON] > 0).sum()) if TRAINED_ON in table.columns else None
    own = np.array([labels[name] for name in table["patient_id"]])
    return table, own, {"label": label, "patients": len(table), "of_training": trained}


def metrics_sentence(content: Mapping[str, Any], reasons: Counter[str], source: str, written: str) -> str:
    """Says how well the labelled patients were predicted, or why that cannot be said.

    Args:
        content: of `metrics_of`.
        reasons: why patients have no class.
        source: the table with the labels.
        written: the file with all metrics.
    """
    counts = ", ".join(f"{number:,} {name}" for name, number in content["classes"].items())
    others = f"; {left_out}" if (left_out := not_counted(reasons)) else ""
    whose = f"{content['patients']:,} patients with {content['label']} in {source} ({counts}{others})"
    if not content["metrics"]:
        return f"no metrics: they need a patient of each class, and there are {whose}"
    auc = content["metrics"]["auc"]
    interval = "no interval" if auc["interval"] is None else f"95 % interval {interval_text(auc['interval'])}"
    said = of_training(content)
    return (
        f"AUC {auc['value']:.3f}, {interval}, of {whose}{said}; {written} has all metrics "
        "(calibration, subgroups and decision curve: momkd-ray evaluate)"
    )


def not_counted(reasons: Counter[str]) -> str:
    """Says why patients are not counted; '' if all are."""
    left_out = ", ".join(f"{number:,} with {reason}" for reason, number in reasons.most_common(3))
    return f"not counted: {left_out}" if left_out else ""


def of_training(content: Mapping[str, Any]) -> str:
    """Says that some of the patients are patients of training; '' if none is known to be."""
    trained = content["of_training"]
    return f"; {trained:,} of them are patients of training, on whom it flatters" if trained else ""
