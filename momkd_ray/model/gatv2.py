"""The slide encoder: two residual GATv2 layers over the patch graph (docs/method.md §2). Shapes: `model/momkd.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from momkd_ray.batches.collate import BagBatch
from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.batches.tiles import Tile
from momkd_ray.model.dropout import Dropout, Layers
from momkd_ray.model.kernels import attend, residual_block
from momkd_ray.model.kernels.linear import Linear

CHUNK_PATCHES = {"cpu": 1024, "cuda": 65_536}
"""Patches whose intermediates are held at a time without gradients: few enough for a CPU's cache."""


_ALL = slice(None)
_LAYERS = ("gat1.attention", "gat1", "gat2.attention", "gat2")  # their names in the dropout hash, in `Masks`' order


class GATv2(nn.Module):
    """A GATv2 layer whose parameters have the names, shapes and initial distribution of PyTorch Geometric's GATv2Conv.

    Args:
        width_in: F.
        width_out: H, a multiple of `heads`.
        heads: number of attention heads.
    """

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__()
        self.lin_l, self.lin_r = Linear(width_in, width_out), Linear(width_in, width_out)
        self.att = nn.Parameter(torch.empty(1, heads, width_out // heads))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.xavier_uniform_(self.lin_l.weight)
        nn.init.xavier_uniform_(self.lin_r.weight)
        bound = math.sqrt(6 / (heads + width_out // heads))
        nn.init.uniform_(self.att, -bound, bound)

    def forward(self, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """Maps features (P, F) to (P, H); dropout has one row per message and one column per head."""
        return self.aggregate(self.lin_l(x_PF), x_PF, graph, dropout)

    def aggregate(self, sent_PH: Tensor, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """Aggregates the messages `sent_PH` at the receiving patches, whose features are `x_PF`."""
        return attend(sent_PH, self.lin_r(x_PF), self.att[0], self.bias, graph, dropout)

    def in_chunks(
        self,
        x_PF: Tensor,
        senders: Tensor | slice,
        receivers: Tensor | slice,
        graph: MessageGraph,
        block: Callable[[Tensor, Tensor], Tensor],
        into_PH: Tensor | None = None,
    ) -> Tensor:
        """Computes the layer and `block` after it in chunks of receiving patches, without gradients.

        Only W_l x of the senders is held for all patches; every other intermediate is held for one chunk.

        Args:
            x_PF: features of senders and receivers.
            senders: rows of `x_PF`, in the graph's order of senders.
            receivers: rows of `x_PF`, in the graph's order of receivers.
            graph: the messages between them.
            block: called with the aggregated (Q, H) and the features (Q, F) of a chunk of receivers.
            into_PH: optional output memory.
        """
        sent_SH = _map_chunks(x_PF, senders, lambda x_QF, *_: self.lin_l(x_QF))

        def chunk(x_QF: Tensor, begin: int, end: int) -> Tensor:
            entire = len(x_QF) == len(graph.received_P1) - 1
            return block(self.aggregate(sent_SH, x_QF, graph if entire else graph.receiving(begin, end), None), x_QF)

        return _map_chunks(x_PF, receivers, chunk, into_PH)


class PatchLayer(GATv2):
    """A GATv2 layer without a graph: each patch receives its own message alone, `W_l x + b` (docs/method.md §2).

    Args:
        width_in: F.
        width_out: H.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        nn.Module.__init__(self)
        self.lin_l = Linear(width_in, width_out)
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.xavier_uniform_(self.lin_l.weight)

    def forward(self, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """Maps features (P, F) to (P, H)."""
        own_PH: Tensor = self.lin_l(x_PF) + self.bias
        return own_PH

    def aggregate(self, sent_PH: Tensor, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """Maps the features `x_PF` of the receiving patches; no other patch's message counts."""
        return self.forward(x_PF, graph, dropout)


@dataclass(frozen=True)
class Masks:
    """Dropout of the messages and patches of both layers; None drops nothing."""

    messages1: Dropout | None = None
    patches1: Dropout | None = None
    messages2: Dropout | None = None
    patches2: Dropout | None = None

    @classmethod
    def of(cls, dropout: Mapping[str, Dropout]) -> Masks:
        """Selects the slide encoder's masks from the result of `draw_dropout`."""
        return cls(*map(dropout.get, _LAYERS))

    def of_tile(self, tile: Tile) -> Masks:
        """Selects the rows that a tile encodes."""
        rows = (tile.messages1_M, tile.outer_S[tile.inner_R], tile.messages2_M, tile.own_Q)
        masks = (self.messages1, self.patches1, self.messages2, self.patches2)
        return Masks(*(mask and mask.select_rows(rows_R) for mask, rows_R in zip(masks, rows, strict=True)))


def reads_graph(model: nn.Module) -> bool:
    """Returns whether a model reads the patch graph of a bag; those without a slide encoder do not."""
    return any(isinstance(part, SlideEncoder) for part in model.modules())


class SlideEncoder(nn.Module):
    """Encodes patch features (P, D) and their graph to contextual patch embeddings (P, H), float32.

    With bfloat16 features its matrix products are computed in bfloat16.

    Args:
        width: D.
        hidden: H.
        heads: attention heads of both layers.
        dropout: probability, of attention coefficients and of activations.
        graph: whether messages pass over the patch graph; without, a patch is encoded alone.
    """

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, *, graph: bool = True) -> None:
        super().__init__()
        self.dropout, self.graph = dropout, graph
        self.gat1 = GATv2(width, hidden, heads) if graph else PatchLayer(width, hidden)
        self.gat2 = GATv2(hidden, hidden, heads) if graph else PatchLayer(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.residual1 = Linear(width, hidden)

    def forward(self, batch: BagBatch, masks: Masks) -> Tensor:
        """Returns max(h1, h2) of the two residual layers, elementwise (P, H)."""
        x_PD, graph = batch.features_PD, batch.graph
        if masks == Masks() and not torch.is_grad_enabled():
            return self._in_chunks(x_PD, graph, graph, _ALL, _ALL, _ALL)
        h1_PH = self._block1(self.gat1(x_PD, graph, masks.messages1), self.residual1(x_PD), masks.patches1)
        return self._block2(self.gat2(h1_PH.to(x_PD.dtype), graph, masks.messages2), h1_PH, masks.patches2)

    def encode_tile(self, x_PD: Tensor, tile: Tile, masks: Masks) -> Tensor:
        """Encodes the patches of one tile (Q, H); `x_PD` and `masks` are those of the entire batch."""
        inner_R = tile.outer_S[tile.inner_R]
        if masks == Masks() and not torch.is_grad_enabled():
            return self._in_chunks(x_PD, tile.graph1, tile.graph2, tile.outer_S, inner_R, tile.own_in_inner_Q)
        x_SD, masks = x_PD[tile.outer_S], masks.of_tile(tile)
        x_RD = x_SD[tile.inner_R]
        received_RH = self.gat1.aggregate(self.gat1.lin_l(x_SD), x_RD, tile.graph1, masks.messages1)
        h1_RH = self._block1(received_RH, self.residual1(x_RD), masks.patches1)
        h1_QH = h1_RH[tile.own_in_inner_Q]
        sent_RH, h1_in_QH = self.gat2.lin_l(h1_RH.to(x_PD.dtype)), h1_QH.to(x_PD.dtype)
        received_QH = self.gat2.aggregate(sent_RH, h1_in_QH, tile.graph2, masks.messages2)
        return self._block2(received_QH, h1_QH, masks.patches2)

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the encoder's dropout layers with their rows per bag: messages and patches of both layers."""
        rows = (batch.messages_per_bag, batch.patches_per_bag) * 2
        layers = {layer: (rows_B, self.dropout) for layer, rows_B in zip(_LAYERS, rows, strict=True)}
        return {name: layer for name, layer in layers.items() if self.graph or not name.endswith(".attention")}

    def _in_chunks(
        self,
        x_PD: Tensor,
        graph1: MessageGraph,
        graph2: MessageGraph,
        outer_S: Tensor | slice,
        inner_R: Tensor | slice,
        own_Q: Tensor | slice,
    ) -> Tensor:
        """Encodes without gradients, holding only h1, W_l x and the output for all patches.

        Args:
            x_PD: features of the entire batch.
            graph1: the messages of layer 1.
            graph2: the messages of layer 2.
            outer_S: rows of `x_PD` that send in layer 1.
            inner_R: rows of `x_PD` that receive in layer 1.
            own_Q: rows of h1 that receive in layer 2.
        """
        h1_RH = self.gat1.in_chunks(
            x_PD, outer_S, inner_R, graph1, lambda out_QH, x_QD: self._block1(out_QH, self.residual1(x_QD), None)
        )
        return self.gat2.in_chunks(
            h1_RH.to(x_PD.dtype),
            _ALL,
            own_Q,
            graph2,
            lambda out_QH, h1_QH: self._block2(out_QH, h1_QH, None),
            into_PH=h1_RH if own_Q is _ALL else None,
        )

    def _block1(self, x_PH: Tensor, residual_PH: Tensor, dropout: Dropout | None) -> Tensor:
        return residual_block(x_PH, residual_PH, self.norm1.weight, self.norm1.bias, 1.0, dropout)

    def _block2(self, x_PH: Tensor, h1_PH: Tensor, dropout: Dropout | None) -> Tensor:
        # h2 = h1 + dropout(elu(y)), so max(h1, h2) = h1 + dropout(max(elu(y), 0)), and max(elu(y), 0) is ELU at alpha 0
        return residual_block(x_PH, h1_PH, self.norm2.weight, self.norm2.bias, 0.0, dropout)


def _map_chunks(
    x_PF: Tensor,
    rows: Tensor | slice,
    work: Callable[[Tensor, int, int], Tensor],
    into_NH: Tensor | None = None,
) -> Tensor:
    """Applies `work` to some rows in chunks and concatenates the results as float32."""
    count = len(rows) if isinstance(rows, Tensor) else len(x_PF)
    size = CHUNK_PATCHES.get(x_PF.device.type, count)
    for begin in range(0, count, size):
        end = min(begin + size, count)
        out_QH = work(x_PF[rows[begin:end] if isinstance(rows, Tensor) else slice(begin, end)], begin, end)
        if into_NH is None:
            into_NH = torch.empty(count, out_QH.shape[1], dtype=out_QH.dtype, device=x_PF.device)
        into_NH[begin:end] = out_QH
    assert into_NH is not None, "a batch has patches"
    return into_NH
