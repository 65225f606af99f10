"""Several bags as one block-diagonal graph."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from momkd_ray.bags.readers import Bag

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BagBatch:
    """B bags side by side: P patches in all, no edge between two bags.

    `edge_index_2M` holds every bag's kNN edges (row 0 the query patch, row 1 its neighbour; messages flow from
    row 0 to row 1) without self-loops, followed by exactly one self-loop a patch, as GATv2 wants them.
    `omics_RG` has a row for each of the R <= B bags whose patient has omics; `omics_bag_R` says which bags.
    `seeds` (one a bag) is what dropout draws from, so a mask depends on its bag alone.
    """

    bag_ids: tuple[str, ...]
    features_PD: Tensor
    edge_index_2M: Tensor
    bag_of_patch_P: Tensor
    patches_per_bag: tuple[int, ...]
    edges_per_bag: tuple[int, ...]  # self-loops not counted
    labels_B: Tensor | None = None
    omics_RG: Tensor | None = None
    omics_bag_R: Tensor | None = None
    seeds: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.bag_ids)

    def to(self, device: torch.device) -> BagBatch:
        """The same batch on a device, its features in float32; nothing is copied that is already so."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        moved["features_PD"] = moved["features_PD"].float()
        return replace(self, **moved)

    def rows_with_omics(self) -> tuple[int, ...]:
        """For each bag 1 if its patient has omics here, else 0."""
        with_omics = set() if self.omics_bag_R is None else set(self.omics_bag_R.tolist())
        return tuple(int(b in with_omics) for b in range(len(self)))


def edge_index_of(bag: Bag) -> np.ndarray:
    """A bag's CSR graph as (2, M) int64 without explicit self-loops; duplicate edges stay and count twice."""
    rows = np.repeat(np.arange(bag.n_patches, dtype=np.int64), np.diff(bag.edge_indptr))
    edge_index_2M = np.stack([rows, bag.edge_indices.astype(np.int64)])
    return np.asarray(edge_index_2M[:, edge_index_2M[0] != edge_index_2M[1]])


def collate(
    bags: Sequence[Bag],
    labels: Sequence[int] | None = None,
    omics: Sequence[np.ndarray | None] | None = None,
    seeds: Sequence[int] | None = None,
    device: torch.device = _CPU,
) -> BagBatch:
    """Put bags side by side.

    For the CPU the features become float32 here, off the training thread where this is called ahead of it; for a GPU
    they stay at the precision they are stored at, in pinned memory, so that fewer bytes cross and none waits.

    Args:
        bags: at least one.
        labels: the class of each bag.
        omics: each bag's (G,) float32 vector, or None where the patient has no omics.
        seeds: each bag's dropout seed.
        device: the one that `BagBatch.to` will be called with.
    """
    sizes = [bag.n_patches for bag in bags]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    edges = [edge_index_of(bag) for bag in bags]
    loops = np.arange(offsets[-1], dtype=np.int64)
    shifted = [e + start for e, start in zip(edges, offsets[:-1], strict=True)]
    present = [(b, row) for b, row in enumerate(omics or []) if row is not None]
    return BagBatch(
        bag_ids=tuple(bag.slide_id for bag in bags),
        features_PD=_side_by_side(bags, offsets.tolist(), device),
        edge_index_2M=torch.from_numpy(np.concatenate([*shifted, np.stack([loops, loops])], axis=1)),
        bag_of_patch_P=torch.repeat_interleave(torch.arange(len(bags)), torch.tensor(sizes)),
        patches_per_bag=tuple(sizes),
        edges_per_bag=tuple(e.shape[1] for e in edges),
        labels_B=None if labels is None else torch.tensor(list(labels), dtype=torch.int64),
        omics_RG=torch.from_numpy(np.stack([row for _, row in present]).astype(np.float32)) if present else None,
        omics_bag_R=torch.tensor([b for b, _ in present]) if present else None,
        seeds=None if seeds is None else tuple(seeds),
    )


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
