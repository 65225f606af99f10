"""The settings of a search: drawn one after another, numbered, and recorded before they are used."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from momkd_ray import storage
from momkd_ray.config.load import Config, takes_integers
from momkd_ray.config.search_space import Range
from momkd_ray.errors import InputError
from momkd_ray.run.layout import RunDirectory
from momkd_ray.seeds import derive_seed

DEFAULT_SETTINGS = 20
_MAX_DRAWS = 1000

Settings = Mapping[str, Any]


class Search:
    """The settings of a run; a single empty one if there is no search.

    A grid and random settings follow from the configuration alone and are drawn at the start. Optuna's settings are
    drawn when the cluster can train them, from the scores at that time. So with Optuna, another cluster or an
    interruption can lead to other settings if several are trained side by side; recorded settings are kept, and
    settings trained one after another follow from `tuning.seed` alone.

    Args:
        config: the resolved configuration.
        settings: those of a comparison, given instead of drawn.
        names: what a comparison calls each of them.

    Raises:
        InputError: a combination of the grid is not valid, or there are fewer valid combinations than settings.
    """

    def __init__(
        self, config: Config, settings: Sequence[Settings] | None = None, names: Sequence[str] | None = None
    ) -> None:
        self.config, self.method = config, config.tuning.method
        self.location = RunDirectory(config.run.dir).settings
        self.settings: list[Settings] = list(settings or [])
        self.names = names
        if settings is not None:
            self.total = len(settings)
            return
        if not config.search:
            self.total, self.settings = 1, [{}]
            return
        self.total = _total(config)
        if storage.exists(self.location):
            self.settings = storage.read_json(self.location)
        if len(self.settings) < self.total:
            self._draw_all()

    def name(self, number: int) -> str:
        """Returns what a setting is called in progress and messages."""
        return f"setting {number}" if self.names is None else self.names[number]

    def model(self, number: int) -> str:
        """Returns a setting's values but for its seed, as text: those of a comparison's model; '' in a search."""
        if self.names is None:
            return ""
        return json.dumps({**self.settings[number], "train.seed": None}, sort_keys=True)

    def _draw_all(self) -> None:
        """Draws all settings; for Optuna only at random, to check that there are enough valid combinations."""
        recorded, self.settings = self.settings, []
        while len(self.settings) < self.total:
            self.settings.append(self._next(None))
        if self.method == "optuna":
            self.settings = recorded
        else:
            self._record()

    def draw(self, scores: Mapping[int, float | None]) -> int:
        """Draws and records the next setting.

        Args:
            scores: of earlier settings by number; None for one that diverged.

        Returns:
            The setting's number.

        Raises:
            InputError: no new valid combination was drawn.
        """
        self.settings.append(self._next(scores))
        self._record()
        return len(self.settings) - 1

    def _next(self, scores: Mapping[int, float | None] | None) -> Settings:
        """Draws a new valid setting; without scores, Optuna's is drawn at random."""
        if self.method == "grid":
            setting = _grid_setting(self.config, len(self.settings))
            self.config.with_settings(setting)
            return setting

        def drawn(seed: int, attempt: int) -> dict[str, Any]:
            # training is deterministic, so a repeated setting would tell nothing new: if Optuna's sampler insists on
            # one, the setting is drawn at random
            if self.method == "optuna" and scores is not None and attempt < _MAX_DRAWS // 100:
                return _optuna_setting(self.config, seed, self.settings, scores)
            return _random_setting(self.config, seed)

        return _new_setting(self.config, self.settings, drawn)

    def _record(self) -> None:
        storage.write_json(self.location, self.settings)


def random_settings(config: Config, number: int) -> list[Settings]:
    """Draws so many settings of the search, each new and valid; fewer are the first of more.

    Raises:
        InputError: there are not as many valid combinations.
    """
    settings: list[Settings] = []
    while len(settings) < number:
        settings.append(_new_setting(config, settings, lambda seed, attempt: _random_setting(config, seed)))
    return settings


def _new_setting(
    config: Config, settings: Sequence[Settings], drawn: Callable[[int, int], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the first setting drawn that is valid and none of the earlier ones.

    Args:
        config: whose search it is.
        settings: the earlier ones.
        drawn: makes a setting by seed and number of the attempt.

    Raises:
        InputError: none is, after many attempts.
    """
    for attempt in range(_MAX_DRAWS):
        setting = drawn(derive_seed("setting", config.tuning.seed, len(settings), attempt), attempt)
        if setting not in settings and _is_valid(config, setting):
            return setting
    raise InputError(
        f"search: of {_MAX_DRAWS} combinations drawn after {len(settings)} settings none was both new and "
        "valid: lower the number of settings or widen the search"
    )


def combinations(config: Config) -> int | None:
    """Returns the number of combinations of the search; None if there are infinitely many."""
    counts = [_count(config, key) for key in config.search]
    return None if None in counts else math.prod(count for count in counts if count)


def _total(config: Config) -> int:
    """Returns the number of settings of the search."""
    n_combinations = combinations(config)
    if config.tuning.method == "grid" and n_combinations is not None:
        return n_combinations
    requested = config.tuning.settings or DEFAULT_SETTINGS
    return requested if n_combinations is None else min(requested, n_combinations)


def _count(config: Config, key: str) -> int | None:
    """Returns the number of values of a key; None if there are infinitely many."""
    values = config.search[key]
    return values.count(takes_integers(key)) if isinstance(values, Range) else len(values)


def _grid_setting(config: Config, index: int) -> dict[str, Any]:
    """Returns the combination at an index of the grid, whose last key changes fastest."""
    axes = []
    for key, values in config.search.items():
        if isinstance(values, Range):
            integers = takes_integers(key)
            axes.append([values.value(i, integers) for i in range(values.count(integers) or 0)])
        else:
            axes.append(values)
    return dict(zip(config.search, next(itertools.islice(itertools.product(*axes), index, None)), strict=True))


def _random_setting(config: Config, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    setting = {}
    for key, values in config.search.items():
        share = float(rng.random())
        if isinstance(values, Range):
            setting[key] = values.quantile(share, takes_integers(key))
        else:
            setting[key] = values[int(share * len(values))]
    return setting


def _optuna_setting(
    config: Config, seed: int, settings: list[Settings], scores: Mapping[int, float | None]
) -> dict[str, Any]:
    """Returns Optuna's suggestion, given the scores of earlier settings.

    The sampler is created for each draw, and given the scores in the order of the settings, so that it has no state
    that an interruption could lose.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = OptunaSearch(space=distributions(config), metric="score", mode="max", seed=seed % 2**32)
    for number, score in sorted(scores.items()):
        # with error=True the score is not used, but must be a number
        sampler.add_evaluated_point(dict(settings[number]), score or 0.0, error=score is None)
    suggested: dict[str, Any] = sampler.suggest("next")
    return {key: suggested[key] for key in config.search}


def distributions(config: Config) -> dict[str, Any]:
    """Returns the values of each key of the search as Optuna's distributions."""
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
    """Returns whether the values of a setting fit together, such as a width and its number of heads."""
    try:
        config.with_settings(setting)
    except InputError:
        return False
    return True
