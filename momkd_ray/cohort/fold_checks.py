"""Who really trains in a fold, whether the genes can be chosen on them, and whether there is enough to validate on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.config.load import Config
from momkd_ray.input_faults import Fault, FaultsError

FEW = 5  # validation patients of a class: of four, one more or less right moves the sensitivity by a quarter


def trained_patients(config: Config, cohort: Cohort, plan: FoldPlan, fold: int) -> pd.Index[str]:
    """The patients a fold trains on: those of its training patients that `omics.missing` lets."""
    roles = plan.roles(fold)
    patients = roles.index[roles == "train"]
    if cohort.omics is None or config.omics.missing == "keep":
        return patients
    return patients[patients.isin(cohort.omics.index)]


def check_teaching(config: Config, cohort: Cohort, plan: FoldPlan) -> None:
    """Assert that the genes can be chosen in every fold.

    Raises:
        FaultsError: the training patients with omics of a fold are none, or all of one class.
    """
    faults = untaught_folds(config, cohort, plan)
    if faults:
        more = f"; so it is in {len(faults)} of the {len(plan.folds)} folds" if len(faults) > 1 else ""
        raise FaultsError(f"{faults[0].reason}{more}", faults)


def untaught_folds(config: Config, cohort: Cohort, plan: FoldPlan) -> list[Fault]:
    """The folds whose training patients with omics are none, or all of one class: a fault each."""
    if cohort.omics is None:
        return []
    where = config.cohort.omics or "the omics"
    split = f"mend {config.folds.file}" if config.folds.file else "draw other folds with folds.seed or fewer folds.n"
    faults = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        patients = roles.index[roles == "train"]
        classes = set(cohort.patients["label"].loc[patients[patients.isin(cohort.omics.index)]])
        if len(classes) == 2:
            continue
        lacking = " or ".join(f"'{name}'" for name in cohort.classes if name not in classes)
        # without a patient of a class among them nothing tells which genes follow the label
        reason = (
            f"fold {fold} trains on no patient of class {lacking} that has omics in {where}, so no genes can be "
            f"chosen: add the omics of some, {split}, or set cohort.omics to null to train without omics"
        )
        faults.append(Fault("fold", f"fold {fold}", "of one class" if classes else "unusable", where, reason))
    return faults


def few_validated(config: Config, cohort: Cohort, plan: FoldPlan) -> list[Fault]:
    """The folds that validate on fewer than `FEW` patients of a class; they can be trained all the same."""
    place = config.folds.file or config.cohort.clinical
    faults = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        labels = cohort.patients["label"].loc[roles.index[roles == "val"]]
        counts = {name: int((labels == name).sum()) for name in reversed(cohort.classes)}
        if min(counts.values()) < FEW:
            said = " and ".join(f"{count} of class '{name}'" for name, count in counts.items())
            reason = f"fold {fold} validates on {said}: its epoch and threshold hang on few patients"
            faults.append(Fault("fold", f"fold {fold}", "of few", place, reason))
    return faults


def few_validated_sentence(faults: Sequence[Fault], config: Config) -> list[str]:
    """All of `few_validated` in one sentence; none where there are none."""
    if not faults:
        return []
    folds = ", ".join(fault.id.removeprefix("fold ") for fault in faults)
    remedy = "" if config.folds.file else "; raise folds.validation or lower folds.n"
    which = f"Fold {folds} validates" if len(faults) == 1 else f"Folds {folds} validate"
    return [f"{which} on fewer than {FEW} patients of a class, on whom epoch and threshold hang{remedy}."]
