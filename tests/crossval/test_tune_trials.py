"""Which fold of which setting is trained next, and how many side by side."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.experimental import internal_kv
from ray.tune.search import Searcher

from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval import tune_trials as trials
from momkd_ray.crossval.tune_trials import FoldAndSetting, FoldSearcher, threads_of_folds, trial_resources
from momkd_ray.ray_runtime.cluster import Connection, concurrent_folds, missing_resources_note, total_resource


class Pretended:
    """A search of given settings."""

    def __init__(self, settings: int) -> None:
        self.settings = [{"train.lr": setting} for setting in range(settings)]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10)), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_units_come_in_order_each_once_and_never_more_than_there_is_room(
    happenings: list[tuple[int, int]], folds: int, n_settings: int
) -> None:
    units: list[FoldAndSetting] = [(fold, setting) for setting in range(n_settings) for fold in range(folds)]
    room = 1
    given_out: list[FoldAndSetting] = []
    live: list[str] = []
    searcher = FoldSearcher(iter(units), Pretended(n_settings), Counter(), lambda: room)  # type: ignore[arg-type]
    for asked, (room, ends) in enumerate(happenings):  # the searcher asks for it
        offer = searcher.suggest(str(asked))
        if offer == Searcher.FINISHED:
            assert len(given_out) == len(units)
        elif offer is None:
            assert len(live) >= room
        else:
            assert isinstance(offer, dict)
            assert len(live) < room
            assert offer["values"] == {"train.lr": offer["setting"]}
            given_out.append((offer["fold"], offer["setting"]))
            live.append(str(asked))
        if live and ends < 5:
            searcher.on_trial_complete(live.pop(ends % len(live)), {})
    while live:
        searcher.on_trial_complete(live.pop(), {})
    while (offer := searcher.suggest("rest")) != Searcher.FINISHED:
        assert isinstance(offer, dict)
        given_out.append((offer["fold"], offer["setting"]))
        searcher.on_trial_complete("rest", {})
    assert given_out == units


def test_after_bad_input_nothing_begins() -> None:
    searcher = FoldSearcher(iter([(0, 0), (1, 0)]), Pretended(1), Counter(), lambda: 1)  # type: ignore[arg-type]
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"bad_input": "a slide is damaged"})
    assert searcher.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "folds"),
    [
        ({}, 4, 0, 4),
        ({"cpus_per_worker": 0.1}, 1, 0, 10),
        ({"workers": 2}, 5, 0, 2),
        ({"gpus_per_worker": 0.25}, 16, 2, 8),
        ({"gpus_per_worker": 0.6}, 16, 3, 3),
        ({"workers": 2, "gpus_per_worker": 1}, 16, 5, 2),
        ({"workers": 8}, 2, 0, 1),
    ],
)
def test_as_many_folds_side_by_side_as_there_is(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], cpus: float, gpus: float, folds: int
) -> None:
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", {"CPU": cpus, "GPU": gpus}.__getitem__)
    assert concurrent_folds(ClusterConfig(**cluster), own=False) == folds


@pytest.mark.parametrize(
    ("cluster", "cpus", "folds", "expected"),
    [
        ({}, 2, 5, [1, 1, 1, 1, 2]),
        ({}, 4, 5, [1, 1, 1, 1, 4]),
        ({}, 2, 4, [1, 1, 1, 1]),
        ({}, 16, 5, [3, 3, 3, 3, 3]),
        ({"cpus_per_worker": 2}, 8, 5, [2, 2, 2, 2, 8]),
        ({}, 1, 3, [1, 1, 1]),
        ({"gpus_per_worker": 1}, 16, 5, [1, 1, 1, 1, 1]),
        ({"workers": 2}, 16, 5, [1, 1, 1, 1, 1]),
    ],
)
def test_the_last_folds_take_what_would_be_idle_of_a_machine_of_its_own(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], cpus: float, folds: int, expected: list[float]
) -> None:
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", {"CPU": cpus, "GPU": 1.0}.__getitem__)
    config = SimpleNamespace(cluster=ClusterConfig(**cluster), search={})
    inputs: Any = SimpleNamespace(config=config, plan=SimpleNamespace(folds=range(folds)), setting_names=None)
    assert list(threads_of_folds(inputs, own_cluster=True).values()) == expected
    each = config.cluster.cpus_per_worker
    assert set(threads_of_folds(inputs, own_cluster=False).values()) == {each}, "nodes come and go, and may be smaller"
    config.search = {"train.lr": [1, 2]}
    assert set(threads_of_folds(inputs, own_cluster=True).values()) == {each}


def test_what_a_cluster_lacks_for_a_fold_is_said(ray_cluster: Connection) -> None:
    assert missing_resources_note(ClusterConfig()) is None
    words = "needs 2000 CPUs and the cluster has [0-9]+: it waits"
    assert re.search(words, missing_resources_note(ClusterConfig(workers=[2000, 4000])) or "")
    assert "needs 1 GPU and the cluster has 0" in (missing_resources_note(ClusterConfig(gpus_per_worker=1)) or "")


def test_what_there_is_is_asked_of_the_cluster_that_is_connected(
    monkeypatch: pytest.MonkeyPatch, ray_cluster: Connection
) -> None:
    before = total_resource("CPU")
    monkeypatch.setattr(internal_kv, "global_gcs_client", None)  # what the end of another cluster leaves
    assert total_resource("CPU") == before > 0


def test_the_room_follows_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus, clock = {"CPU": 2.0, "GPU": 0.0}, [0.0]
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", cpus.__getitem__)
    monkeypatch.setattr(trials.time, "monotonic", lambda: clock[0])
    room = trials.concurrency_limit(ClusterConfig())
    assert room() == 2
    cpus["CPU"], clock[0] = 6.0, 60.0
    assert room() == 6


def test_a_fold_alone_holds_its_share_of_a_gpu_and_a_driver_holds_nothing_its_workers_need() -> None:
    assert trial_resources(ClusterConfig(gpus_per_worker=0.25)) == {"cpu": 1, "gpu": 0.25}
    driver = trial_resources(ClusterConfig(workers=2, gpus_per_worker=1))
    assert driver["cpu"] == 0
    assert "gpu" not in driver
