"""How the settings of a search are drawn from ranges and lists, at random, by Optuna or all of a grid."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import changed, searched

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.config.search_space import Range
from momkd_ray.crossval.search import Search
from momkd_ray.errors import InputError


@st.composite
def ranges(draw: st.DrawFn, integers: bool) -> Range:
    low = draw(st.integers(1, 50)) if integers else draw(st.floats(1e-6, 10))
    width = draw(st.integers(1, 50)) if integers else draw(st.floats(0.01, 100))
    log = draw(st.booleans())
    parts = None if log else draw(st.none() | st.integers(1, 7))
    step = None if parts is None else (max(1, width // parts) if integers else width / parts)
    return Range(low=low, high=low + width, log=log, step=step)


@given(st.data(), st.booleans())
def test_a_range_gives_its_own_values_and_both_ends(data: st.DataObject, integers: bool) -> None:
    space = data.draw(ranges(integers))
    value = space.quantile(data.draw(st.floats(0, 1, exclude_max=True)), integers)
    assert space.low <= value <= space.high * (1 + 1e-9)
    assert isinstance(value, int) or not integers
    assert space.quantile(0.0, integers) == pytest.approx(space.low)
    last = space.quantile(1 - 1e-12, integers)
    assert space.high - (space.step or float(integers)) < last * (1 + 1e-9)
    if (n_values := space.count(integers)) is not None:
        values = {space.value(place, integers) for place in range(n_values)}
        assert len(values) == n_values
        assert value in values


SPACE = {
    "train.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "memory.components": {"low": 4, "high": 8, "step": 2},
    "memory.rule": ["ema", "fixed"],
}


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_drawn_settings_are_new_valid_and_recorded_before_they_are_used(tiny_config: Config, method: str) -> None:
    config = searched(tiny_config, SPACE, method=method, settings=12)
    search = Search(config)
    while len(search.settings) < search.total:
        number = search.draw({n: n / 20 for n in range(len(search.settings))})
        assert storage.read_json(search.location)[number] == search.settings[number]
    assert len({json.dumps(setting) for setting in search.settings}) == search.total == 12
    for setting in search.settings:
        assert isinstance(setting["memory.components"], int)
        config.with_settings(setting)
    assert Search(config).settings == search.settings


def test_random_settings_follow_from_seed_and_number_alone(tiny_config: Config, tmp_path: Path) -> None:
    few = Search(searched(tiny_config, SPACE, method="random", settings=4)).settings
    many = Search(searched(changed(tiny_config, run__dir=str(tmp_path / "b")), SPACE, method="random")).settings
    assert len(many) == 20
    assert many[:4] == few
    other = searched(changed(tiny_config, run__dir=str(tmp_path / "c")), SPACE, method="random", seed=2)
    assert Search(other).settings[:4] != few


def test_optuna_learns_from_scores_and_goes_on_with_what_is_recorded(tiny_config: Config, tmp_path: Path) -> None:
    def drawn(folder: str, cut: int | None = None) -> list[Any]:
        config = searched(changed(tiny_config, run__dir=str(tmp_path / folder)), SPACE, method="optuna", settings=30)
        search = Search(config)
        while len(search.settings) < search.total:
            if len(search.settings) == cut:
                search = Search(config)
            # a high learning rate is good; one setting failed
            scores = {n: setting["train.lr"] * 100 for n, setting in enumerate(search.settings)}
            search.draw(scores | ({3: None} if 3 in scores else {}))
        return search.settings

    settings = drawn("whole")
    assert drawn("cut", cut=17) == settings
    rates = [setting["train.lr"] for setting in settings]
    assert sum(rates[15:]) / 15 > 2 * sum(rates[:10]) / 10


def test_a_grid_is_every_combination_in_the_order_of_its_keys(tiny_config: Config) -> None:
    config = searched(tiny_config, {"train.lr": [0.1, 0.2], "memory.components": {"low": 4, "high": 8, "step": 2}})
    settings = Search(config).settings
    assert [tuple(setting.values()) for setting in settings] == list(product([0.1, 0.2], [4, 6, 8]))


def test_values_that_do_not_go_together_are_refused_in_a_grid_and_not_drawn(tiny_config: Config) -> None:
    space = {"model.hidden": [15, 16, 18], "model.heads": [2, 3]}
    config = tiny_config.model_copy(update={"search": space})
    with pytest.raises(InputError, match="multiple of heads"):
        Search(config)
    tuning = config.tuning.model_copy(update={"method": "random", "settings": 4})
    settings = Search(config.model_copy(update={"tuning": tuning})).settings
    assert all(setting["model.hidden"] % setting["model.heads"] == 0 for setting in settings)
    for method in ("random", "optuna"):
        with pytest.raises(InputError, match="both new and valid"):
            Search(config.model_copy(update={"tuning": tuning.model_copy(update={"method": method, "settings": 5})}))
