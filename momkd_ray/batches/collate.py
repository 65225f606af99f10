"""Collates several bags into one batch with a block-diagonal patch graph."""

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
    """A batch of B bags, concatenated: P patches in all, and no edge between two bags.

    Attributes:
        bag_ids: B identifiers.
        features_PD: patch features of all bags, bag after bag.
        graph: every bag's edges (from the query patch to its neighbour) with exactly one self-loop per patch, as
            GATv2 needs them.
        bag_of_patch_P: index of the bag that each patch belongs to.
        patches_B: number of patches of each bag, float32.
        patches_per_bag, messages_per_bag: the same counts, and those of the graph's messages, as Python integers.
        labels_B: class of each bag.
        targets_B: of two classes, the probability of class 1 that each bag is trained towards; None for its label.
        targets_BY: of more classes, the probability of each.
        omics_RG: one row for each of the R <= B bags whose patient has omics.
        omics_bag_R: index of the bag of each row of `omics_RG`.
        omics_per_bag: 1 where a bag has omics, else 0.
        seeds: dropout seed of each bag; a dropout mask depends on its bag alone.
        pieces_L4: the dropout pieces of these seeds, where they were computed in advance.
        tiles: the tiles of a batch that is too large to be encoded at once; otherwise empty.
    """

    bag_ids: tuple[str, ...]
    features_PD: Tensor
    graph: MessageGraph
    bag_of_patch_P: Tensor
    patches_B: Tensor  # float32
    patches_per_bag: tuple[int, ...]
    messages_per_bag: tuple[int, ...]
    labels_B: Tensor | None = None
    targets_B: Tensor | None = None
    targets_BY: Tensor | None = None
    omics_RG: Tensor | None = None
    omics_bag_R: Tensor | None = None
    omics_per_bag: tuple[int, ...] = ()  # 1 where a bag has omics, else 0
    seeds: tuple[int, ...] | None = None
    pieces_L4: Tensor | None = None
    tiles: tuple[Tile, ...] = ()

    def __len__(self) -> int:
        return len(self.bag_ids)

    @property
    def class_targets_B(self) -> Tensor:
        """The probability of class 1 that each bag is trained towards: its target, or else its label as 0 or 1."""
        if self.targets_B is not None:
            return self.targets_B
        assert self.labels_B is not None
        return self.labels_B.to(torch.float32)

    def class_targets_BY(self, classes: int) -> Tensor:
        """Returns the probabilities (B, Y) that each bag is trained towards: its targets, or 1 for its label."""
        if self.targets_BY is not None:
            return self.targets_BY
        assert self.labels_B is not None
        return torch.nn.functional.one_hot(self.labels_B, classes).to(torch.float32)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> BagBatch:
        """Moves the batch to `device` and casts its features to `dtype`; copies nothing that is already there."""
        if self.features_PD.device == device and self.features_PD.dtype == dtype:
            return self  # all tensors of a batch are on one device
        moved = self.map_tensors(lambda x: x.to(device, non_blocking=True))
        return replace(moved, features_PD=moved.features_PD.to(dtype))

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> BagBatch:
        """Applies `fn` to every tensor of the batch, those of its graph and its tiles included."""
        tensors: dict[str, Any] = {
            f.name: fn(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        tiles = tuple(tile.map_tensors(fn) for tile in self.tiles)
        return replace(self, graph=self.graph.map_tensors(fn), tiles=tiles, **tensors)


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """Copies a small CPU tensor to a device without waiting for the work that is queued there."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def collate(
    bags: Sequence[Bag],
    labels: Sequence[int] | None = None,
    omics: Sequence[np.ndarray | None] | None = None,
    seeds: Sequence[int] | None = None,
    device: torch.device = _CPU,
    targets: Sequence[float | Sequence[float]] | None = None,
    *,
    graph: bool = True,
) -> BagBatch:
    """Concatenates bags into a batch.

    For the CPU the features are converted to float32 here, in the prefetch thread rather than the training thread.
    Those of a single bag that owns them as float32 are not copied: the batch shares its memory.
    For a GPU they keep the precision of the store, in pinned memory, so that fewer bytes are copied, asynchronously.

    Args:
        bags: at least one.
        labels: the class of each bag.
        omics: the (G,) float32 vector of each bag, or None where the patient has no omics.
        seeds: the dropout seed of each bag.
        device: the device that the batch will be moved to.
        targets: what each bag is trained towards, if it is not its label: the probability of class 1 or, of more than
            two classes, those of all.
        graph: whether the model reads the patch graph. Without, each patch has its self-loop only, and no batch is cut
            into tiles, as the graph's are that are too large to be encoded at once.
    """
    sizes = [bag.n_patches for bag in bags]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    messages = _graph_of(bags, offsets.tolist()) if graph else MessageGraph.self_loops(int(offsets[-1]))
    present = [(b, row) for b, row in enumerate(omics or []) if row is not None]
    target = None if targets is None else torch.tensor(list(targets), dtype=torch.float32)
    batch = BagBatch(
        bag_ids=tuple(bag.slide_id for bag in bags),
        features_PD=_concatenate_features(bags, offsets.tolist(), device),
        graph=messages,
        bag_of_patch_P=torch.repeat_interleave(torch.arange(len(bags)), torch.tensor(sizes)),
        patches_B=torch.tensor(sizes, dtype=torch.float32),
        patches_per_bag=tuple(sizes),
        messages_per_bag=tuple(messages.received_P1[torch.from_numpy(offsets)].diff().tolist()),
        labels_B=None if labels is None else torch.tensor(list(labels), dtype=torch.int64),
        targets_B=target if target is not None and target.ndim == 1 else None,
        targets_BY=target if target is not None and target.ndim == 2 else None,
        omics_RG=torch.from_numpy(np.stack([row for _, row in present]).astype(np.float32)) if present else None,
        omics_bag_R=torch.tensor([b for b, _ in present]) if present else None,
        omics_per_bag=tuple(int(row is not None) for row in omics or [None] * len(bags)),
        seeds=None if seeds is None else tuple(seeds),
        tiles=tuple(cut_tiles(messages, tuple(sizes), TILE_PATCHES[device.type]))
        if graph and offsets[-1] > MAX_UNTILED_PATCHES[device.type]
        else (),
    )
    return batch if device.type == "cpu" else batch.map_tensors(Tensor.pin_memory)


def _graph_of(bags: Sequence[Bag], offsets: Sequence[int]) -> MessageGraph:
    """Builds the block-diagonal graph of several bags; duplicate edges are kept and count twice."""
    edges = np.cumsum([0, *(len(bag.edge_indices) for bag in bags)])
    indptr_P1 = [bag.edge_indptr[:-1] + before for bag, before in zip(bags, edges[:-1], strict=True)]
    indices_M = [bag.edge_indices + start for bag, start in zip(bags, offsets[:-1], strict=True)]
    return MessageGraph.from_csr(np.concatenate([*indptr_P1, edges[-1:]]), np.concatenate(indices_M))


def _concatenate_features(bags: Sequence[Bag], offsets: Sequence[int], device: torch.device) -> Tensor:
    """Concatenates features to (sum P, D): float32 for the CPU, the stored precision in pinned memory for a GPU."""
    shape = (offsets[-1], bags[0].width)
    if device.type == "cpu":
        first = bags[0].features
        # the store's bags are read-only memory maps, whose pages are read here rather than while training
        if len(bags) == 1 and first.dtype == np.float32 and first.flags.writeable and first.flags.c_contiguous:
            return torch.from_numpy(first)
        # Arrow's memory pool reuses mapped pages, which are several times faster to fill than new ones
        memory = np.frombuffer(pa.allocate_buffer(shape[0] * shape[1] * 4), np.float32)
        features_PD = torch.from_numpy(memory).view(shape)
    else:
        dtype = torch.float16 if all(bag.features.dtype == np.float16 for bag in bags) else torch.float32
        features_PD = torch.empty(shape, dtype=dtype, pin_memory=True)
    for bag, start, end in zip(bags, offsets[:-1], offsets[1:], strict=True):
        features_PD[start:end].copy_(_as_tensor(bag.features))
    return features_PD


def _as_tensor(array: np.ndarray) -> Tensor:
    """Wraps an array's memory in a tensor, for reading only; `torch.from_numpy` warns about read-only arrays."""
    flat = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    dtype = torch.float16 if array.dtype == np.float16 else torch.float32
    return torch.frombuffer(flat, dtype=dtype).view(array.shape)
