"""Bags through Ray Data arrive in the order of the plan, within the limit, and whatever happens to Ray Data."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from support.bags import assert_same_bag, make_bag
from support.stores import write_store

from momkd_ray.bags import bag_stream
from momkd_ray.bags.bag_stream import BagStream, RayDataBags, is_remote, open_stream
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache, take_notes
from momkd_ray.bags.shared_bags import BagSource, JointBags
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import InputError
from momkd_ray.ray_runtime.cluster import Connection


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BagStore:
    return write_store(str(tmp_path_factory.mktemp("store")), [make_bag(1 + 5 * i, seed=i) for i in range(9)])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bag is late on a busy machine."""
    for name in ("PATIENCE_S", "STALL_S", "FIRST_STALL_S"):
        monkeypatch.setattr(bag_stream, name, 120.0)
    take_notes()


def opened(source: BagSource, ids: list[str], limit: int = 2**20) -> BagStream:
    stream = open_stream(source, iter([((0, i), bag_id) for i, bag_id in enumerate(ids)]), "test", limit=limit, tasks=2)
    assert stream is not None
    return stream


def taken(stream: BagStream, ids: list[str]) -> Iterator[Any]:
    for i, bag_id in enumerate(ids):
        yield stream.take((0, i), bag_id)


@pytest.mark.parametrize("limit", [1, 2**20])
@pytest.mark.parametrize("spare_cpus", [0.0, 1.0])
def test_every_bag_comes_in_its_order_over_several_executions(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch, spare_cpus: float, limit: int
) -> None:
    monkeypatch.setattr(bag_stream, "GROUP_BYTES", 1200)
    monkeypatch.setattr(bag_stream, "TASKS_AN_EXECUTION", 5)
    monkeypatch.setattr(bag_stream, "PRIMED_TASKS", 2)
    monkeypatch.setattr(bag_stream, "LOOK_AHEAD", 10)
    ids = store.slides.index.tolist() * 3
    stream = opened(RayDataBags(store, spare_cpus), ids, limit)
    for slide_id, bag in zip(ids, taken(stream, ids), strict=True):
        assert_same_bag(bag, store.read(slide_id))
    assert (stream.delivered, stream.read_directly) == (len(ids), 0)


def test_a_store_on_s3_is_known_through_whatever_reads_it(store: BagStore, tmp_path: Path) -> None:
    remote = copy(store)
    remote.uri = "s3://bucket/bags"
    for base in (store, remote):
        cached = CachedBags(base, DiskCache(str(tmp_path), None))
        for source in (base, cached, RayDataBags(base), RayDataBags(cached), JointBags(RayDataBags(cached), {})):
            assert is_remote(source) == (base is remote)


def test_joint_bags_are_those_of_the_store(store: BagStore, ray_cluster: Connection) -> None:
    members = {"P": ("slide-3", "slide-0"), "Q": ("slide-5",)}
    ids = ["P", "Q", "P"]
    stream = opened(JointBags(RayDataBags(store), members), ids)
    for bag_id, bag in zip(ids, taken(stream, ids), strict=True):
        assert_same_bag(bag, JointBags(store, members).read(bag_id))
    assert stream.delivered == 3


def test_a_node_fetches_each_bag_once_where_it_caches_them(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = CachedBags(store, DiskCache(str(tmp_path / "cache"), None))
    monkeypatch.setattr(bag_stream, "CACHED_LOOK_AHEAD", 4)
    ids = store.slides.index.tolist() * 2
    cached.read(ids[0])
    for _ in range(2):
        stream = opened(RayDataBags(cached), ids)
        for slide_id, bag in zip(ids, taken(stream, ids), strict=True):
            assert_same_bag(bag, store.read(slide_id))
        assert all(cached.holds(slide_id) for slide_id in ids)
    assert stream.delivered == 0  # the second time


def test_items_that_are_left_out_do_not_stop_the_others(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_stream, "PATIENCE_S", 5.0)
    monkeypatch.setattr(bag_stream, "OUT_OF_ORDER", 3)
    ids = store.slides.index.tolist() * 3
    stream = opened(RayDataBags(store), ids, limit=2 * max(map(store.nbytes, ids)))
    for i in (0, *range(5, 20), 26):
        assert_same_bag(stream.take((0, i), ids[i]), store.read(ids[i]))
    assert stream.delivered > 10


def test_a_damaged_bag_is_said_in_its_sentence(ray_cluster: Connection, tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), [make_bag(20, seed=i) for i in range(3)])
    entry = store.entries["slide-1"]
    part = tmp_path / "store" / entry["part"]
    content = bytearray(part.read_bytes())
    content[entry["at"][0][0]] ^= 1
    part.write_bytes(content)
    ids = ["slide-0", "slide-1", "slide-2"]
    with pytest.raises(InputError, match="damaged at slide slide-1; remove it and ingest again"):
        list(taken(opened(RayDataBags(store), ids), ids))


