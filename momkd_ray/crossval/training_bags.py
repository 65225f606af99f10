"""Chooses on which patients of a fold a model is trained, and of which it uses the omics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from momkd_ray.config.load import Config
from momkd_ray.run.inputs import RunInputs
from momkd_ray.seeds import derive_seed


def training_bags(inputs: RunInputs, config: Config, fold: int, *, refit: bool = False) -> pd.DataFrame:
    """Returns a fold's bags, of the training patients those that `omics.missing` and `train.fraction` let train.

    Args:
        inputs: cohort, folds and bags.
        config: of the model, which in a search or comparison differs from the run's.
        fold: its number.
        refit: whether the validation patients train, too, by the same rules.

    Returns:
        The columns of `RunInputs.fold_bags`, sorted by bag.
    """
    bags, omics = inputs.fold_bags(fold), inputs.cohort.omics
    if refit:
        bags["role"] = bags["role"].replace("val", "train")
    trains = bags["role"] == "train"
    kept = trains.copy()
    if config.omics.missing == "drop" and omics is not None:
        kept &= bags["patient_id"].isin(omics.index)
    if config.train.fraction < 1:
        drawn: list[str] = []
        for _, of_class in bags[kept].groupby("y"):
            patients = _in_drawn_order(of_class["patient_id"], "labels", config, fold)
            drawn += patients[: max(1, round(config.train.fraction * len(patients)))]
        kept &= bags["patient_id"].isin(drawn)
    return bags[~trains | kept].reset_index(drop=True)


def patients_to_learn_omics_of(
    bags: pd.DataFrame, having_omics: Collection[str], config: Config, fold: int
) -> list[str]:
    """Returns the training patients whose omics are used: the share `omics.fraction` of those who have some.

    No class is left without by the draw alone, unless the share is 0: the first of its patients is taken, too.

    Args:
        bags: of the fold, as `training_bags` returns them.
        having_omics: all patients with omics.
        config: of the model.
        fold: its number.
    """
    if config.omics.fraction == 0:
        return []
    trained = bags[bags["role"] == "train"]
    classes = dict(zip(trained["patient_id"], trained["y"], strict=True))
    patients = _in_drawn_order(classes.keys() & set(having_omics), "omics", config, fold)
    first_of_class = {classes[patient]: patient for patient in reversed(patients)}
    return sorted({*patients[: round(config.omics.fraction * len(patients))], *first_of_class.values()})


def _in_drawn_order(patients: Collection[str], purpose: str, config: Config, fold: int) -> Sequence[str]:
    """Orders patients by lot, so that a smaller share of the same seed is part of a larger one."""
    return sorted(set(patients), key=lambda patient: derive_seed(purpose, config.train.seed, fold, patient))
