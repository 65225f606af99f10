"""Checks of the configuration against the machine and the bags, before any fold is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from momkd_ray.config.load import Config
from momkd_ray.config.model_names import DEFAULT_MODEL
from momkd_ray.crossval.training_bags import patients_to_learn_omics_of, training_bags
from momkd_ray.errors import InputError
from momkd_ray.model.registry import model_class
from momkd_ray.ray_runtime.cluster import check_fits, starts_own_cluster
from momkd_ray.ray_runtime.own_cluster import available_cpus
from momkd_ray.run.inputs import RunInputs


def check_own_machine(config: Config, address: str | None) -> None:
    """Checks CPUs and precision if the command will start a cluster on this machine, which cannot grow.

    Raises:
        InputError: the machine cannot train one fold with this configuration.
    """
    if not starts_own_cluster(address):
        return
    check_fits(config.cluster, "CPU", available_cpus())
    if config.train.precision == "bf16" and "train.precision" not in config.search:
        import torch

        from momkd_ray.train.step import dtype_of_products

        wants_gpu = config.cluster.gpus_per_worker == "auto" or config.cluster.gpus
        if not (wants_gpu and torch.cuda.is_available()):
            dtype_of_products("bf16", torch.device("cpu"))


def check_training_bags(inputs: RunInputs, settings: Sequence[Mapping[str, Any]], folds: Sequence[int]) -> None:
    """Checks that every fold can be trained with every setting, on the patients that the setting leaves to train.

    Raises:
        InputError: a fold has fewer training patches than the memory has components, under pooling by attention of a
            class; or it has no training patient of a class with omics.
    """
    for setting in settings:
        config = inputs.config.with_settings(setting)
        uses_omics = model_class(config.model).uses_omics
        learns_omics = uses_omics and inputs.cohort.omics is not None and config.omics.fraction > 0
        has_memory = config.model.name == DEFAULT_MODEL
        if not (learns_omics or has_memory):
            continue  # the bags of every fold take a while to list, and nothing would be asked of them
        bags_of = {fold: training_bags(inputs, config, fold) for fold in folds}
        if learns_omics:
            _check_omics(inputs, config, bags_of)
        if has_memory:
            _check_memory_size(inputs, config, bags_of)


def _check_omics(inputs: RunInputs, config: Config, bags_of: Mapping[int, pd.DataFrame]) -> None:
    omics, classes = inputs.cohort.omics, inputs.cohort.classes
    assert omics is not None, "omics to learn"
    for fold, bags in bags_of.items():
        patients = patients_to_learn_omics_of(bags, omics.index, config, fold)
        present = set(inputs.cohort.patients["y"].loc[patients])
        lacking = [f"'{name}'" for y, name in enumerate(classes) if y not in present]
        if lacking:
            drawn, cure = "", "add the omics of some"
            if config.train.fraction < 1:
                drawn = f"with train.fraction {config.train.fraction:g} and train.seed {config.train.seed}, "
                cure = "raise train.fraction"
            raise InputError(
                f"{drawn}fold {fold} trains on no patient of class {' or '.join(lacking)} that has omics, so no genes "
                f"can be chosen: {cure}, or set omics.fraction to 0 to train without omics"
            )


def _check_memory_size(inputs: RunInputs, config: Config, bags_of: Mapping[int, pd.DataFrame]) -> None:
    wanted = config.memory.components
    if config.model.pooling == "components":
        fewest, fold = min((_training_patches(bags), fold) for fold, bags in bags_of.items())
        if fewest < wanted:
            raise InputError(
                f"memory.components is {wanted}, but fold {fold} has only {fewest} training patches; "
                f"set memory.components to {fewest} or fewer"
            )
        return
    fewest, fold, y = min(
        (_sampled_patches(bags, y, config.memory.init_patches), fold, y)
        for fold, bags in bags_of.items()
        for y in range(len(inputs.cohort.classes))
    )
    if fewest < wanted:
        raise InputError(
            f"memory.components is {wanted}, but fold {fold} has only {fewest} training patches of class "
            f"'{inputs.cohort.classes[y]}'; set memory.components to {fewest} or fewer"
        )


def _training_patches(bags: pd.DataFrame) -> int:
    return int(bags.loc[bags["role"] == "train", "patches"].sum())


def _sampled_patches(bags: pd.DataFrame, y: int, init_patches: int) -> int:
    """Returns the number of patches of a class that initialise its components."""
    patches = bags.loc[(bags["role"] == "train") & (bags["y"] == y), "patches"]
    return int(patches.clip(upper=-(-init_patches // max(1, len(patches)))).sum())
