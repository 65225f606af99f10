"""The slide encoder: two residual GATv2 layers over the patches' neighbour graph (method 2)."""

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

PART = {"cpu": 1024, "cuda": 65_536}
"""Patches whose intermediates are held at a time where no gradient is wanted: few enough for a CPU's cache."""


_EVERY = slice(None)
_LAYERS = ("gat1.attention", "gat1", "gat2.attention", "gat2")  # as dropout knows them, in the order of `Masks`


class GATv2(nn.Module):
    """A GATv2 layer; its parameters have the names, shapes and first values of PyTorch Geometric's GATv2Conv."""

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
        """(P, F) -> (P, H); dropout's rows are the messages, its columns the heads."""
        return self.received(self.lin_l(x_PF), x_PF, graph, dropout)

    def received(self, sent_PH: Tensor, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """What patches with features `x_PF` receive of what all patches of the graph send."""
        return attend(sent_PH, self.lin_r(x_PF), self.att[0], self.bias, graph, dropout)

    def in_parts(
        self,
        x_PF: Tensor,
        senders: Tensor | slice,
        receivers: Tensor | slice,
        graph: MessageGraph,
        block: Callable[[Tensor, Tensor], Tensor],
        into_PH: Tensor | None = None,
    ) -> Tensor:
        """`block` of what the receivers among rows x receive, and of these rows; of all senders only W_l x is held.

        Args:
            x_PF: features, the receivers' and the senders' among them.
            senders, receivers: which rows; the graph counts them as they stand there.
            graph: of the receivers.
            block: of (Q, H) received and the (Q, F) rows.
            into_PH: where the result goes, if not to memory of its own.
        """
        sent_SH = _by_parts(x_PF, senders, lambda x_QF, *_: self.lin_l(x_QF))

        def part(x_QF: Tensor, begin: int, end: int) -> Tensor:
            whole = len(x_QF) == len(graph.received_P1) - 1
            return block(self.received(sent_SH, x_QF, graph if whole else graph.receiving(begin, end), None), x_QF)

        return _by_parts(x_PF, receivers, part, into_PH)


@dataclass(frozen=True)
class Masks:
    """Dropout of each layer's messages and patches; None drops nothing."""

    messages1: Dropout | None = None
    patches1: Dropout | None = None
    messages2: Dropout | None = None
    patches2: Dropout | None = None

    @classmethod
    def of(cls, noise: Mapping[str, Dropout]) -> Masks:
        """Those among the dropout that `draw_dropout` gave for `SlideEncoder.noisy_layers`."""
        return cls(*map(noise.get, _LAYERS))

    def of_tile(self, tile: Tile) -> Masks:
        """Those of what a tile encodes."""
        rows = (tile.messages1_M, tile.outer_S[tile.inner_R], tile.messages2_M, tile.own_Q)
        masks = (self.messages1, self.patches1, self.messages2, self.patches2)
        return Masks(*(mask and mask.of_rows(of) for mask, of in zip(masks, rows, strict=True)))


class SlideEncoder(nn.Module):
    """Patch features (P, D) and their graph -> contextual patch embeddings (P, H), in float32.

    With features in bfloat16 its matrix products are made in bfloat16.
    """

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gat1 = GATv2(width, hidden, heads)
        self.gat2 = GATv2(hidden, hidden, heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.residual1 = Linear(width, hidden)

    def forward(self, batch: BagBatch, masks: Masks) -> Tensor:
        """max(h1, h2) of the two residual layers, elementwise."""
        x_PD, graph = batch.features_PD, batch.graph
        if masks == Masks() and not torch.is_grad_enabled():
            return self._in_parts(x_PD, graph, graph, _EVERY, _EVERY, _EVERY)
        h1_PH = self._block1(self.gat1(x_PD, graph, masks.messages1), self.residual1(x_PD), masks.patches1)
        return self._block2(self.gat2(h1_PH.to(x_PD.dtype), graph, masks.messages2), h1_PH, masks.patches2)

    def tile(self, x_PD: Tensor, tile: Tile, masks: Masks) -> Tensor:
        """The same for the patches of a tile alone, (Q, H), of all patches' features and masks."""
        inner_R = tile.outer_S[tile.inner_R]
        if masks == Masks() and not torch.is_grad_enabled():
            return self._in_parts(x_PD, tile.graph1, tile.graph2, tile.outer_S, inner_R, tile.own_in_inner_Q)
        x_SD, masks = x_PD[tile.outer_S], masks.of_tile(tile)
        x_RD = x_SD[tile.inner_R]
        received_RH = self.gat1.received(self.gat1.lin_l(x_SD), x_RD, tile.graph1, masks.messages1)
        h1_RH = self._block1(received_RH, self.residual1(x_RD), masks.patches1)
        h1_QH = h1_RH[tile.own_in_inner_Q]
        sent_RH, h1_in_QH = self.gat2.lin_l(h1_RH.to(x_PD.dtype)), h1_QH.to(x_PD.dtype)
        received_QH = self.gat2.received(sent_RH, h1_in_QH, tile.graph2, masks.messages2)
        return self._block2(received_QH, h1_QH, masks.patches2)

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Whose rows dropout draws for."""
        rows = (batch.messages_per_bag, batch.patches_per_bag) * 2
        return {layer: (rows_B, self.dropout) for layer, rows_B in zip(_LAYERS, rows, strict=True)}

    def _in_parts(
        self,
        x_PD: Tensor,
        graph1: MessageGraph,
        graph2: MessageGraph,
        outer_S: Tensor | slice,
        inner_R: Tensor | slice,
        own_Q: Tensor | slice,
    ) -> Tensor:
        """The same without a way back: only h1, what patches send and what comes out are held, the rest by parts.

        Args:
            x_PD: all features.
            graph1, graph2: what each layer's patches receive.
            outer_S, inner_R: of these features, those of the first layer's sending and receiving patches.
            own_Q: of h1, the second layer's receiving patches.
        """
        h1_RH = self.gat1.in_parts(
            x_PD, outer_S, inner_R, graph1, lambda out_QH, x_QD: self._block1(out_QH, self.residual1(x_QD), None)
        )
        return self.gat2.in_parts(
            h1_RH.to(x_PD.dtype),
            _EVERY,
            own_Q,
            graph2,
            lambda out_QH, h1_QH: self._block2(out_QH, h1_QH, None),
            into_PH=h1_RH if own_Q is _EVERY else None,
        )

    def _block1(self, x_PH: Tensor, residual_PH: Tensor, dropout: Dropout | None) -> Tensor:
        return residual_block(x_PH, residual_PH, self.norm1.weight, self.norm1.bias, 1.0, dropout)

    def _block2(self, x_PH: Tensor, h1_PH: Tensor, dropout: Dropout | None) -> Tensor:
        # h2 = h1 + dropout(elu(y)), so max(h1, h2) = h1 + dropout(max(elu(y), 0)), and max(elu(y), 0) is elu at alpha 0
        return residual_block(x_PH, h1_PH, self.norm2.weight, self.norm2.bias, 0.0, dropout)


def _by_parts(
    x_PF: Tensor,
    rows: Tensor | slice,
    work: Callable[[Tensor, int, int], Tensor],
    into_NH: Tensor | None = None,
) -> Tensor:
    """`work` of some rows, part by part, as one float32 array."""
    count = len(rows) if isinstance(rows, Tensor) else len(x_PF)
    size = PART.get(x_PF.device.type, count)
    for begin in range(0, count, size):
        end = min(begin + size, count)
        out_QH = work(x_PF[rows[begin:end] if isinstance(rows, Tensor) else slice(begin, end)], begin, end)
        if into_NH is None:
            into_NH = torch.empty(count, out_QH.shape[1], dtype=out_QH.dtype, device=x_PF.device)
        into_NH[begin:end] = out_QH
    assert into_NH is not None, "a batch without patches"
    return into_NH
