"""Where the bags of a fold are found changes no number, nor does a change of that in the middle of it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch
from support.fold_tasks import GeneratedBags, fold_task, state_of
from support.stores import write_store

from momkd_ray.bags import bag_stream
from momkd_ray.bags.bag_stream import BagStream, RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache, take_notes
from momkd_ray.bags.shared_bags import BagSource, share_bags
from momkd_ray.bags.store import BagStore
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.train.worker import train_loop_per_worker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BagStore:
    ids = fold_task(Path("unused")).bags["bag_id"]
    return write_store(str(tmp_path_factory.mktemp("store")), [GeneratedBags().read(i) for i in ids])


def trained(source: BagSource, location: Path, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains the fold and returns its weights, metrics and predictions; `between` is called after the first epoch.

    A bag or two are read ahead, so that the later epochs are still to be read then.
    """
    reported: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any]) -> None:
        reported.append({k: v for k, v in metrics.items() if "seconds" not in k})
        if len(reported) == 1:
            between()

    task = fold_task(location)
    cluster = task.config.cluster.model_copy(update={"read_ahead_mb": 2**-10})
    config = task.config.model_copy(update={"cluster": cluster})
    train_loop_per_worker({"task": replace(task, source=source, config=config), "report": report})
    return {
        "weights": state_of(location)["model"],
        "reported": [{k: v for k, v in line.items() if k != "notes"} for line in reported],
        "test": pd.read_parquet(location / "test_slides.parquet"),
        "notes": [note for line in reported for note in line["notes"]],
    }


@pytest.fixture(scope="module")
def expected(store: BagStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(store, tmp_path_factory.mktemp("direct") / "fold")


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["reported"] == theirs["reported"]
    assert all(torch.equal(ours["weights"][name], theirs["weights"][name]) for name in theirs["weights"])
    pd.testing.assert_frame_equal(ours["test"], theirs["test"], check_exact=True)


def kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens."""


def deleted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(cache)


def halved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted(cache.iterdir())[::2]:
        path.unlink()


def full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halved(cache, monkeypatch)

    def no_space(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", no_space)


@pytest.mark.parametrize("change", [kept, deleted, halved, full])
def test_a_cache_changes_no_number(
    store: BagStore, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    take_notes()
    cache = tmp_path / "cache"
    bags = CachedBags(store, DiskCache(str(cache), None))
    ours = trained(bags, tmp_path / "fold", lambda: change(cache, monkeypatch))
    assert_same(ours, expected)
    assert len(ours["notes"]) == (change is full), ours["notes"]


def test_bags_that_the_object_store_loses_are_read_from_the_store(
    store: BagStore, expected: dict[str, Any], tmp_path: Path, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_notes()
    shared = share_bags(store, store.slides.index.tolist())

    def lost(block: Any) -> Any:  # a real loss takes a node that dies with it
        raise ray.exceptions.ObjectLostError(block.hex(), None, "")

    def lose() -> None:
        monkeypatch.setattr(ray, "get", lost)
        shared._opened_blocks.clear()  # as in a worker that is started again

    ours = trained(shared, tmp_path / "fold", lose)
    assert not shared._opened_blocks, "the second epoch found a block that was lost"
    assert_same(ours, expected)


@pytest.mark.parametrize("layer", ["shared", "streamed", "streamed to the cache", "streamed on other machines"])
def test_bags_through_ray_change_no_number(
    store: BagStore,
    expected: dict[str, Any],
    tmp_path: Path,
    ray_cluster: Connection,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
) -> None:
    take_notes()
    monkeypatch.setattr(bag_stream, "FIRST_STALL_S", bag_stream.PATIENCE_S)  # Ray may start as slowly as it likes
    delivered = []
    close = BagStream.close
    monkeypatch.setattr(BagStream, "close", lambda stream: (delivered.append(stream.delivered), close(stream)))
    ids = store.slides.index.tolist()
    cached = CachedBags(store, DiskCache(str(tmp_path / "cache"), None))
    sources: dict[str, Callable[[], BagSource]] = {
        "shared": lambda: share_bags(store, ids),
        "streamed": lambda: RayDataBags(store),
        "streamed to the cache": lambda: RayDataBags(cached),
        "streamed on other machines": lambda: RayDataBags(store, spare_cpus=1.0),
    }
    ours = trained(sources[layer](), tmp_path / "fold")
    assert_same(ours, expected)
    assert not ours["notes"]
    assert (sum(delivered) > 0) == (layer != "shared")
    if "cache" in layer:
        assert all(cached.holds(slide_id) for slide_id in ids)
