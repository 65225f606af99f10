"""What a comparison trains: every model with every seed and every fraction."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from momkd_ray.compare.trials import drawn_trials
from momkd_ray.compare.variants import variants_of
from momkd_ray.config.load import Config
from momkd_ray.config.model_names import DEFAULT_MODEL, OMICS_MODELS, ONE_WORKER_MODELS
from momkd_ray.config.run_sections import CompareConfig
from momkd_ray.crossval.search import Settings
from momkd_ray.errors import InputError

_VARIABLE = ("omics", "genes", "model", "memory", "loss", "train")


@dataclass(frozen=True)
class Entry:
    """One model with one seed and one pair of fractions.

    Attributes:
        name: of the model, whatever its fractions.
        label: the name, and the fractions if the model is trained with several and these are not the whole.
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
    entries: dict[str, Entry] = {}
    fractions = list(itertools.product(compare.label_fractions, compare.omics_fractions))
    whole = max(compare.omics_fractions)
    variants = variants_of(config, compare)
    trials = drawn_trials(config, compare, variants)
    for seed, variant, (labels, omics) in itertools.product(compare.seeds, variants, fractions):
        if variant.model not in (DEFAULT_MODEL, *OMICS_MODELS):
            omics = whole  # of which it uses none: it is trained once, not again for each fraction
        settings = {"train.fraction": labels, "omics.fraction": omics, **variant.own}
        settings |= {"model.name": variant.model, "train.seed": seed}
        for key in settings:
            if key.split(".")[0] not in _VARIABLE:
                raise InputError(f"compare.models: '{key}' of {variant.label} cannot vary, only {', '.join(_VARIABLE)}")
        config.with_settings(settings, source=f"compare.models: {variant.label}")
        # a model whose own settings give a fraction is trained with that one alone
        labels, omics = settings["train.fraction"], settings["omics.fraction"]
        folder = folder_of(variant.label, settings)
        tried = trials.get(variant.label, ())
        entry = Entry(
            name=variant.label,
            label=variant.label + _shares(labels, omics, compare, variant.own),
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
    reference_of(compare.reference, list(entries.values()))  # refuses another name
    return list(entries.values())


def _shares(labels: float, omics: float, compare: CompareConfig, own: Mapping[str, Any]) -> str:
    """Returns what a label says of the fractions: nothing of one that the model is not trained with several values of.

    With all labels and all omics a model has its plain name.
    """
    parts = [
        f"{fraction:.4g} of the {name}"
        for name, fraction, key, values in (
            ("labels", labels, "train.fraction", compare.label_fractions),
            ("omics", omics, "omics.fraction", compare.omics_fractions),
        )
        if key not in own and len(values) > 1 and fraction < 1
    ]
    return f" ({', '.join(parts)})" if parts else ""


def reference_of(named: str | None, entries: Sequence[Entry]) -> str:
    """Returns the label of the reference: of the named model, or the first, the one with the largest fractions.

    Args:
        named: a label, or a model's name without its fractions.
        entries: of the comparison.

    Raises:
        InputError: no model has the name.
    """
    labels = list(dict.fromkeys(entry.label for entry in entries))
    name = entries[0].name if named is None else named
    if name in labels:
        return name
    of_name = [entry for entry in entries if entry.name == name]
    if not of_name:
        raise InputError(f"compare.reference is {name!r}, but the models are {', '.join(labels)}")
    return max(of_name, key=lambda entry: (entry.label_fraction, entry.omics_fraction)).label


def folder_of(label: str, settings: Settings) -> str:
    """Returns the name of the folder of a model, which differs for other values of its configuration."""
    content: dict[str, Any] = dict(settings)
    # these were computed otherwise once, and folders of then are not gone on with
    if settings["train.fraction"] < 1 or settings["model.name"] in ONE_WORKER_MODELS:
        content["computed"] = 2
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-") or "model"
    return f"model={readable}-seed={settings['train.seed']}-{digest}"
