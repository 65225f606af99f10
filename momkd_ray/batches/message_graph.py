"""A graph of patches in the two orders in which a GATv2 layer walks it, built once a bag."""

from __future__ import annotations

from collections.abc import Callable
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
    sending one. Several between two patches are several messages. In a part of a graph fewer patches receive than send.

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
        received_P1, source_M, place_M = _other_way(sent_P1, target_M, patches)
        message_M = np.empty_like(place_M)
        message_M[place_M] = np.arange(len(place_M), dtype=np.int32)
        return cls._over(received_P1, source_M, sent_P1, message_M, target_M)

    @classmethod
    def _over(cls, *arrays: NDArray[np.integer]) -> MessageGraph:
        return cls(*(torch.from_numpy(array.astype(np.int32, copy=False)) for array in arrays))

    def to(self, device: torch.device) -> MessageGraph:
        """The same graph on a device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def each(self, of: Callable[[Tensor], Tensor]) -> MessageGraph:
        """The graph with something else in each tensor's place."""
        return MessageGraph(*(of(getattr(self, f.name)) for f in fields(self)))

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

    def reaching(self, targets_R: NDArray[np.int64]) -> tuple[MessageGraph, NDArray[np.int64], NDArray[np.int64]]:
        """What some patches (ascending) receive, of a graph on the CPU.

        Returns:
            The graph of it, its receiving patches counted as `targets_R` counts them and its sending ones as the
            second result does; the patches (S,) that send, ascending; and its messages (N,) by their place in this.
        """
        received_P1, source_M = self.received_P1.numpy(), self.source_M.numpy()
        degree_R = received_P1[targets_R + 1] - received_P1[targets_R]
        part_R1 = np.concatenate([[0], np.cumsum(degree_R, dtype=np.int64)])
        messages_N = np.arange(part_R1[-1]) + np.repeat(received_P1[targets_R] - part_R1[:-1], degree_R)
        sources_N = source_M[messages_N]
        place_P = np.zeros(len(self.sent_P1) - 1, np.int32)
        place_P[sources_N] = 1
        senders_S = np.flatnonzero(place_P)
        place_P[senders_S] = np.arange(len(senders_S))
        sender_N = place_P[sources_N]
        sent_S1, target_N, message_N = _other_way(part_R1, sender_N, len(senders_S))
        return self._over(part_R1, sender_N, sent_S1, message_N, target_N), senders_S, messages_N

    @property
    def edge_index_2M(self) -> Tensor:
        """(2, M) int64 as PyTorch Geometric wants it, sending patches over receiving ones."""
        patches = torch.arange(len(self.received_P1) - 1, device=self.source_M.device)
        target_M = torch.repeat_interleave(patches, self.received_P1.diff(), output_size=len(self.source_M))
        return torch.stack([self.source_M.long(), target_M])


def _other_way(
    rows_P1: NDArray[np.integer], columns_M: NDArray[np.integer], columns: int
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """Entries by row (CSR) in the order of their columns: where each column begins, their rows, their places before."""
    places_M = np.arange(len(columns_M), dtype=np.int32)
    turned = sparse.csr_array((places_M, columns_M, rows_P1), shape=(len(rows_P1) - 1, columns)).tocsc()
    return turned.indptr, turned.indices, turned.data
