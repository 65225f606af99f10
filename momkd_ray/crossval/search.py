"""The settings of a search: drawn one after another, numbered, and recorded before any is used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from momkd_ray import storage
from momkd_ray.config.load import Config, takes_integers
from momkd_ray.config.search_space import Range
from momkd_ray.errors import InputError
from momkd_ray.seeds import derive_seed

SETTINGS_FILE = "settings.json"
DRAWN_BY_DEFAULT = 20
_TRIES = 1000

Settings = Mapping[str, Any]


class Search:
    """The settings of a run: one, empty, where there is no search.

    A grid and random settings follow from the configuration alone and are all there from the start. Optuna's are
    drawn when the cluster has room for them, from the scores that are known by then. So what cannot be promised
    for Optuna is that another cluster, or an interruption, leads to the same settings where several are trained
    side by side; those that are recorded stay, and one after another they follow from `tuning.seed` alone.
    """

    def __init__(self, config: Config) -> None:
        """Go on with the recorded settings, or draw what can be drawn.

        Raises:
            InputError: a combination of the grid is not valid, or there are fewer valid ones than are to be drawn.
        """
        self.config, self.method = config, config.tuning.method
        self.place = storage.join(config.run.dir, SETTINGS_FILE)
        self.settings: list[Settings] = []
        if not config.search:
            self.total, self.settings = 1, [{}]
            return
        self.total = _total(config)
        if storage.exists(self.place):
            self.settings = storage.read_json(self.place)
        if len(self.settings) < self.total:
            self._begin()

    def _begin(self) -> None:
        """Draw all that there are to be; by chance in Optuna's stead, only to find that there are as many."""
        recorded, self.settings = self.settings, []
        while len(self.settings) < self.total:
            self.settings.append(self._next(None))
        if self.method == "optuna":
            self.settings = recorded
        else:
            self._record()

    def draw(self, scores: Mapping[int, float | None]) -> int:
        """Draw one setting more, knowing these scores of earlier ones by number (None: it failed); its number.

        Raises:
            InputError: no valid combination was found that is not there yet.
        """
        self.settings.append(self._next(scores))
        self._record()
        return len(self.settings) - 1

    def _next(self, scores: Mapping[int, float | None] | None) -> Settings:
        """The next setting; Optuna's from scores."""
        if self.method == "grid":
            setting = _cell(self.config, len(self.settings))
            self.config.with_settings(setting)
            return setting
        for attempt in range(_TRIES):
            seed = derive_seed("setting", self.config.tuning.seed, len(self.settings), attempt)
            # training is deterministic: a setting that is there already would teach nothing, so that where the sampler
            # holds on to one, chance finds another
            if self.method == "optuna" and scores is not None and attempt < _TRIES // 100:
                setting = _proposed(self.config, seed, self.settings, scores)
            else:
                setting = _random(self.config, seed)
            if setting not in self.settings and _is_valid(self.config, setting):
                return setting
        raise InputError(
            f"search: of {_TRIES} combinations drawn after {len(self.settings)} settings none was both new and valid: "
            "lower tuning.settings or widen the search"
        )

    def _record(self) -> None:
        storage.write_json(self.place, self.settings)


def _total(config: Config) -> int:
    counts = [_count(config, key) for key in config.search]
    there_are = None if None in counts else math.prod(count for count in counts if count)
    if config.tuning.method == "grid" and there_are is not None:
        return there_are
    wanted = config.tuning.settings or DRAWN_BY_DEFAULT
    return wanted if there_are is None else min(wanted, there_are)


def _count(config: Config, key: str) -> int | None:
    values = config.search[key]
    return values.count(takes_integers(key)) if isinstance(values, Range) else len(values)


def _cell(config: Config, place: int) -> dict[str, Any]:
    """The combination at a place of the grid, whose last key changes fastest."""
    axes = []
    for key, values in config.search.items():
        if isinstance(values, Range):
            whole = takes_integers(key)
            axes.append([values.value(i, whole) for i in range(values.count(whole) or 0)])
        else:
            axes.append(values)
    return dict(zip(config.search, next(itertools.islice(itertools.product(*axes), place, None)), strict=True))


def _random(config: Config, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    setting = {}
    for key, values in config.search.items():
        share = float(rng.random())
        if isinstance(values, Range):
            setting[key] = values.quantile(share, takes_integers(key))
        else:
            setting[key] = values[int(share * len(values))]
    return setting


def _proposed(
    config: Config, seed: int, settings: list[Settings], scores: Mapping[int, float | None]
) -> dict[str, Any]:
    """What Optuna proposes after these scores.

    Its sampler is made anew for each draw and told the scores in the order of the settings, so that it has no state
    that an interruption could lose.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = OptunaSearch(space=_distributions(config), metric="val_auc", mode="max", seed=seed % 2**32)
    for number, score in sorted(scores.items()):
        # nothing is learnt of a value that failed but that it failed; the argument must still be a number
        sampler.add_evaluated_point(dict(settings[number]), score or 0.0, error=score is None)
    proposed: dict[str, Any] = sampler.suggest("next")
    return {key: proposed[key] for key in config.search}


def _distributions(config: Config) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for key, values in config.search.items():
        if not isinstance(values, Range):
            space[key] = CategoricalDistribution(values)
        elif takes_integers(key):
            last = values.value((values.count(True) or 1) - 1, True)
            space[key] = IntDistribution(round(values.low), round(last), log=values.log, step=round(values.step or 1))
        else:
            n_values = values.count(False)
            last = values.high if n_values is None else values.value(n_values - 1, False)
            space[key] = FloatDistribution(values.low, last, log=values.log, step=values.step)
    return space


def _is_valid(config: Config, setting: Settings) -> bool:
    """Whether its values go together, such as a width and its number of heads."""
    try:
        config.with_settings(setting)
    except InputError:
        return False
    return True
