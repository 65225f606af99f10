"""Cuts a large bag into tiles that can be encoded one at a time: each has its two-hop incoming neighbourhood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from momkd_ray.batches.message_graph import MessageGraph

MAX_UNTILED_PATCHES = {"cpu": 32_768, "cuda": 524_288}
"""Patches up to which a batch is encoded at once: training keeps about 24 KB of each at H = 512, so 0.8 and 13 GB."""
TILE_PATCHES = {"cpu": 8_192, "cuda": 65_536}
"""Patches per tile: large enough that the neighbourhood it shares with other tiles is a small part of it."""


@dataclass(frozen=True)
class Tile:
    """Q patches of one bag with their two-hop incoming neighbourhood; all tensors but the graphs are int64.

    Attributes:
        bag: index of the bag in the batch.
        own_Q: the tile's patches, ascending, as indices into the batch.
        outer_S: patches within two hops, whose features are the input, as indices into the batch.
        inner_R: patches within one hop, as indices into `outer_S`.
        own_in_inner_Q: the tile's patches, as indices into `inner_R`.
        graph1, graph2: messages from outer to inner patches (layer 1), and from inner to own patches (layer 2).
        messages1_M, messages2_M: the numbers of these messages in the batch's graph.
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
        """Moves the tile to a device."""
        return self.map_tensors(lambda x: x.to(device, non_blocking=True))

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> Tile:
        """Applies `fn` to every tensor of the tile and of its graphs."""
        mapped: dict[str, Any] = {
            f.name: fn(value) if isinstance(value := getattr(self, f.name), Tensor) else value.map_tensors(fn)
            for f in fields(self)
            if f.name != "bag"
        }
        return Tile(self.bag, **mapped)


def cut_tiles(graph: MessageGraph, patches_per_bag: tuple[int, ...], size: int) -> Iterator[Tile]:
    """Partitions every bag into tiles of at most `size` patches, neighbouring patches in the same tile.

    The tiles do not depend on the order of a bag's patches being spatial: they follow the graph.
    """
    start = 0
    for bag, patches in enumerate(patches_per_bag):
        order_P = start + _locality_order(graph, start, start + patches)
        for begin in range(0, patches, size):
            yield make_tile(graph, bag, np.sort(order_P[begin : begin + size]))
        start += patches


def _locality_order(graph: MessageGraph, start: int, end: int) -> NDArray[np.int64]:
    """Orders a bag's patches so that neighbours in the graph are close (reverse Cuthill-McKee)."""
    from scipy import sparse
    from scipy.sparse.csgraph import reverse_cuthill_mckee  # takes a fifth of a second to import, for large bags alone

    received_P1 = graph.received_P1[start : end + 1].numpy()
    sources_M = graph.source_M[received_P1[0] : received_P1[-1]].numpy() - start
    ones_M = np.ones(len(sources_M), np.int8)
    edges = sparse.csr_array((ones_M, sources_M, received_P1 - received_P1[0]), shape=(end - start, end - start))
    order_P: NDArray[np.int32] = reverse_cuthill_mckee(sparse.csr_matrix(edges))
    return order_P.astype(np.int64)


def make_tile(graph: MessageGraph, bag: int, own_Q: NDArray[np.int64]) -> Tile:
    """Builds the tile of some patches (ascending) of a bag."""
    graph2, inner_R, messages2_M = graph.incoming_subgraph(own_Q)
    graph1, outer_S, messages1_M = graph.incoming_subgraph(inner_R)
    indices = (own_Q, outer_S, np.searchsorted(outer_S, inner_R), np.searchsorted(inner_R, own_Q))
    own, outer, inner, own_in_inner = map(torch.from_numpy, indices)
    messages1, messages2 = map(torch.from_numpy, (messages1_M, messages2_M))
    return Tile(bag, own, outer, inner, own_in_inner, graph1, graph2, messages1, messages2)
