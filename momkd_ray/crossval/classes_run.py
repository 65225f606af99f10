"""Reads from a finished run of more than two classes what predicting other patients takes: models and classes."""

from __future__ import annotations

import json
from dataclasses import dataclass

import yaml

from momkd_ray.cohort.table_files import read_table, texts
from momkd_ray.config.data_sections import class_labels
from momkd_ray.errors import InputError
from momkd_ray.run.finished import label_and_classes, read_finished
from momkd_ray.run.layout import RunDirectory
from momkd_ray.train.validation import REGRESSION


@dataclass(frozen=True, eq=False)
class ClassesRun:
    """A finished cross-validation of more than two classes.

    Attributes:
        location: the run directory.
        label: name of the label.
        classes: names of the classes in order.
        labels_of: of each class the labels or cut-offs that the run's configuration gives.
        ordered: whether the classes are in an order.
        folds: their numbers.
        patients: every patient of the run's folds.
        fingerprint: of the run.
        predicts_number: whether it is a regression, whose classes are ranges of a number.
    """

    location: str
    label: str
    classes: tuple[str, ...]
    labels_of: tuple[tuple[str, ...], ...]
    ordered: bool
    folds: tuple[int, ...]
    patients: frozenset[str]
    fingerprint: str
    predicts_number: bool = False

    @property
    def models(self) -> list[str]:
        """The folders of the folds' model bundles."""
        return [RunDirectory(self.location).fold(fold).model for fold in self.folds]


def read_classes_run(location: str) -> ClassesRun | None:
    """Reads a finished run of more than two classes; returns None for a run of two.

    Raises:
        InputError: it is not a finished cross-validation, or a file is damaged.
    """
    directory = RunDirectory(location)
    metrics = read_finished(directory, directory.metrics, json.loads)
    tree = read_finished(directory, directory.configuration, yaml.safe_load)
    try:
        label, classes = label_and_classes(tree)
        if len(classes) == 2:
            return None
        own = class_labels(tree["cohort"]["classes"])
        read_finished(directory, directory.folds, bytes.decode)
        table = read_table(directory.folds)
        return ClassesRun(
            location=location,
            label=label,
            classes=classes,
            labels_of=tuple(labels for _, labels in own),
            ordered=bool(metrics["classes"]["ordered"]),
            folds=tuple(sorted(int(one["fold"]) for one in metrics["folds"])),
            patients=frozenset(str(name) for name in texts(table[table.columns[0]]) if name is not None),
            fingerprint=str(metrics.get("fingerprint", "")),
            predicts_number=metrics.get("task") == REGRESSION,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{location} is not a run directory that this version wrote ({' '.join(str(error).split())} is missing or "
            "damaged): run momkd-ray crossval again"
        ) from error
