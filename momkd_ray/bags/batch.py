"""Several bags as one block-diagonal graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from momkd_ray.bags.readers import Bag


@dataclass(frozen=True)
class BagBatch:
    """B bags side by side: P patches in all, no edge between two bags.

    `edge_index_2M` holds every bag's kNN edges (row 0 the query patch, row 1 its neighbour; messages flow from
    row 0 to row 1) without self-loops, followed by exactly one self-loop a patch, as GATv2 wants them.
    `omics_RG` has a row for each of the R <= B bags whose patient has omics; `omics_bag_R` says which bags.
    `seeds` (one a bag) is what dropout draws from, so a mask depends on its bag alone.
    """

    slide_ids: tuple[str, ...]
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
        return len(self.slide_ids)

    def to(self, device: torch.device) -> BagBatch:
        """The same batch on another device, its features in float32."""
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
) -> BagBatch:
    """Put bags side by side.

    Args:
        bags: at least one.
        labels: the class of each bag.
        omics: each bag's (G,) float32 vector, or None where the patient has no omics.
        seeds: each bag's dropout seed.
    """
    sizes = [bag.n_patches for bag in bags]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    edges = [edge_index_of(bag) for bag in bags]
    loops = np.arange(offsets[-1], dtype=np.int64)
    shifted = [e + start for e, start in zip(edges, offsets[:-1], strict=True)]
    present = [(b, row) for b, row in enumerate(omics or []) if row is not None]
    features = np.concatenate([bag.features for bag in bags]) if len(bags) > 1 else np.array(bags[0].features)
    return BagBatch(
        slide_ids=tuple(bag.slide_id for bag in bags),
        features_PD=torch.from_numpy(features),
        edge_index_2M=torch.from_numpy(np.concatenate([*shifted, np.stack([loops, loops])], axis=1)),
        bag_of_patch_P=torch.repeat_interleave(torch.arange(len(bags)), torch.tensor(sizes)),
        patches_per_bag=tuple(sizes),
        edges_per_bag=tuple(e.shape[1] for e in edges),
        labels_B=None if labels is None else torch.tensor(list(labels), dtype=torch.int64),
        omics_RG=torch.from_numpy(np.stack([row for _, row in present]).astype(np.float32)) if present else None,
        omics_bag_R=torch.tensor([b for b, _ in present]) if present else None,
        seeds=None if seeds is None else tuple(seeds),
    )
