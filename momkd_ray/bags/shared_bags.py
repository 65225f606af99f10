"""Where workers get their bags: from the store by row group, or from what Ray Data has read of it once for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from momkd_ray.bags.store import BagStore, bags_table, from_row, row_at
from momkd_ray.errors import InputError, as_user_error
from momkd_ray.formats.bag import Bag

BLOCK_BYTES = 64 * 2**20  # below Ray Data's target, so that a block stays in one piece


class BagSource(Protocol):
    """Anything that hands out bags by name; it is used from several threads at a time."""

    def read(self, bag_id: str) -> Bag:
        """The bag of this name."""
        ...


@dataclass(frozen=True)
class JointBags:
    """Bags of several slides: all patches of a patient side by side, no edge between two slides."""

    slides: BagSource
    members: Mapping[str, tuple[str, ...]]  # bag -> its slides

    def read(self, bag_id: str) -> Bag:
        """The joint bag."""
        return join_bags(bag_id, [self.slides.read(slide_id) for slide_id in self.members[bag_id]])


def join_bags(bag_id: str, bags: Sequence[Bag]) -> Bag:
    """Several bags as one, in their order; coordinates stay those of each slide."""
    if len(bags) == 1:
        return replace(bags[0], slide_id=bag_id)
    first_patch = np.cumsum([0, *(bag.n_patches for bag in bags)])
    first_edge = np.cumsum([0, *(len(bag.edge_indices) for bag in bags)])
    coords = [bag.coords for bag in bags if bag.coords is not None]
    return Bag(
        slide_id=bag_id,
        features=np.concatenate([bag.features for bag in bags]),
        coords=np.concatenate(coords) if len(coords) == len(bags) else None,
        edge_indptr=np.concatenate(
            [np.zeros(1, np.int32), *(b.edge_indptr[1:] + np.int32(e) for b, e in zip(bags, first_edge, strict=False))]
        ),
        edge_indices=np.concatenate([b.edge_indices + np.int32(p) for b, p in zip(bags, first_patch, strict=False)]),
        provenance={"slides": ", ".join(bag.slide_id for bag in bags)},
    )


class SharedBags:
    """Bags that Ray Data has read into the object store once, where every worker of every fold finds them."""

    def __init__(self, store: BagStore, blocks: Sequence[Any], places: Mapping[str, tuple[int, int]]) -> None:
        self._store, self._blocks, self._places = store, list(blocks), dict(places)
        self._opened: dict[int, Any] = {}

    def read(self, bag_id: str) -> Bag:
        """The bag of a slide, without a copy where the block lies on this node; from the store if the block is lost."""
        import ray

        if bag_id not in self._places:
            raise InputError(f"slide {bag_id} is not among the shared bags; run ingest again")
        block, row = self._places[bag_id]
        try:
            if block not in self._opened:
                # opened once: a block of many rows takes far longer to open than a bag to read
                self._opened[block] = ray.get(self._blocks[block])
        except ray.exceptions.ObjectLostError:
            return self._store.read(bag_id)
        return from_row(row_at(self._opened[block], row))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": {}}


def stored_bytes(store: BagStore, slide_ids: Sequence[str]) -> int:
    """How many bytes the bags of these slides take in memory."""
    return sum(size for slide_id in slide_ids for _, size in store.entries[slide_id]["at"])


def share_bags(store: BagStore, slide_ids: Sequence[str], memory_share: float) -> BagSource:
    """Let Ray Data read the bags into the object store if they fit `memory_share` of every node's.

    Returns the shared bags, or the store itself, from whose row groups every worker then reads its own.
    """
    import ray

    # a worker keeps every block it has read, so the bags must fit each node, not all of them together
    nodes = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if stored_bytes(store, slide_ids) > memory_share * min(nodes):
        return store
    groups = [{"slides": list(group)} for group in _groups(store, sorted(slide_ids))]
    dataset = ray.data.from_items(groups, override_num_blocks=len(groups)).map_batches(
        _read_rows, fn_kwargs={"store": store}, batch_format="pyarrow", batch_size=None
    )
    try:
        blocks = dataset.materialize().to_arrow_refs()
        ids_of = ray.remote(num_cpus=0)(_slide_ids)
        found = ray.get([ids_of.remote(block) for block in blocks])
    except ray.exceptions.RayError as error:
        raise as_user_error(f"the bag store {store.uri} could not be read", error) from error
    places = {s: (b, row) for b, ids in enumerate(found) for row, s in enumerate(ids)}
    return SharedBags(store, blocks, places)


def _groups(store: BagStore, slide_ids: Sequence[str]) -> Iterator[list[str]]:
    """Slides, in order, in groups of about `BLOCK_BYTES`."""
    group: list[str] = []
    filled = 0
    for slide_id in slide_ids:
        size = stored_bytes(store, [slide_id])
        if group and filled + size > BLOCK_BYTES:
            yield group
            group, filled = [], 0
        group.append(slide_id)
        filled += size
    yield group


def _read_rows(groups: pa.Table, store: BagStore) -> pa.Table:
    """One task of Ray Data: the rows of its slides, in one piece."""
    slide_ids = [slide_id for group in groups.column("slides").to_pylist() for slide_id in group]
    return bags_table([store.read(slide_id) for slide_id in slide_ids])


def _slide_ids(block: Any) -> list[str]:
    ids: list[str] = block.column("slide_id").to_pylist()
    return ids
