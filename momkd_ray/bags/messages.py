"""A graph of patches in the two orders in which a GATv2 layer walks it, built once a bag."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor


@dataclass(frozen=True)
class MessageGraph:
    """M messages between P patches, every patch's own to itself among them; all int32. Made by `of`, which checks.

    A message is known by its place in the order of the receiving patches; what each patch receives is sorted by the
    sending one. Several between two patches are several messages.

    Attributes:
        received_P1: (P + 1,) where the messages that patch j receives begin, and the next one's.
        source_M: which patch sent each.
        sent_P1: (P + 1,) where in the order of the sending patches those of patch i begin.
        message_M: in the order of the sending patches, each message's place in the order of the receiving ones.
        target_M: in the order of the sending patches, which patch receives it.
    """

    received_P1: Tensor
    source_M: Tensor
    sent_P1: Tensor
    message_M: Tensor
    target_M: Tensor

    @classmethod
    def of(cls, indptr_P1: NDArray[np.integer], indices_M: NDArray[np.integer]) -> MessageGraph:
        """From edges as CSR by query patch, which is the sending one; self-loops are replaced by one a patch.

        Raises:
            ValueError: the rows do not cover the edges, or an edge names no patch.
        """
        patches = len(indptr_P1) - 1
        degree_P = np.diff(indptr_P1)
        if indptr_P1[0] != 0 or indptr_P1[-1] != len(indices_M) or (degree_P < 0).any():
            raise ValueError(f"a graph's rows do not cover its {len(indices_M)} edges")
        if len(indices_M) and not 0 <= indices_M.min() <= indices_M.max() < patches:
            raise ValueError(f"a graph names patch {indices_M.max()} or {indices_M.min()} of 0 to {patches - 1}")
        rows_M = np.repeat(np.arange(patches, dtype=np.int32), degree_P)
        others_M = rows_M != indices_M
        rows_M = rows_M[others_M]
        sent_P1 = np.zeros(patches + 1, np.int32)
        np.cumsum(np.bincount(rows_M, minlength=patches) + 1, out=sent_P1[1:])
        target_M = np.empty(sent_P1[-1], np.int32)
        # a patch's message to itself comes after its others, so each row before has moved them by one
        target_M[np.arange(len(rows_M), dtype=np.int32) + rows_M] = indices_M[others_M]
        target_M[sent_P1[1:] - 1] = np.arange(patches)
        place_M = np.arange(len(target_M), dtype=np.int32)
        by_target = sparse.csr_array((place_M, target_M, sent_P1), shape=(patches, patches)).tocsc()
        message_M = np.empty_like(place_M)
        message_M[by_target.data] = place_M
        arrays = (by_target.indptr, by_target.indices, sent_P1, message_M, target_M)
        return cls(*(torch.from_numpy(array.astype(np.int32, copy=False)) for array in arrays))

    def to(self, device: torch.device) -> MessageGraph:
        """The same graph on a device."""
        return MessageGraph(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def receiving(self, begin: int, end: int) -> MessageGraph:
        """Only what patches `begin` to `end` receive; for a way forward, as nothing tells any more who sent what."""
        first, last = int(self.received_P1[begin]), int(self.received_P1[end])
        nothing = self.target_M[:0]
        return replace(
            self,
            received_P1=self.received_P1[begin : end + 1] - first,
            source_M=self.source_M[first:last],
            message_M=nothing,
            target_M=nothing,
        )

    @property
    def edge_index_2M(self) -> Tensor:
        """(2, M) int64 as PyTorch Geometric wants it, sending patches over receiving ones."""
        patches = torch.arange(len(self.received_P1) - 1, device=self.source_M.device)
        target_M = torch.repeat_interleave(patches, self.received_P1.diff(), output_size=len(self.source_M))
        return torch.stack([self.source_M.long(), target_M])
