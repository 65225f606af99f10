"""Checks of the configuration against the machine and the bags, before any fold is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from momkd_ray.config.load import Config
from momkd_ray.config.model_names import DEFAULT_MODEL
from momkd_ray.crossval.fold import with_fraction
from momkd_ray.errors import InputError
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


def check_memory_sizes(inputs: RunInputs, settings: Sequence[Mapping[str, Any]], folds: Sequence[int]) -> None:
    """Checks that there are as many training patches as the memory has components, in every fold and setting.

    Raises:
        InputError: a fold has too few patches, under pooling by attention too few of a class.
    """
    for setting in settings:
        config = inputs.config.with_settings(setting)
        if config.model.name != DEFAULT_MODEL:
            continue
        wanted = config.memory.components
        bags_of = {fold: with_fraction(inputs.fold_bags(fold), config, fold) for fold in folds}
        if config.model.pooling == "components":
            fewest, fold = min((_training_patches(bags), fold) for fold, bags in bags_of.items())
            if fewest < wanted:
                raise InputError(
                    f"memory.components is {wanted}, but fold {fold} has only {fewest} training patches; "
                    f"set memory.components to {fewest} or fewer"
                )
            continue
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
