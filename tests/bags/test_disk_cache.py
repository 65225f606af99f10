"""A node's cache of bags gives the store's bags, whatever happens to its folder, and reads each once."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.bags import assert_same_bag, make_bag
from support.processes import in_processes
from support.stores import write_store

from momkd_ray import storage
from momkd_ray.bags import layers
from momkd_ray.bags.bag_stream import RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache, on_network, take_notes
from momkd_ray.bags.layers import choose_layer
from momkd_ray.bags.store import BagStore
from momkd_ray.config.sections import ClusterConfig, StoreConfig
from momkd_ray.errors import InputError
from momkd_ray.ray_runtime.nodes import Node

NUMBER = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BagStore:
    bags = [make_bag(1 + 7 * i, seed=i) for i in range(NUMBER)]
    return write_store(str(tmp_path_factory.mktemp("store")), bags)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slides that were read from the store."""
    read, slides = BagStore.read_row, []

    def counted(self: BagStore, slide_id: str, **options: Any) -> Any:
        slides.append(slide_id)
        return read(self, slide_id, **options)

    monkeypatch.setattr(BagStore, "read_row", counted)
    return slides


@pytest.fixture(autouse=True)
def no_notes() -> None:
    take_notes()


def cached_bags(store: BagStore, folder: Path, gb: float | None = None) -> CachedBags:
    return CachedBags(store, DiskCache(str(folder / "cache"), gb))


def ids_of(store: BagStore) -> list[str]:
    return store.slides.index.tolist()


def test_bags_are_those_of_the_store_and_are_read_once(store: BagStore, reads: list[str], tmp_path: Path) -> None:
    bags = cached_bags(store, tmp_path)
    for source in (bags, bags, pickle.loads(pickle.dumps(bags))):
        for slide_id in ids_of(store):
            assert_same_bag(source.read(slide_id), BagStore.read(store, slide_id))
        del reads[NUMBER * 2 :]  # the comparison's own
    assert [bags.holds(slide_id) for slide_id in ids_of(store)] == [True] * NUMBER
    names = os.listdir(tmp_path / "cache")
    assert sorted(names) == sorted(f"{store.entries[i]['sha256']}.bag" for i in ids_of(store))
    reads.clear()
    for slide_id in ids_of(store):
        bags.read(slide_id)
    assert not reads and not take_notes()


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def truncated(folder: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)


def half_written(folder: Path) -> None:
    for path in folder.iterdir():
        (folder / f"{path.name}.partial").write_bytes(b"\1" * 10)
        path.unlink()


