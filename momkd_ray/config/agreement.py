"""Checks that keys of different sections agree, before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from momkd_ray.config.model_names import DEFAULT_MODEL, OMICS_MODELS, ONE_WORKER_MODELS

if TYPE_CHECKING:
    from momkd_ray.config.load import Config


def disagreement(config: Config) -> str:
    """Returns what is wrong with keys that do not go together, and the cure; '' if all do.

    Keys over which `search` runs are checked with each of their values instead.
    """
    checks: dict[tuple[str, ...], Callable[[Config], str]] = {
        ("train.bags_per_step",): _bags_for_every_worker,
        ("model.name",): _omics_for_the_model,
        ("model.name", "cluster.workers"): _one_worker_for_the_model,
        ("model.name", "model.pooling", "model.attention", "model.graph"): _pooling_with_attention_and_graph,
        ("model.name", "memory.components", "memory.init_patches"): _patches_for_every_component,
    }
    for keys, check in checks.items():
        if not set(keys) & set(config.search) and (wrong := check(config)):
            return wrong
    return ""


def _bags_for_every_worker(config: Config) -> str:
    bags, workers = config.train.bags_per_step, config.cluster.most_workers
    if bags >= workers:
        return ""
    fewer = "" if config.cluster.elastic else f", or set cluster.workers to {bags}"
    return (
        f"train.bags_per_step is {bags}, fewer than cluster.workers ({workers}): a worker would have nothing to do; "
        f"set train.bags_per_step to {workers} or more{fewer}"
    )


def _omics_for_the_model(config: Config) -> str:
    name = config.model.name
    if config.cohort.omics is not None or name not in OMICS_MODELS:
        return ""
    return (
        f"model.name is {name}, which learns from omics, but cohort.omics is null: name the table of omics, or set "
        f"model.name to {DEFAULT_MODEL}, which trains without"
    )


def _one_worker_for_the_model(config: Config) -> str:
    name = config.model.name
    if name not in ONE_WORKER_MODELS or config.cluster.most_workers == 1:
        return ""
    return (
        f"model.name is {name}, which contrasts the bags of a step with each other, which must be on one worker: "
        "set cluster.workers to 1"
    )


def _pooling_with_attention_and_graph(config: Config) -> str:
    model = config.model
    if model.name != DEFAULT_MODEL or model.pooling == "attention" or (model.attention == "memory" and model.graph):
        return ""
    key, value, default = ("graph", "false", "true") if not model.graph else ("attention", model.attention, "memory")
    return (
        f"model.{key} is {value}, but pooling by {model.pooling} has no {key} to change: set model.pooling to "
        f"attention, or model.{key} to {default}"
    )


def _patches_for_every_component(config: Config) -> str:
    components, patches = config.memory.components, config.memory.init_patches
    if config.model.name != DEFAULT_MODEL or components <= patches:
        return ""
    return (
        f"memory.components is {components}, more than the memory.init_patches ({patches}) that initialise them; set "
        f"memory.init_patches to {components} or more, or set memory.components to {patches}"
    )
