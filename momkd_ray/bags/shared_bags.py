"""Sources of bags for the workers: the store itself, bags shared in Ray's object store, and bags joined by patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from momkd_ray.bags.bag_rows import from_row, row_at, rows_table
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import InputError, as_user_error
from momkd_ray.formats.bag import Bag

BLOCK_BYTES = 64 * 2**20  # below Ray Data's target, so that a block is not split


class BagSource(Protocol):
    """Anything that returns bags by name, to several threads at a time."""

    def read(self, bag_id: str) -> Bag:
        """Returns the bag of this name."""
        ...


@dataclass(frozen=True)
class JointBags:
    """Joins the slides of each patient to one bag.

    Attributes:
        slides: source of the slides' bags.
        members: the slides of each joint bag.
    """

    slides: BagSource
    members: Mapping[str, tuple[str, ...]]

    def read(self, bag_id: str) -> Bag:
        """Returns the joint bag."""
        return join_bags(bag_id, [self.slides.read(slide_id) for slide_id in self.members[bag_id]])


def join_bags(bag_id: str, bags: Sequence[Bag]) -> Bag:
    """Concatenates bags in their order, without edges between them; coordinates stay those of each slide.

    A joint bag has coordinates only if all bags have.
    """
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
    """Bags in Ray's object store, read from the bag store once for the workers of all folds.

    Args:
        store: read instead where the object store has lost a block.
        blocks: references to Arrow tables of rows.
        positions: (index of the block, index of the row) of each slide.
    """

    def __init__(self, store: BagStore, blocks: Sequence[Any], positions: Mapping[str, tuple[int, int]]) -> None:
        self._store, self._blocks, self._positions = store, list(blocks), dict(positions)
        # opening a block of many rows takes far longer than reading a bag of it
        self._opened_blocks: dict[int, pa.Table] = {}
        # to find a bag's views of its block takes longer than to train on a bag of few patches
        self._opened_bags: dict[str, Bag] = {}

    def read(self, bag_id: str) -> Bag:
        """Returns the bag of a slide, without a copy where its block is on this node."""
        if bag_id in self._opened_bags:
            return self._opened_bags[bag_id]
        import ray

        if bag_id not in self._positions:
            raise InputError(f"slide {bag_id} is not among the shared bags; run `momkd-ray ingest` again")
        block, row = self._positions[bag_id]
        try:
            if block not in self._opened_blocks:
                self._opened_blocks[block] = ray.get(self._blocks[block])
        except ray.exceptions.ObjectLostError:
            return self._store.read(bag_id)
        bag = self._opened_bags[bag_id] = from_row(row_at(self._opened_blocks[block], row))
        return bag

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened_blocks": {}, "_opened_bags": {}}


def share_bags(store: BagStore, slide_ids: Sequence[str]) -> SharedBags:
    """Reads bags into Ray's object store, once for the workers of all folds.

    What is one block is read by this process, sooner than a task of Ray Data would begin; several by a task each.

    Raises:
        InputError: a part of the store is damaged.
        RunError: the storage did not recover, or Ray could not finish.
    """
    import ray

    groups = list(_groups(store, sorted(slide_ids)))
    try:
        if len(groups) == 1:
            blocks, ids_by_block = [ray.put(_block_of(store, groups[0]))], groups
        else:
            items = [{"slide_ids": group} for group in groups]
            dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _read_block, fn_kwargs={"store": store}, batch_format="pyarrow", batch_size=None
            )
            blocks = dataset.materialize().to_arrow_refs()
            slide_ids_of = ray.remote(num_cpus=0)(_slide_ids)
            ids_by_block = ray.get([slide_ids_of.remote(block) for block in blocks])
    except ray.exceptions.RayError as error:
        raise as_user_error(f"the bag store {store.uri} could not be read", error) from error
    positions = {id_: (block, row) for block, ids in enumerate(ids_by_block) for row, id_ in enumerate(ids)}
    return SharedBags(store, blocks, positions)


def _groups(store: BagStore, slide_ids: Sequence[str]) -> Iterator[list[str]]:
    """Yields consecutive slides in groups of about `BLOCK_BYTES`."""
    group: list[str] = []
    group_bytes = 0
    for slide_id in slide_ids:
        if group and group_bytes + store.nbytes(slide_id) > BLOCK_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(slide_id)
        group_bytes += store.nbytes(slide_id)
    yield group


def _read_block(groups: pa.Table, store: BagStore) -> pa.Table:
    """One task of Ray Data: the verified rows of a group's slides as one Arrow block."""
    return _block_of(store, [slide_id for group in groups.column("slide_ids").to_pylist() for slide_id in group])


def _block_of(store: BagStore, slide_ids: Sequence[str]) -> pa.Table:
    return rows_table([store.read_row(slide_id) for slide_id in slide_ids])


def _slide_ids(block: pa.Table) -> list[str]:
    ids: list[str] = block.column("slide_id").to_pylist()
    return ids