def of_another(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


def not_readable(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("change", [deleted, emptied, truncated, half_written, of_another, not_readable])
def test_anything_may_happen_to_the_folder(store: BagStore, tmp_path: Path, change: Callable[[Path], None]) -> None:
    bags = cached_bags(store, tmp_path)
    order = ids_of(store) * 4
    random.Random(0).shuffle(order)
    for position, slide_id in enumerate(order):
        if position == 2 * NUMBER:
            change(tmp_path / "cache")
        assert_same_bag(bags.read(slide_id), store.read(slide_id))
    assert len(take_notes()) == (change in (of_another, not_readable))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_turns_the_cache_off_with_one_line(
    store: BagStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bags = cached_bags(store, tmp_path)
    bags.read(ids_of(store)[0])

    def fails(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fails)
    for slide_id in ids_of(store) * 2:
        assert_same_bag(bags.read(slide_id), store.read(slide_id))
    (note,) = take_notes()
    assert os.strerror(number) in note and str(tmp_path / "cache") in note
    assert [name for name in os.listdir(tmp_path / "cache") if name.endswith(".partial")] == []


def test_the_bag_used_least_recently_goes_first_and_the_limit_holds(store: BagStore, tmp_path: Path) -> None:
    ids = ids_of(store)
    size = {slide_id: store.nbytes(slide_id) + 5 * 64 for slide_id in ids}
    limit = sum(size[i] for i in ids) // 2
    bags = cached_bags(store, tmp_path, limit / 1e9)
    draws = random.Random(1).choices(ids, k=60)
    for slide_id in draws:
        assert_same_bag(bags.read(slide_id), store.read(slide_id))
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit
        assert bags.holds(slide_id)
        time.sleep(0.002)  # so that times of use differ
    last_use = {slide_id: position for position, slide_id in enumerate(draws)}
    kept = [slide_id for slide_id in last_use if bags.holds(slide_id)]
    assert 1 < len(kept) < len(last_use)
    assert min(last_use[i] for i in kept) > max(last_use[i] for i in last_use if i not in kept)


def test_a_cache_smaller_than_a_bag_holds_nothing(store: BagStore, tmp_path: Path) -> None:
    bags = cached_bags(store, tmp_path, 1e-9)
    for slide_id in ids_of(store):
        assert_same_bag(bags.read(slide_id), store.read(slide_id))
    assert os.listdir(tmp_path / "cache") == [] and not take_notes()


def read_all(rank: int, uri: str, folder: str) -> None:
    """Reads every bag in another order with three threads, and records what came from the store."""
    store = BagStore.open(uri)
    read, slides = store.read_row, []

    def slow(slide_id: str, **options: Any) -> Any:
        slides.append(slide_id)
        time.sleep(0.01)
        return read(slide_id, **options)

    store.read_row = slow  # type: ignore[method-assign]
    bags = CachedBags(store, DiskCache(f"{folder}/cache", None))
    order = 2 * ids_of(store)
    random.Random(rank // 2).shuffle(order)
    with ThreadPoolExecutor(3) as pool:
        sums = list(pool.map(lambda slide_id: float(bags.read(slide_id).features.astype("f8").sum()), order))
    expected = [float(BagStore.open(uri).read(slide_id).features.astype("f8").sum()) for slide_id in order]
    assert sums == expected
    Path(folder, f"read-{rank}.json").write_text(json.dumps(slides))


def test_processes_of_a_node_read_each_bag_once_together(store: BagStore, tmp_path: Path) -> None:
    in_processes(read_all, 4, store.uri, str(tmp_path))
    slides = [slide for rank in range(4) for slide in json.loads((tmp_path / f"read-{rank}.json").read_text())]
    assert sorted(slides) == ids_of(store)


def test_a_damaged_bag_is_never_cached(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), [make_bag(20, seed=i) for i in range(3)])
    entry = store.entries["slide-1"]
    part = tmp_path / "store" / entry["part"]
    content = bytearray(part.read_bytes())
    content[entry["at"][0][0]] ^= 1
    part.write_bytes(content)
    bags = cached_bags(store, tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="slide-1"):
            bags.read("slide-1")
    assert not bags.holds("slide-1")
    assert_same_bag(bags.read("slide-2"), store.read("slide-2"))


GB = 10**9


@pytest.mark.parametrize(
    ("nodes", "room", "layer", "said"),
    [
        ([(4 * GB, True)], 0, "shared", "fit Ray's object store"),
        # a head that does not train has no say
        ([(1, False), (4 * GB, True)], 0, "shared", "fit Ray's object store"),
        ([(4 * GB, True), (1000, True)], GB, "CachedBags", "each machine keeps them"),
        ([(1000, True)], 10, "BagStore", "are read from .* in every epoch"),
    ],
)
def test_the_layer_follows_from_the_sizes_of_the_nodes_that_train(
    store: BagStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Any, room: int, layer: str, said: str
) -> None:
    found = [Node(str(i), f"host-{i}", size, 1.0, trains) for i, (size, trains) in enumerate(nodes)]
    monkeypatch.setattr(layers, "nodes_of", lambda cluster: found)

    def ask(asked: Sequence[Node], question: Any) -> dict[str, int]:
        assert all(node.trains for node in asked)
        return {node.id: room for node in asked}

    monkeypatch.setattr(layers, "ask_nodes", ask)
    monkeypatch.setattr(layers, "share_bags", lambda *arguments: "shared")
    config = StoreConfig.model_validate({"reader": "direct", "cache": {"dir": str(tmp_path / "cache")}})
    source, sentence = choose_layer(store, ids_of(store), config, ClusterConfig())
    assert (source if isinstance(source, str) else type(source).__name__) == layer
    assert re.search(said, sentence), sentence


@pytest.mark.parametrize(
    ("reader", "training", "through_ray", "spare"),
    [("auto", 1, False, 0), ("auto", 2, True, 3), ("ray_data", 1, True, 4), ("direct", 2, False, 0)],
)
def test_ray_data_reads_on_several_machines_with_the_cpus_that_no_worker_takes(
    store: BagStore, monkeypatch: pytest.MonkeyPatch, reader: str, training: int, through_ray: bool, spare: float
) -> None:
    found = [Node("cpu", "cpu", 1000, 4.0, False)]
    found += [Node(str(i), f"gpu-{i}", 1000, 1.0, True) for i in range(training)]
    monkeypatch.setattr(layers, "nodes_of", lambda cluster: found)
    monkeypatch.setattr(layers, "concurrent_folds", lambda cluster, own: 1 if training == 1 else 3)
    config = StoreConfig.model_validate({"reader": reader})
    source, sentence = choose_layer(store, ids_of(store), config, ClusterConfig())
    assert isinstance(source, RayDataBags) == through_ray == ("Ray Data" in sentence)
    if isinstance(source, RayDataBags):
        assert source == RayDataBags(store, spare)


def test_a_store_on_a_local_disk_is_cached_only_where_a_folder_is_named(store: BagStore) -> None:
    assert layers.disk_cache(store, StoreConfig()) is None
    named = layers.disk_cache(store, StoreConfig.model_validate({"cache": {"dir": "cache"}}))
    assert named is not None and named.folder == os.path.abspath("cache")
    on_s3 = BagStore.parse("s3://bucket/bags", storage.read_bytes(storage.join(store.uri, "manifest.json")))
    default = layers.disk_cache(on_s3, StoreConfig())
    assert default is not None and default.gb is None
    assert layers.disk_cache(on_s3, StoreConfig.model_validate({"cache": {"gb": 0}})) is None
    assert not on_network("/proc")
