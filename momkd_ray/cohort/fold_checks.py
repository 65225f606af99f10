"""Counts and checks folds: who trains, whether genes can be selected on them, and whether enough patients validate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.cohort.splits import ROLES
from momkd_ray.config.load import Config
from momkd_ray.config.search_space import Range
from momkd_ray.input_faults import Fault, FaultsError

FEW = 5  # validation patients of a class; with four, a single patient changes the sensitivity by a quarter


def trained_patients(config: Config, cohort: Cohort, plan: FoldPlan, fold: int) -> pd.Index[str]:
    """Returns the training patients of a fold, with `omics.missing: drop` only those with omics."""
    roles = plan.roles(fold)
    patients = roles.index[roles == "train"]
    if cohort.omics is None or config.omics.missing == "keep":
        return patients
    return patients[patients.isin(cohort.omics.index)]


def patients_per_fold(config: Config, cohort: Cohort, plan: FoldPlan) -> pd.DataFrame:
    """Counts the patients of each fold, role and class, and the training patients with omics.

    Returns:
        Columns `fold`, `role`, one for each class, and `with omics`, which is None but for training patients.
    """
    rows: list[dict[str, Any]] = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        for role in ROLES:
            trains = role == "train"
            patients = trained_patients(config, cohort, plan, fold) if trains else roles.index[roles == role]
            labels = cohort.patients["label"].loc[patients]
            row: dict[str, Any] = {"fold": fold, "role": role}
            row |= {name: int((labels == name).sum()) for name in cohort.classes}
            with_omics = 0 if cohort.omics is None else int(patients.isin(cohort.omics.index).sum())
            rows.append(row | {"with omics": with_omics if trains else None})
    return pd.DataFrame(rows, dtype=object)


def folds_text(counts: pd.DataFrame) -> str:
    """Formats the table of `patients_per_fold` as plain text."""
    return counts.fillna("").to_string(index=False)


def check_gene_selection(config: Config, cohort: Cohort, plan: FoldPlan) -> None:
    """Raises unless genes can be selected in every fold.

    Raises:
        FaultsError: a fold has no training patient with omics, or only of one class.
    """
    faults = folds_without_gene_selection(config, cohort, plan)
    if faults:
        more = f"; so it is in {len(faults)} of the {len(plan.folds)} folds" if len(faults) > 1 else ""
        raise FaultsError(f"{faults[0].reason}{more}", faults)


def folds_without_gene_selection(config: Config, cohort: Cohort, plan: FoldPlan) -> list[Fault]:
    """Lists a fault for each fold without training patients with omics of every class."""
    if cohort.omics is None:
        return []
    where = config.cohort.omics or "the omics"
    split = f"mend {config.folds.file}" if config.folds.file else "draw other folds with folds.seed or fewer folds.n"
    faults = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        patients = roles.index[roles == "train"]
        classes = set(cohort.patients["label"].loc[patients[patients.isin(cohort.omics.index)]])
        if len(classes) == len(cohort.classes):
            continue
        lacking = " or ".join(f"'{name}'" for name in cohort.classes if name not in classes)
        # with patients of one class only, no gene can be ranked by its association with the label
        reason = (
            f"fold {fold} trains on no patient of class {lacking} that has omics in {where}, so no genes can be "
            f"chosen: add the omics of some, {split}, or set cohort.omics to null to train without omics"
        )
        faults.append(Fault("fold", f"fold {fold}", "of one class" if classes else "unusable", where, reason))
    return faults


def chosen_by_validation(config: Config) -> list[str]:
    """Lists what is chosen on a fold's validation patients: setting, epoch, learning rate, threshold, as configured."""

    def may_be(key: str, value: str, given: str) -> bool:
        tried = config.search.get(key, [given])
        return not isinstance(tried, Range) and value in tried

    return [
        *(["the setting"] if config.search else []),
        *(["the epoch"] if may_be("train.keep", "best", config.train.keep) else []),
        *(["the learning rate"] if may_be("train.schedule", "plateau", config.train.schedule) else []),
        *(["the threshold"] if config.cohort.task == "classification" and len(config.cohort.class_names) == 2 else []),
    ]


def _depends(config: Config) -> str:
    """Says what depends on the validation patients, with its verb; '' if nothing does."""
    chosen = chosen_by_validation(config)
    if len(chosen) < 2:
        return f"{chosen[0]} depends" if chosen else ""
    return f"{', '.join(chosen[:-1])} and {chosen[-1]} depend"


def few_validated(config: Config, cohort: Cohort, plan: FoldPlan) -> list[Fault]:
    """Lists the folds that validate on fewer than `FEW` patients of a class; they can be trained nevertheless.

    Where the validation patients choose nothing, none is listed.
    """
    depends = _depends(config)
    if not depends:
        return []
    location = config.folds.file or config.cohort.clinical
    faults = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        labels = cohort.patients["label"].loc[roles.index[roles == "val"]]
        counts = {
            name: int((labels == name).sum())
            for name in (reversed(cohort.classes) if len(cohort.classes) == 2 else cohort.classes)
        }
        if min(counts.values()) < FEW:
            per_class = " and ".join(f"{count} of class '{name}'" for name, count in counts.items())
            reason = f"fold {fold} validates on {per_class}: {depends} on few patients"
            faults.append(Fault("fold", f"fold {fold}", "of few", location, reason))
    return faults


def few_validated_sentence(faults: Sequence[Fault], config: Config) -> list[str]:
    """Summarises `few_validated` in one sentence; empty if there are none."""
    if not faults:
        return []
    folds = ", ".join(fault.id.removeprefix("fold ") for fault in faults)
    remedy = "" if config.folds.file else "; raise folds.validation or lower folds.n"
    which = f"Fold {folds} validates" if len(faults) == 1 else f"Folds {folds} validate"
    return [f"{which} on fewer than {FEW} patients of a class, on whom {_depends(config)}{remedy}."]
