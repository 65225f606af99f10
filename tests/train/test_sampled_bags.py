"""A model is initialised from a sample of bags, of which only the sampled patches are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bags import make_bag
from support.fold_tasks import GeneratedBags, fold_task
from support.stores import write_store

from momkd_ray import storage
from momkd_ray.bags.bag_stream import RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.patch_sample import read_patches
from momkd_ray.bags.shared_bags import JointBags
from momkd_ray.bags.store import BagStore
from momkd_ray.train import sampled_bags
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.worker import FoldTraining


@pytest.fixture
def store(tmp_path: Path) -> BagStore:
    return write_store(str(tmp_path / "store"), [make_bag(9 + 11 * i, seed=i) for i in range(5)])


@pytest.mark.parametrize("kind", ["store", "cache", "filled cache", "stream", "joint"])
def test_patches_are_those_of_the_bag(store: BagStore, tmp_path: Path, kind: str) -> None:
    ids = store.slides.index.tolist()
    cached = CachedBags(store, DiskCache(str(tmp_path / "cache"), None))
    if kind == "filled cache":
        for slide_id in ids:
            cached.read(slide_id)
    joint = JointBags(RayDataBags(cached), {"P": ("slide-3", "slide-0", "slide-4"), "Q": ("slide-1",)})
    source: Any = {"store": store, "stream": RayDataBags(store), "joint": joint}.get(kind, cached)
    for bag_id in ("P", "Q") if kind == "joint" else ids:
        whole = source.read(bag_id).features.astype(np.float32)
        for seed in range(4):
            rng = np.random.default_rng(seed)
            rows = np.sort(rng.choice(len(whole), rng.integers(1, len(whole) + 1), replace=False))
            np.testing.assert_array_equal(read_patches(source, bag_id, rows), whole[rows])


def test_only_the_rows_are_read(store: BagStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, ranges = storage.read_into, []

    def counted(location: str, offset: int, buffer: Any) -> None:
        ranges.append(buffer.nbytes)
        read(location, offset, buffer)

    monkeypatch.setattr(storage, "read_into", counted)
    read_patches(store, "slide-4", np.array([3, 4, 17, 40]))
    assert sum(ranges) == 4 * store.width * 2


def initialised(location: Path, pooling: str, source: Any) -> dict[str, torch.Tensor]:
    task = replace(fold_task(location, pooling=pooling), source=source)
    training = FoldTraining(task, SingleProcess())
    with training.checkpoints:
        training.begin()
    return training.model.state_dict()


@pytest.mark.parametrize("pooling", ["attention", "components"])
def test_a_store_of_no_more_bags_than_are_sampled_is_read_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    ids = fold_task(tmp_path).bags["bag_id"]
    store = write_store(str(tmp_path / "store"), [GeneratedBags().read(i) for i in ids])
    by_rows = initialised(tmp_path / "a", pooling, store)
    by_bags = initialised(tmp_path / "b", pooling, GeneratedBags())  # has no rows to read
    assert all(torch.equal(by_rows[name], by_bags[name]) for name in by_rows)
    monkeypatch.setattr(sampled_bags, "MAX_SAMPLED_BAGS", 3)
    assert [len(sampled_bags.sampled_bags(list(ids), range(10), seed)) for seed in range(3)] == [3, 3, 3]
    fewer = initialised(tmp_path / "c", pooling, store)
    assert not all(torch.equal(by_rows[name], fewer[name]) for name in by_rows)


def test_memory_reads_no_more_bags_than_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled_bags, "MAX_SAMPLED_BAGS", 2)
    read = set()

    class Recording(GeneratedBags):
        def read(self, slide_id: str) -> Any:
            read.add(slide_id)
            return super().read(slide_id)

    initialised(tmp_path / "fold", "attention", Recording())
    assert len(read) == 4  # of each class two
