"""Chooses where workers find the bags of a run: in Ray's object store, on the nodes' disks, or in the bag store."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray import storage
from momkd_ray.bags.bag_stream import RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache, default_folder, on_network
from momkd_ray.bags.shared_bags import BagSource, share_bags
from momkd_ray.bags.store import BagStore
from momkd_ray.config.sections import ClusterConfig, StoreConfig
from momkd_ray.ray_runtime.cluster import concurrent_folds
from momkd_ray.ray_runtime.nodes import Node, ask_nodes, nodes_of


def choose_layer(
    store: BagStore, slide_ids: Sequence[str], config: StoreConfig, cluster: ClusterConfig
) -> tuple[BagSource, str]:
    """Chooses by measured sizes where workers find the bags; none of them changes a result.

    (a) They fit `store.memory_share` of the object store of every node that trains: they are read into it once, for all
    folds and settings. (b) They fit the nodes' disks: each node caches a bag when it is first read. (c) Neither: bags
    are read from the store in every epoch.

    Args:
        store: the bag store.
        slide_ids: the slides of the run.
        config: the configuration's section `store`.
        cluster: the configuration's section `cluster`.

    Returns:
        The source of bags, and a sentence that says which was chosen and why.

    Raises:
        InputError: a part of the store is damaged.
    """
    needed = sum(map(store.nbytes, slide_ids))
    nodes = nodes_of(cluster)
    training = [node for node in nodes if node.trains]
    # a worker keeps every block that it has opened, so the bags must fit each node and not all nodes together; without
    # a node that trains yet, the autoscaler's machines are unknown
    memory = config.memory_share * min((node.object_store_bytes for node in training or nodes), default=0)
    of_them = f"{size_text(needed)} of bags"
    if needed <= memory:
        return share_bags(
            store, slide_ids
        ), f"{of_them} fit Ray's object store ({size_text(memory)} for bags on each machine that trains)"
    more = f"{of_them} are more than fit Ray's object store ({size_text(memory)} on each machine that trains)"
    cache, room = disk_cache(store, config), 0
    if cache is not None:
        room = _cache_room(cache, training)
        more += "" if needed <= room else f" and its disk ({size_text(room)} for {cache.folder})"
    source: BagStore | CachedBags = store
    where = f"they are read from {store.uri} in every epoch"
    if cache is not None and needed <= room:
        source = CachedBags(store, cache)
        where = f"each machine keeps them in {cache.folder} ({size_text(room)}) once they have been read"
    if config.reader == "direct" or (config.reader == "auto" and len(training) < 2):
        return source, f"{more}: {where}"
    spare = max(0.0, sum(node.cpus for node in nodes) - _cpus_of_workers(cluster))
    return RayDataBags(source, spare), f"{more}: {where}, through Ray Data"


def disk_cache(store: BagStore, config: StoreConfig) -> DiskCache | None:
    """Returns the cache that the configuration asks for; None if it asks for none, or the store is on a local disk."""
    path = storage.local_path(store.uri)
    if config.cache.gb == 0 or (config.cache.dir is None and path is not None and not on_network(path)):
        return None
    return DiskCache(config.cache.dir or default_folder(), config.cache.gb)


def _cpus_of_workers(cluster: ClusterConfig) -> float:
    """Returns the CPUs that the workers of all folds side by side take."""
    return concurrent_folds(cluster, own=False) * cluster.most_workers * cluster.cpus_per_worker


def _cache_room(cache: DiskCache, training: Sequence[Node]) -> int:
    """Returns the bytes that the cache may take on the node with the smallest disk."""
    if not training:
        return cache.room()
    return min(ask_nodes(training, cache.room).values(), default=0)


def size_text(size: float) -> str:
    """Returns a number of bytes in the unit that suits it."""
    for unit, bytes_each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
