"""The models of a comparison, each with the configuration values in which it differs: of its ablations and `set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from momkd_ray.config.ablations import ABLATIONS, PUBLISHED
from momkd_ray.config.load import Config
from momkd_ray.config.model_names import DEFAULT_MODEL
from momkd_ray.config.run_sections import CompareConfig, ablation_label
from momkd_ray.errors import InputError


@dataclass(frozen=True)
class Variant:
    """A model with its own values.

    Attributes:
        label: its name in the leaderboard.
        model: `model.name`.
        own: values by dotted key in which it differs from the configuration.
        search: the values of keys that it chooses from, as of the section `search`; empty for most.
    """

    label: str
    model: str
    own: Mapping[str, Any]
    search: Mapping[str, Any] = field(default_factory=dict)


def variants_of(config: Config, compare: CompareConfig) -> list[Variant]:
    """Lists the models of `compare.models`, then those of `compare.ablations`.

    Raises:
        InputError: an ablation changes nothing here, or two models have one label.
    """
    trained = config.omics.model_copy(update={"fraction": max(compare.omics_fractions)})
    config = config.model_copy(update={"omics": trained})
    variants = []
    for model in compare.models:
        own = ablation_keys(config, model["ablation"], f"compare.models: {model['label']}") | model["set"]
        variants.append(Variant(model["label"], model["name"], own, model["search"]))
    every = compare.ablations == "all"
    for names in _all_that_apply(config) if every else compare.ablations:
        own = ablation_keys(config, names, "compare.ablations")
        variant = Variant(ablation_label(DEFAULT_MODEL, names), DEFAULT_MODEL, own)
        if not (every and variant in variants):
            variants.append(variant)
    labels = [variant.label for variant in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"compare: two models have the label {label!r}: give each its own label")
    return variants


def ablation_keys(config: Config, names: Sequence[str], of: str) -> dict[str, Any]:
    """Returns the configuration values of several ablations together, by dotted key.

    Args:
        config: the configuration that they change.
        names: of `ABLATIONS`, in their order.
        of: the model or key that names them, for messages.

    Raises:
        InputError: one of them changes nothing in this configuration.
    """
    keys: dict[str, Any] = {}
    for name in names:
        if why := _changes_nothing(config, keys, name):
            raise InputError(f"{of}: the ablation {name} changes nothing, because {why}")
        keys |= ABLATIONS[name].keys
    return keys


def _all_that_apply(config: Config) -> list[tuple[str, ...]]:
    """Lists every ablation that changes something, on the published network where it has no meaning elsewhere."""
    names_of_each = [
        (PUBLISHED, name) if any(_value(config, {}, key) != value for key, value in ablation.needs.items()) else (name,)
        for name, ablation in ABLATIONS.items()
    ]
    published = ABLATIONS[PUBLISHED].keys
    return [
        names for names in names_of_each if not _changes_nothing(config, published if len(names) > 1 else {}, names[-1])
    ]


def _changes_nothing(config: Config, keys: Mapping[str, Any], name: str) -> str:
    """Returns why an ablation on top of some values changes nothing, and the cure; '' if it changes something."""
    ablation = ABLATIONS[name]
    for key, value in ablation.needs.items():
        if (found := _value(config, keys, key)) != value:
            return f"{key} is {found}: write ablation: [{PUBLISHED}, {name}], or set {key} to {value}"
    if ablation.needs_omics and config.cohort.omics is None:
        return "cohort.omics is null: name the table of omics, or leave the ablation out"
    if all(_value(config, keys, key) == value for key, value in ablation.keys.items()):
        told = ", ".join(f"{key} is {_plain(value)}" for key, value in ablation.keys.items())
        return f"{told} already: leave it out" if name != PUBLISHED else "all its keys are so already: leave it out"
    return ""


def _value(config: Config, keys: Mapping[str, Any], key: str) -> Any:
    section, _, leaf = key.partition(".")
    return keys[key] if key in keys else getattr(getattr(config, section), leaf)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
