"""The searches of a comparison: as many settings for every model that has one, drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from momkd_ray.compare.variants import Variant
from momkd_ray.config.load import Config
from momkd_ray.config.run_sections import CompareConfig
from momkd_ray.crossval.search import Settings, combinations, random_settings
from momkd_ray.errors import InputError

DEFAULT_TRIALS = 8

_NOT_SEARCHED = ("train.refit", "train.fraction")


def drawn_trials(
    config: Config, compare: CompareConfig, variants: Sequence[Variant]
) -> Mapping[str, tuple[Settings, ...]]:
    """Draws the settings of every model that has a search.

    Returns:
        Label -> settings by dotted key; the same number for all, and fewer of them are the first of more.

    Raises:
        InputError: a search is not valid, or has fewer combinations than are to be tried.
    """
    searching = [variant for variant in variants if variant.search]
    sizes: dict[str, int | None] = {}
    for variant in searching:
        sizes[variant.label] = combinations(_with_search(config, compare, variant, 1))
    finite = [size for size in sizes.values() if size is not None]
    number = compare.trials or min([DEFAULT_TRIALS, *finite])
    for label, size in sizes.items():
        if size is not None and size < number:
            raise InputError(
                f"compare.trials is {number}, but the search of {label} has only {size} combinations, and every model "
                f"tries as many: lower compare.trials to {size}, or list more values"
            )
    trials = {}
    for variant in searching:
        try:
            drawn = random_settings(_with_search(config, compare, variant, number), number)
        except InputError as error:
            raise InputError(f"compare.models: {variant.label}: {error}") from None
        trials[variant.label] = tuple(drawn)
    return trials


def _with_search(config: Config, compare: CompareConfig, variant: Variant, number: int) -> Config:
    """Returns the configuration of one model with its search, whose values are checked."""
    source = f"compare.models: {variant.label}"
    for key in variant.search:
        if key in _NOT_SEARCHED:
            raise InputError(f"{source}: {key} cannot be searched: leave it out of the search")
        if key in variant.own:
            raise InputError(f"{source}: {key} is both set and searched: leave it out of one of them")
    own = config.with_settings({**variant.own, "model.name": variant.model}, source=source)
    tuning = {"method": "random", "settings": number, "seed": compare.search_seed}
    return own.with_search(variant.search, tuning, source)
