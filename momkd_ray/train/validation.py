"""Metrics of the validation patients: the AUC, of a regression Spearman's correlation too, and which one chooses.

Shapes: Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.cohort.patient_mean import patient_mean
from momkd_ray.config.load import Config
from momkd_ray.model.expected_score import SCORE, ExpectedScore
from momkd_ray.train.class_auc import auc_of_classes
from momkd_ray.train.task import FoldTask

REGRESSION = "regression"


@dataclass(frozen=True)
class Criterion:
    """The metric of the validation patients by which epochs and the settings of a search are chosen: the highest.

    Attributes:
        key: its name in `FoldResult.val_scores`.
        name: in sentences.
        worst: the lowest value it can have.
    """

    key: str
    name: str
    worst: float

    @property
    def metric(self) -> str:
        """Its name in the metrics of an epoch."""
        return f"val_{self.key}"


AUC, SPEARMAN = Criterion("auc", "AUC", 0.0), Criterion("spearman", "Spearman's correlation", -1.0)


def criterion_of(config: Config) -> Criterion:
    """Returns the AUC (of more than two classes its mean over them) or, of a regression, Spearman's correlation."""
    return SPEARMAN if config.cohort.task == REGRESSION else AUC


def validation_metrics(task: FoldTask, slides: pd.DataFrame) -> dict[str, float | None]:
    """Computes `val_auc` of predicted validation slides and, of a regression, `val_spearman`; None without slides.

    Args:
        task: the fold.
        slides: `slide_id, patient_id, y` and every `p_<y>`.
    """
    if slides.empty:
        return {AUC.metric: None}
    metrics: dict[str, float | None] = {AUC.metric: patient_auc(slides)}
    if task.config.cohort.task == REGRESSION:
        expected = expected_of_training(task.bags, task.classes, balanced=task.config.answers_balanced)
        predicted = patient_scores(slides, range(task.classes), expected)
        number = task.bags.drop_duplicates("patient_id").set_index("patient_id")["number"].loc[predicted.index]
        # it is undefined where all patients have one number or one score, and says nothing then
        metrics[SPEARMAN.metric] = float(np.nan_to_num(predicted.rank().corr(number.rank())))
    return metrics


def patient_auc(slides: pd.DataFrame) -> float:
    """Computes the AUC over patients, each with the mean probabilities of its slides (see `auc_of_classes`)."""
    names = [name for name in slides.columns if str(name).startswith("p_")]
    names = ["p_1"] if len(names) == 2 else names
    patients = patient_mean(slides, ["y", *names])
    return auc_of_classes(patients["y"].to_numpy(), patients[names].to_numpy())


def expected_of_training(bags: pd.DataFrame, classes: int, *, balanced: bool) -> ExpectedScore:
    """Learns what the classes of a regression stand for from a fold's training patients alone.

    Args:
        bags: `patient_id, y, role, number` of the fold.
        classes: Y.
        balanced: whether probabilities are as if all classes were equally common (`Config.answers_balanced`).
    """
    training = bags[bags["role"] == "train"].drop_duplicates("patient_id")
    numbers, y = training["number"].to_numpy(), training["y"].to_numpy()
    return ExpectedScore.of_training(numbers, y, classes, balanced=balanced)


def patient_scores(slides: pd.DataFrame, classes: Sequence[Any], expected: ExpectedScore) -> pd.Series[Any]:
    """Returns the score of each patient, the mean of its slides', by `patient_id` (sorted).

    Args:
        slides: `slide_id, patient_id` and every `p_<class>`.
        classes: their names in these columns.
        expected: what they stand for.
    """
    scored = slides.assign(**{SCORE: expected.of(slides[[f"p_{name}" for name in classes]].to_numpy())})
    return patient_mean(scored, [SCORE]).set_index("patient_id")[SCORE]