def test_without_ray_data_the_worker_reads_and_says_so(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: BagStream, plan: Any) -> Any:
        raise OSError("no more of that")

    monkeypatch.setattr(BagStream, "_start", fails)
    ids = store.slides.index.tolist()
    stream = opened(RayDataBags(store), ids)
    for slide_id, bag in zip(ids, taken(stream, ids), strict=True):
        assert_same_bag(bag, store.read(slide_id))
    (note,) = take_notes()
    assert "no more of that" in note


def test_a_bag_that_is_late_is_read_by_the_worker(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_stream, "FIRST_STALL_S", 0.0)
    monkeypatch.setattr(bag_stream, "STALL_S", 0.0)
    ids = store.slides.index.tolist() * 2
    stream = opened(RayDataBags(store), ids)
    for slide_id, bag in zip(ids, taken(stream, ids), strict=True):
        assert_same_bag(bag, store.read(slide_id))
    assert stream.read_directly
    stream.close()


def test_in_a_stall_bags_are_read_by_the_worker_until_ray_data_goes_on(
    store: BagStore, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, begin = threading.Event(), BagStream._consume
    goes_on.set()

    def slowly(self: BagStream, plan: Any, blocks: Iterator[Any]) -> Any:
        def held_up() -> Iterator[Any]:
            for block in blocks:
                goes_on.wait()
                yield block

        return begin(self, plan, held_up())

    monkeypatch.setattr(BagStream, "_consume", slowly)
    monkeypatch.setattr(bag_stream, "GROUP_BYTES", 1)
    ids = store.slides.index.tolist() * 4
    limit = max(map(store.nbytes, ids))
    stream = opened(RayDataBags(store), ids, limit)
    bags = taken(stream, ids)
    assert_same_bag(next(bags), store.read(ids[0]))
    goes_on.clear()
    monkeypatch.setattr(bag_stream, "STALL_S", 0.2)
    for slide_id in ids[1:10]:
        assert_same_bag(next(bags), store.read(slide_id))
    since = stream._starved_since
    for slide_id in ids[10:20]:
        assert_same_bag(next(bags), store.read(slide_id))
    assert stream.read_directly > 9
    assert stream._starved_since == since, "one stall, however many bags are read in it"
    monkeypatch.setattr(bag_stream, "STALL_S", bag_stream.PATIENCE_S)
    direct = stream.read_directly
    goes_on.set()
    while stream._starved_since is not None:
        time.sleep(0.01)
    for slide_id in ids[20:]:
        assert_same_bag(next(bags), store.read(slide_id))
    assert stream.read_directly - direct < len(ids[20:])
    stream.close()


def test_its_statistics_are_among_the_gauges_of_the_node(store: BagStore, ray_cluster: Connection) -> None:
    import ray

    ids = store.slides.index.tolist() * 20
    items = iter([((0, i), slide_id) for i, slide_id in enumerate(ids)])
    stream = open_stream(RayDataBags(store), items, "momkd-fold-7-rank-1", limit=1, tasks=2)
    assert stream is not None
    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, page = time.monotonic() + 100, ""
    for i, slide_id in enumerate(ids):
        stream.take((0, i), slide_id)
        with urllib.request.urlopen(url, timeout=20) as answer:
            page = answer.read().decode()
        if re.search(r'^ray_data_output_bytes\{.*dataset="momkd-fold-7-rank-1', page, re.MULTILINE):
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    stream.close()
    assert "ReadBags" in page


def test_only_a_source_of_ray_data_streams(store: BagStore) -> None:
    assert open_stream(store, iter([]), "test", limit=1, tasks=1) is None
