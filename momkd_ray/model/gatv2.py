"""The slide encoder: two residual GATv2 layers over the patches' neighbour graph (method 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from momkd_ray.bags.batch import BagBatch
from momkd_ray.bags.messages import MessageGraph
from momkd_ray.model.dropout import BagNoise, Dropout
from momkd_ray.model.kernels import attend, residual_block

PART = {"cpu": 1024, "cuda": 65_536}
"""Patches whose intermediates are held at a time where no gradient is wanted: few enough for a CPU's cache."""


class GATv2(GATv2Conv):  # type: ignore[misc]  # PyTorch Geometric carries no types for it
    """PyTorch Geometric's GATv2, its parameters and how they start, computed by kernels of our own."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__(width_in, width_out // heads, heads=heads, add_self_loops=False)

    def forward(self, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """(P, F) -> (P, H); dropout's rows are the messages, its columns the heads."""
        return self.received(self.lin_l(x_PF), x_PF, graph, dropout)

    def received(self, sent_PH: Tensor, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """What patches with features `x_PF` receive of what all patches of the graph send."""
        return attend(sent_PH, self.lin_r(x_PF), self.att[0], self.bias, graph, dropout)


class SlideEncoder(nn.Module):
    """Patch features (P, D) and their graph -> contextual patch embeddings (P, H)."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gat1 = GATv2(width, hidden, heads)
        self.gat2 = GATv2(hidden, hidden, heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.residual1 = nn.Linear(width, hidden)

    def forward(self, batch: BagBatch, noise: BagNoise | None) -> Tensor:
        """max(h1, h2) of the two residual layers, elementwise."""
        if noise is None and not torch.is_grad_enabled():
            return self._in_parts(batch)
        x_PD = batch.features_PD
        on_messages1 = on_patches1 = on_messages2 = on_patches2 = None
        if noise is not None:
            on_messages1 = noise.of("gat1.attention", batch.messages_per_bag, self.dropout)
            on_patches1 = noise.of("gat1", batch.patches_per_bag, self.dropout)
            on_messages2 = noise.of("gat2.attention", batch.messages_per_bag, self.dropout)
            on_patches2 = noise.of("gat2", batch.patches_per_bag, self.dropout)
        h1_PH = self._block1(self.gat1(x_PD, batch.graph, on_messages1), self.residual1(x_PD), on_patches1)
        return self._block2(self.gat2(h1_PH, batch.graph, on_messages2), h1_PH, on_patches2)

    def _in_parts(self, batch: BagBatch) -> Tensor:
        """The same without a way back: of all patches only h1 and what they send are held, the rest by parts."""
        x_PD, patches = batch.features_PD, len(batch.features_PD)
        size = PART.get(x_PD.device.type, patches)
        parts = [(b, min(b + size, patches), batch.graph) for b in range(0, patches, size)]
        if len(parts) > 1:
            parts = [(begin, end, batch.graph.receiving(begin, end)) for begin, end, _ in parts]
        sent_PH = self.gat1.lin_l(x_PD)
        h_PH = torch.empty(sent_PH.shape, device=sent_PH.device)
        for begin, end, graph in parts:
            x_QD = x_PD[begin:end]
            out_QH = self.gat1.received(sent_PH, x_QD, graph, None)
            h_PH[begin:end] = self._block1(out_QH, self.residual1(x_QD), None)
        del sent_PH
        sent_PH = self.gat2.lin_l(h_PH)
        for begin, end, graph in parts:
            h1_QH = h_PH[begin:end]
            h_PH[begin:end] = self._block2(self.gat2.received(sent_PH, h1_QH, graph, None), h1_QH, None)
        return h_PH

    def _block1(self, x_PH: Tensor, residual_PH: Tensor, dropout: Dropout | None) -> Tensor:
        return residual_block(x_PH, residual_PH, self.norm1.weight, self.norm1.bias, 1.0, dropout)

    def _block2(self, x_PH: Tensor, h1_PH: Tensor, dropout: Dropout | None) -> Tensor:
        # h2 = h1 + dropout(elu(y)), so max(h1, h2) = h1 + dropout(max(elu(y), 0)), and max(elu(y), 0) is elu at alpha 0
        return residual_block(x_PH, h1_PH, self.norm2.weight, self.norm2.bias, 0.0, dropout)
