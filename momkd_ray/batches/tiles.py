"""A large bag cut into tiles, each with all that reaches it through two layers, so that it can be encoded alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from momkd_ray.batches.message_graph import MessageGraph

MAX_UNTILED_PATCHES = {"cpu": 32_768, "cuda": 524_288}
"""Patches up to which a batch is encoded whole: training keeps about 24 KB of each at H = 512, so 0.8 and 13 GB."""
TILE_PATCHES = {"cpu": 8_192, "cuda": 65_536}
"""Patches a tile: large enough that what it shares with its neighbours is a small part of it."""


@dataclass(frozen=True)
class Tile:
    """Some patches of one bag; all tensors but the graphs are int64.

    Attributes:
        bag: whose, of the batch.
        own_Q: its patches, ascending, by their place in the batch.
        outer_S: the patches whose features it takes: those that reach it in two steps.
        inner_R: those that reach it in one, by their place in `outer_S`.
        own_in_inner_Q: its own by their place in `inner_R`.
        graph1, graph2: what inner patches receive from outer ones, and its own from inner ones.
        messages1_M, messages2_M: these messages by their place in the batch's graph.
    """

    bag: int
    own_Q: Tensor
    outer_S: Tensor
    inner_R: Tensor
    own_in_inner_Q: Tensor
    graph1: MessageGraph
    graph2: MessageGraph
    messages1_M: Tensor
    messages2_M: Tensor

    def to(self, device: torch.device) -> Tile:
        """The same tile on a device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def each(self, of: Callable[[Tensor], Tensor]) -> Tile:
        """The tile with something else in each tensor's place."""
        others: dict[str, Any] = {
            f.name: of(value) if isinstance(value := getattr(self, f.name), Tensor) else value.each(of)
            for f in fields(self)
            if f.name != "bag"
        }
        return Tile(self.bag, **others)


def cut_tiles(graph: MessageGraph, patches_per_bag: tuple[int, ...], size: int) -> Iterator[Tile]:
    """Every patch in exactly one tile of at most `size`; whatever order a bag comes in, neighbours lie together."""
    start = 0
    for bag, patches in enumerate(patches_per_bag):
        order_P = start + _neighbours_together(graph, start, start + patches)
        for begin in range(0, patches, size):
            yield make_tile(graph, bag, np.sort(order_P[begin : begin + size]))
        start += patches


def _neighbours_together(graph: MessageGraph, start: int, end: int) -> NDArray[np.int64]:
    """An order of a bag's patches in which those that send to each other are near: tiles then share little."""
    received_P1 = graph.received_P1[start : end + 1].numpy()
    sources_M = graph.source_M[received_P1[0] : received_P1[-1]].numpy() - start
    ones_M = np.ones(len(sources_M), np.int8)
    edges = sparse.csr_array((ones_M, sources_M, received_P1 - received_P1[0]), shape=(end - start, end - start))
    order_P: NDArray[np.int32] = reverse_cuthill_mckee(sparse.csr_matrix(edges))
    return order_P.astype(np.int64)


def make_tile(graph: MessageGraph, bag: int, own_Q: NDArray[np.int64]) -> Tile:
    """The tile of some patches (ascending) of a bag."""
    graph2, inner_R, messages2_M = graph.reaching(own_Q)
    graph1, outer_S, messages1_M = graph.reaching(inner_R)
    indices = (own_Q, outer_S, np.searchsorted(outer_S, inner_R), np.searchsorted(inner_R, own_Q))
    own, outer, inner, own_in_inner = map(torch.from_numpy, indices)
    messages1, messages2 = map(torch.from_numpy, (messages1_M, messages2_M))
    return Tile(bag, own, outer, inner, own_in_inner, graph1, graph2, messages1, messages2)
