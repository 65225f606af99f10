"""Several bags as one block-diagonal graph."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.batches.tiles import MAX_UNTILED_PATCHES, TILE_PATCHES, Tile, cut_tiles
from momkd_ray.formats.bag import Bag

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BagBatch:
    """B bags side by side: P patches in all, no edge between two bags.

    `graph` holds every bag's edges (from the query patch to its neighbour), bag after bag, with exactly one self-loop
    a patch, as GATv2 wants them.
    `omics_RG` has a row for each of the R <= B bags whose patient has omics; `omics_bag_R` says which bags.
    `seeds` (one a bag) is what dropout draws from, so a mask depends on its bag alone; `pieces_L4` is what the model
    makes of it, where that was made ahead.
    `tiles` are there where the batch is too large to be encoded whole.
    """

    bag_ids: tuple[str, ...]
    features_PD: Tensor
    graph: MessageGraph
    bag_of_patch_P: Tensor
    patches_B: Tensor  # float32
    patches_per_bag: tuple[int, ...]
    messages_per_bag: tuple[int, ...]
    labels_B: Tensor | None = None
    omics_RG: Tensor | None = None
    omics_bag_R: Tensor | None = None
    omics_per_bag: tuple[int, ...] = ()  # 1 where a bag has omics, else 0
    seeds: tuple[int, ...] | None = None
    pieces_L4: Tensor | None = None
    tiles: tuple[Tile, ...] = ()

    def __len__(self) -> int:
        return len(self.bag_ids)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> BagBatch:
        """The same batch on a device, its features of a type; nothing is copied that is already so."""
        moved = self.each(lambda x: x.to(device, non_blocking=True))
        return replace(moved, features_PD=moved.features_PD.to(dtype))

    def each(self, of: Callable[[Tensor], Tensor]) -> BagBatch:
        """The batch with something else in each tensor's place, those of the graph and the tiles too."""
        others: dict[str, Any] = {
            f.name: of(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, graph=self.graph.each(of), tiles=tuple(tile.each(of) for tile in self.tiles), **others)


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device, without waiting for what the device is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def collate(
    bags: Sequence[Bag],
    labels: Sequence[int] | None = None,
    omics: Sequence[np.ndarray | None] | None = None,
    seeds: Sequence[int] | None = None,
    device: torch.device = _CPU,
) -> BagBatch:
    """Put bags side by side.

    For the CPU the features become float32 here, off the training thread where this is called ahead of it; for a GPU
    they stay at the precision they are stored at, and all lies in pinned memory, so that fewer bytes cross and none
    waits.

    Args:
        bags: at least one.
        labels: the class of each bag.
        omics: each bag's (G,) float32 vector, or None where the patient has no omics.
        seeds: each bag's dropout seed.
        device: the one that `BagBatch.to` will be called with.
    """
    sizes = [bag.n_patches for bag in bags]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    graph = _graph_of(bags, offsets.tolist())
    present = [(b, row) for b, row in enumerate(omics or []) if row is not None]
    batch = BagBatch(
        bag_ids=tuple(bag.slide_id for bag in bags),
        features_PD=_side_by_side(bags, offsets.tolist(), device),
        graph=graph,
        bag_of_patch_P=torch.repeat_interleave(torch.arange(len(bags)), torch.tensor(sizes)),
        patches_B=torch.tensor(sizes, dtype=torch.float32),
        patches_per_bag=tuple(sizes),
        messages_per_bag=tuple(graph.received_P1[torch.from_numpy(offsets)].diff().tolist()),
        labels_B=None if labels is None else torch.tensor(list(labels), dtype=torch.int64),
        omics_RG=torch.from_numpy(np.stack([row for _, row in present]).astype(np.float32)) if present else None,
        omics_bag_R=torch.tensor([b for b, _ in present]) if present else None,
        omics_per_bag=tuple(int(row is not None) for row in omics or [None] * len(bags)),
        seeds=None if seeds is None else tuple(seeds),
        tiles=tuple(cut_tiles(graph, tuple(sizes), TILE_PATCHES[device.type]))
        if offsets[-1] > MAX_UNTILED_PATCHES[device.type]
        else (),
    )
    return batch if device.type == "cpu" else batch.each(Tensor.pin_memory)


def _graph_of(bags: Sequence[Bag], offsets: Sequence[int]) -> MessageGraph:
    """One block-diagonal graph; duplicate edges stay and count twice."""
    edges = np.cumsum([0, *(len(bag.edge_indices) for bag in bags)])
    indptr_P1 = [bag.edge_indptr[:-1] + before for bag, before in zip(bags, edges[:-1], strict=True)]
    indices_M = [bag.edge_indices + start for bag, start in zip(bags, offsets[:-1], strict=True)]
    return MessageGraph.of(np.concatenate([*indptr_P1, edges[-1:]]), np.concatenate(indices_M))


def _side_by_side(bags: Sequence[Bag], offsets: Sequence[int], device: torch.device) -> Tensor:
    """The features (sum P, D): float32 for the CPU, as they are and pinned for a GPU."""
    shape = (offsets[-1], bags[0].width)
    if device.type == "cpu":
        # Arrow's pool hands out memory that is already mapped: several times faster to fill than fresh pages
        memory = np.frombuffer(pa.allocate_buffer(shape[0] * shape[1] * 4), np.float32)
        features_PD = torch.from_numpy(memory).view(shape)
    else:
        dtype = torch.float16 if all(bag.features.dtype == np.float16 for bag in bags) else torch.float32
        features_PD = torch.empty(shape, dtype=dtype, pin_memory=True)
    for bag, start, end in zip(bags, offsets[:-1], offsets[1:], strict=True):
        features_PD[start:end].copy_(_tensor_over(bag.features))
    return features_PD


def _tensor_over(array: np.ndarray) -> Tensor:
    """A tensor over the memory of an array, for reading only: of a read-only one torch would warn."""
    flat = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    dtype = torch.float16 if array.dtype == np.float16 else torch.float32
    return torch.frombuffer(flat, dtype=dtype).view(array.shape)
