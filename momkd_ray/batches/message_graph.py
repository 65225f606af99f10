"""A patch graph, sorted both by receiving and by sending patch, built once per bag for the GATv2 layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class MessageGraph:
    """M messages (directed edges) between P patches, one self-loop per patch included; all tensors are int32.

    Messages are numbered in receiving order: by receiving patch, then by sending patch. Duplicate edges are separate
    messages. In a subgraph fewer patches may receive than send. Built and validated by `from_csr`.

    Attributes:
        received_P1: (P + 1,) CSR row pointer in receiving order: where the messages received by patch j begin.
        source_M: the sending patch of each message, in receiving order.
        sent_P1: (P + 1,) CSR row pointer in sending order: where the messages sent by patch i begin.
        message_M: in sending order, the number of each message in receiving order.
        target_M: in sending order, the receiving patch of each message.
    """

    received_P1: Tensor
    source_M: Tensor
    sent_P1: Tensor
    message_M: Tensor
    target_M: Tensor

    @classmethod
    def from_csr(cls, indptr_P1: NDArray[np.integer], indices_M: NDArray[np.integer]) -> MessageGraph:
        """Builds the graph from CSR edges by query patch, which sends; adds exactly one self-loop per patch.

        Raises:
            ValueError: the row pointer does not cover the edges, or an edge names a patch that does not exist.
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
        # each row's self-loop comes last, so every earlier row shifts the messages by one
        target_M[np.arange(len(rows_M), dtype=np.int32) + rows_M] = indices_M[others_M]
        target_M[sent_P1[1:] - 1] = np.arange(patches)
        received_P1, source_M, sent_position_M = _transpose_csr(sent_P1, target_M, patches)
        message_M = np.empty_like(sent_position_M)
        message_M[sent_position_M] = np.arange(len(sent_position_M), dtype=np.int32)
        return cls._from_arrays(received_P1, source_M, sent_P1, message_M, target_M)

    @classmethod
    def self_loops(cls, patches: int) -> MessageGraph:
        """Returns the graph of patches without edges: each patch has its self-loop only."""
        row_P1 = np.arange(patches + 1, dtype=np.int32)
        return cls._from_arrays(row_P1, row_P1[:-1], row_P1, row_P1[:-1], row_P1[:-1])

    @classmethod
    def _from_arrays(cls, *arrays: NDArray[np.integer]) -> MessageGraph:
        return cls(*(torch.from_numpy(array.astype(np.int32, copy=False)) for array in arrays))

    def to(self, device: torch.device) -> MessageGraph:
        """Moves the graph to a device."""
        return self.map_tensors(lambda x: x.to(device, non_blocking=True))

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> MessageGraph:
        """Applies `fn` to every tensor of the graph."""
        return MessageGraph(*(fn(getattr(self, f.name)) for f in fields(self)))

    def receiving(self, begin: int, end: int) -> MessageGraph:
        """Selects the messages received by patches `begin` to `end`.

        The result has no sending order, so it serves the forward pass only.
        """
        first, last = int(self.received_P1[begin]), int(self.received_P1[end])
        empty = self.target_M[:0]
        return replace(
            self,
            received_P1=self.received_P1[begin : end + 1] - first,
            source_M=self.source_M[first:last],
            message_M=empty,
            target_M=empty,
        )

    def incoming_subgraph(
        self, targets_R: NDArray[np.int64]
    ) -> tuple[MessageGraph, NDArray[np.int64], NDArray[np.int64]]:
        """Extracts the subgraph of all messages that some patches receive; the graph must be on the CPU.

        Args:
            targets_R: the receiving patches, ascending.

        Returns:
            The subgraph, whose receiving patches are numbered as in `targets_R` and whose sending patches are
            numbered as in the second result; the sending patches (S,), ascending; and the numbers (N,) of the
            subgraph's messages in this graph.
        """
        received_P1, source_M = self.received_P1.numpy(), self.source_M.numpy()
        degree_R = received_P1[targets_R + 1] - received_P1[targets_R]
        indptr_R1 = np.concatenate([[0], np.cumsum(degree_R, dtype=np.int64)])
        messages_N = np.arange(indptr_R1[-1]) + np.repeat(received_P1[targets_R] - indptr_R1[:-1], degree_R)
        sources_N = source_M[messages_N]
        new_index_P = np.zeros(len(self.sent_P1) - 1, np.int32)
        new_index_P[sources_N] = 1
        senders_S = np.flatnonzero(new_index_P)
        new_index_P[senders_S] = np.arange(len(senders_S))
        sender_N = new_index_P[sources_N]
        sent_S1, target_N, message_N = _transpose_csr(indptr_R1, sender_N, len(senders_S))
        return self._from_arrays(indptr_R1, sender_N, sent_S1, message_N, target_N), senders_S, messages_N

    @property
    def edge_index_2M(self) -> Tensor:
        """The edges (2, M) int64 in PyTorch Geometric's convention: row 0 sends, row 1 receives."""
        patches = torch.arange(len(self.received_P1) - 1, device=self.source_M.device)
        target_M = torch.repeat_interleave(patches, self.received_P1.diff(), output_size=len(self.source_M))
        return torch.stack([self.source_M.long(), target_M])


def _transpose_csr(
    rows_P1: NDArray[np.integer], columns_M: NDArray[np.integer], columns: int
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """Converts CSR to CSC: the column pointer, the row of each entry, and the position that it had before."""
    positions_M = np.arange(len(columns_M), dtype=np.int32)
    if np.array_equal(columns_M, positions_M) and np.array_equal(rows_P1, np.arange(columns + 1)):
        return np.arange(columns + 1, dtype=np.int32), positions_M, positions_M  # self-loops alone
    from scipy import sparse  # takes a tenth of a second to import, which bags without a graph have no use for

    by_column = sparse.csr_array((positions_M, columns_M, rows_P1), shape=(len(rows_P1) - 1, columns)).tocsc()
    return by_column.indptr, by_column.indices, by_column.data
