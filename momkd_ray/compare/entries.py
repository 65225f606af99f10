"""What a comparison trains: every model with every seed and every fraction."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from momkd_ray.compare.trials import drawn_trials
from momkd_ray.compare.variants import variants_of
from momkd_ray.config.load import Config
from momkd_ray.crossval.search import Settings
from momkd_ray.errors import InputError

_VARIABLE = ("omics", "genes", "model", "memory", "loss", "train")


@dataclass(frozen=True)
class Entry:
    """One model with one seed and one pair of fractions.

    Attributes:
        name: of the model, whatever its fractions.
        label: the name, with the fractions where several are compared.
        model: `model.name`.
        seed: `train.seed`.
        label_fraction, omics_fraction: `train.fraction` and `omics.fraction`.
        own: values by dotted key in which the model differs from the configuration, whatever seed and fractions.
        settings: all of it as dotted keys.
        folder: its folder in the run directory, named by its content, so that models can be added later.
        search: the values of keys that it chooses from; empty without a search.
        trials: the drawn settings of the search, of which each fold takes one.
    """

    name: str
    label: str
    model: str
    seed: int
    label_fraction: float
    omics_fraction: float
    own: Mapping[str, Any]
    settings: Mapping[str, Any]
    folder: str
    search: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Settings, ...] = ()


def entries_of(config: Config) -> list[Entry]:
    """Lists the entries of a configuration: all models with the first seed, then all with the next.

    Raises:
        InputError: there is no `compare` section, it stands beside a search, or a model's settings or search are not
            valid.
    """
    compare = config.compare
    if compare is None:
        raise InputError("the configuration has no compare section: list in compare.models what to compare")
    if config.search:
        raise InputError("compare and search are both given: compare models with fixed settings, or search one model's")
    several = len(compare.label_fractions) > 1 or len(compare.omics_fractions) > 1
    entries: dict[str, Entry] = {}
    fractions = list(itertools.product(compare.label_fractions, compare.omics_fractions))
    variants = variants_of(config, compare)
    trials = drawn_trials(config, compare, variants)
    for seed, variant, (labels, omics) in itertools.product(compare.seeds, variants, fractions):
        settings = {"train.fraction": labels, "omics.fraction": omics, **variant.own}
        settings |= {"model.name": variant.model, "train.seed": seed}
        for key in settings:
            if key.split(".")[0] not in _VARIABLE:
                raise InputError(f"compare.models: '{key}' of {variant.label} cannot vary, only {', '.join(_VARIABLE)}")
        config.with_settings(settings, source=f"compare.models: {variant.label}")
        # a model whose own settings give a fraction is trained with that one alone
        labels, omics = settings["train.fraction"], settings["omics.fraction"]
        label = variant.label + (f" ({labels:g} labels, {omics:g} omics)" if several else "")
        folder = folder_of(variant.label, settings)
        tried = trials.get(variant.label, ())
        entry = Entry(
            name=variant.label,
            label=label,
            model=variant.model,
            seed=seed,
            label_fraction=labels,
            omics_fraction=omics,
            own=variant.own,
            settings=settings,
            folder=folder,
            search=variant.search,
            trials=tried,
        )
        entries.setdefault(entry.folder, entry)
    _check_reference(compare.reference, entries)
    return list(entries.values())


def _check_reference(reference: str | None, entries: Mapping[str, Entry]) -> None:
    labels = list(dict.fromkeys(entry.label for entry in entries.values()))
    if reference is not None and reference not in labels:
        raise InputError(f"compare.reference is {reference!r}, but the models are {', '.join(labels)}")


def folder_of(label: str, settings: Settings) -> str:
    """Returns the folder of a model with its values, of which the name depends."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-") or "model"
    return f"model={readable}-seed={settings['train.seed']}-{digest}"
