"""Small work is done without a cluster, with the same results and errors as with one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bags import write_h5
from support.models import card_of, small_model

from momkd_ray.config.load import Config
from momkd_ray.errors import InputError, RunError, as_user_error
from momkd_ray.model.bundle import save_bundle
from momkd_ray.ray_runtime import parallel_map as parallel_map_module
from momkd_ray.ray_runtime import small_work
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import Work, connect_if_named, connect_if_worth, work_on_files

FAILURE = "the numbers could not be divided"


def divider() -> Callable[..., tuple[int, float, int]]:
    """A function that Ray pickles whole, as its processes do not see the tests."""

    def divided(item: int, by: int) -> tuple[int, float, int]:
        if item == 13:
            raise InputError("13 brings bad luck; leave it out")
        if item == 14:
            raise RunError("the disk is full")
        return item, item / (by - item % 2), torch.get_num_threads()

    return divided


def outcome_of(items: list[int], by: int, chunk: int) -> tuple[str, Any]:
    """What a caller gets: sorted results, or the error."""
    try:
        return "done", sorted(parallel_map(divider(), items, FAILURE, chunk=chunk, by=by))
    except (InputError, RunError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("items", "by", "chunk"),
    [([], 3, 1), ([5], 3, 1), (list(range(12)), 3, 5), ([1, 13, 2], 3, 2), ([14], 3, 1), ([4, 7], 1, 1)],
    ids=["none", "one", "several", "bad input", "a failure", "an error of any type"],
)
def test_with_and_without_a_cluster_results_and_errors_are_the_same(
    ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch, items: list[int], by: int, chunk: int
) -> None:
    with_cluster = outcome_of(items, by, chunk)
    monkeypatch.setattr(parallel_map_module, "is_connected", lambda: False)
    assert outcome_of(items, by, chunk) == with_cluster


def test_a_cluster_is_left_what_takes_longer_than_its_first_tasks(ray_cluster: Connection) -> None:
    def process(item: int) -> int:
        return os.getpid()

    assert {*parallel_map(process, [1, 2], FAILURE, work=Work(2, 0.1))} == {os.getpid()}
    for work in (Work(2, 100.0), None):
        assert os.getpid() not in {*parallel_map(process, [1, 2], FAILURE, work=work)}


def test_threads_are_as_before_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_map_module, "is_connected", lambda: False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert next(parallel_map(divider(), [2], FAILURE, by=3))[2] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The addresses that a cluster was asked for at, on a machine of 8 CPUs that has none running."""
    asked: list[str | None] = []

    @contextmanager
    def connect(address: str | None = None) -> Iterator[Connection]:
        asked.append(address)
        yield Connection(True, "")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(small_work, "connect", connect)
    monkeypatch.setattr(small_work, "available_cpus", lambda: 8)
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.is_connected", lambda: False)
    return asked


@pytest.mark.parametrize(
    ("work", "address", "variable", "clusters"),
    [
        (work_on_files(24, 24 * 30e6), None, "", 0),
        (work_on_files(24, 24 * 30e6), "auto", "", 1),
        (work_on_files(24, 24 * 30e6), None, "head:6379", 1),
        (work_on_files(5_000, 5_000 * 30e6), None, "", 1),
        (Work(1, 3_600.0), None, "", 0),
        (Work(0, 0.0), None, "", 0),
    ],
    ids=["few files", "an address", "RAY_ADDRESS", "many files", "one item", "nothing"],
)
def test_a_cluster_is_started_where_it_saves_time_or_is_named(
    started: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
    work: Work,
    address: str | None,
    variable: str,
    clusters: int,
) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with connect_if_worth(work, address) as used:
        assert used == bool(clusters)
    assert started == [address] * clusters
    with connect_if_named(address):
        assert len(started) == clusters + bool(address or variable)


def test_work_that_only_a_cluster_can_do_starts_one(started: list[str | None]) -> None:
    with connect_if_worth(Work(1, 0.1), needs_cluster=True):
        assert len(started) == 1


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0, 1e6), st.integers(1, 1000))
def test_a_cluster_saves_more_with_more_cpus_but_never_all(items: int, seconds: float, cpus: int) -> None:
    work = Work(items, seconds)
    assert work.saved_by_cluster(1) == 0
    assert 0 <= work.saved_by_cluster(cpus) <= work.saved_by_cluster(cpus + 1) <= seconds


def run_in_one_process(verbs: list[tuple[list[str], list[str]]]) -> str:
    """Runs verbs, each with the modules that it must not have imported; returns what they said."""
    code = f"""
import sys
from momkd_ray.cli import main
for arguments, heavy in {verbs}:
    try: main(['-v', *arguments])
    except SystemExit as e: assert not e.code, arguments
    assert not set(heavy) & set(sys.modules), (arguments[0], set(heavy) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


HEAVY = ["ray", "matplotlib", "statsmodels", "xgboost", "torch_geometric"]


def test_reading_feature_files_imports_neither_ray_nor_torch(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(tiny_config.to_yaml())
    config = ["--config", str(tmp_path / "c.yaml")]
    said = run_in_one_process(
        [(["ingest", *config], ["torch", "sklearn", *HEAVY]), (["audit", *config], ["torch", *HEAVY])]
    )
    assert said.count("Without a Ray cluster: 27 items") == 2


def test_prediction_imports_no_more_than_torch(tmp_path: Path) -> None:
    model = small_model()
    save_bundle(str(tmp_path / "model"), model, card_of(model))
    (tmp_path / "features").mkdir()
    for name in "abc":
        write_h5(tmp_path / "features" / f"{name}.h5", width=model.width)
    predict = ["predict", str(tmp_path / "model"), "--features", str(tmp_path / "features")]
    said = run_in_one_process([([*predict, "--out", str(tmp_path / "p.csv")], ["sklearn", *HEAVY])])
    assert "Without a Ray cluster: 3 items" in said
    assert "predict: 3/3" in said


def test_a_failure_of_the_machine_behind_bad_input_is_no_bad_input() -> None:
    try:
        try:
            raise InputError("the file is damaged")
        except InputError as damaged:
            raise RunError("could not read the file: Input/output error") from damaged
    except RunError as error:
        found = as_user_error("the slides could not be read", error)
    assert not isinstance(found, InputError)
    assert "Input/output error" in str(found)
