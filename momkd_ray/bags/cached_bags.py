"""Bags of a store that are read from it once, and from then on from the disk of the node."""

from __future__ import annotations

from typing import Any

from momkd_ray.bags.bag_rows import Row, buffers_of, from_row
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.store import BagStore
from momkd_ray.formats.bag import Bag


class CachedBags:
    """Bags from the node's cache, or else from the store, from which the cache is filled.

    A bag is verified when it is cached, and not again.

    Args:
        store: all bags.
        cache: of the node on which the bags are read.
    """

    def __init__(self, store: BagStore, cache: DiskCache) -> None:
        self.store, self.cache = store, cache

    def read(self, bag_id: str) -> Bag:
        """Returns the bag of a slide; raises as `BagStore.read` does."""
        return from_row(self.read_row(bag_id))

    def read_row(self, slide_id: str) -> Row:
        """Returns the row of a bag; raises as `BagStore.read_row` does."""
        entry = self.store.entry(slide_id)
        buffers, _ = self.cache.get_or_fill(entry["sha256"], self._sizes(slide_id), lambda: self._verified(slide_id))
        return self.store.row_of(slide_id, buffers)

    def holds(self, slide_id: str) -> bool:
        """Tells whether a bag is cached on this node."""
        return self.cache.holds(self.store.entry(slide_id)["sha256"])

    def cached(self, slide_id: str) -> Bag | None:
        """Returns the bag of a slide if it is cached on this node."""
        buffers = self.cache.get(self.store.entry(slide_id)["sha256"], self._sizes(slide_id))
        return None if buffers is None else from_row(self.store.row_of(slide_id, buffers))

    def keep(self, row: Row) -> None:
        """Caches a verified bag that was read on another node."""
        self.cache.put(row["sha256"], buffers_of(row))

    def _sizes(self, slide_id: str) -> list[int]:
        return [size for _, size in self.store.entry(slide_id)["at"]]

    def _verified(self, slide_id: str) -> list[Any]:
        return buffers_of(self.store.read_row(slide_id, verify=True))
