"""Translates STAMP's configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from momkd_ray import storage
from momkd_ray.cohort.table_files import read_table, require_columns, texts
from momkd_ray.errors import InputError
from momkd_ray.init_config.class_choice import likely_classes
from momkd_ray.init_config.draft import Draft


def draft_of_stamp(path: str, run: str | None) -> Draft:
    """Translates STAMP's configuration: tables, columns, classes or a number as the target, folds and output.

    Raises:
        InputError: the file is no configuration of STAMP's, or is of survival.
    """
    try:
        tree = yaml.safe_load(storage.read_text(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"--from {path} does not exist: name STAMP's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--from {path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    sections = tree if isinstance(tree, Mapping) else {}
    section = next((sections[name] for name in ("crossval", "training", "train") if sections.get(name)), None)
    if not isinstance(section, Mapping):
        raise InputError(f"--from {path} has no section crossval or training, as STAMP's configurations have")
    task = section.get("task") or "classification"
    if task not in ("classification", "regression"):
        raise InputError(
            f"--from {path}: its task is {task}, which momkd-ray does not train: set it there to classification or "
            "regression, with a ground_truth_label of classes or numbers"
        )
    needed = ("clini_table", "slide_table", "feature_dir", "ground_truth_label")
    if missing := [name for name in needed if not isinstance(section.get(name), str)]:
        raise InputError(f"--from {path} lacks {missing[0]}, which a run needs: add it there")
    cohort: dict[str, Any] = {
        "clinical": section["clini_table"],
        "slides": section["slide_table"],
        "patient_column": section.get("patient_label", "PATIENT"),
        "slide_column": section.get("filename_label", "FILENAME"),
        "label": section["ground_truth_label"],
    }
    draft = Draft(
        {
            "cohort": cohort,
            "features": {"dir": section["feature_dir"]},
            "folds": {"n": int(section.get("n_splits", 5))},
            "run": {"dir": run or str(section.get("output_dir", "run")).rstrip("/") + "/momkd-ray"},
        }
    )
    draft.note("", f"Translated by momkd-ray init from {path}: tables, columns, classes, folds and output.")
    draft.note("", "Sizes and rates of STAMP's model are not: they belong to another network.")
    if task == "regression":
        cohort["task"] = task
    else:
        _write_classes(draft, sections, section, path)
    return draft


def _write_classes(draft: Draft, sections: Mapping[str, Any], section: Mapping[str, Any], path: str) -> None:
    """Writes the classes: two, one of several against the rest if `true_class` names it, or else all of them."""
    cohort = draft.tree["cohort"]
    categories = [str(value) for value in section.get("categories") or []]
    if not categories:
        frame = read_table(cohort["clinical"])
        require_columns(frame.columns, cohort["clinical"], cohort["label"])
        categories = list(Counter(cell for cell in texts(frame[cohort["label"]]) if cell is not None))
    if len(categories) < 2:
        raise InputError(f"--from {path}: the label {cohort['label']} has fewer than two classes: correct it there")
    statistics = sections.get("statistics")
    true_class = str(statistics.get("true_class")) if isinstance(statistics, Mapping) else None
    if true_class in categories:
        others = [name for name in categories if name != true_class]
        cohort["positive"], cohort["negative"] = true_class, others[0] if len(others) == 1 else others
    elif len(categories) == 2:
        cohort["negative"], cohort["positive"], certain = likely_classes(Counter(categories))
        if not certain:
            which = f"which of {cohort['positive']!r} and {cohort['negative']!r} is the positive class?"
            draft.note("cohort", f"CHECK: {which}")
    else:
        cohort["classes"], cohort["ordered"] = categories, False
        draft.note("cohort", "CHECK: if the classes have an order, name them in it and remove `ordered: false`.")
