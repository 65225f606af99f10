"""The slide encoder: two residual GATv2 layers over the patches' neighbour graph (method 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from momkd_ray.bags.batch import BagBatch
from momkd_ray.bags.messages import MessageGraph
from momkd_ray.model.dropout import BagNoise, Dropout
from momkd_ray.model.kernels import attend, residual_block


class GATv2(GATv2Conv):  # type: ignore[misc]  # PyTorch Geometric carries no types for it
    """PyTorch Geometric's GATv2, its parameters and how they start, computed by kernels of our own."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__(width_in, width_out // heads, heads=heads, add_self_loops=False)

    def forward(self, x_PF: Tensor, graph: MessageGraph, dropout: Dropout | None) -> Tensor:
        """(P, F) -> (P, H); dropout's rows are the messages, its columns the heads."""
        out_PH = attend(self.lin_l(x_PF), self.lin_r(x_PF), self.att[0], graph, dropout)
        return out_PH.add_(self.bias)


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
        x_PD = batch.features_PD
        h1_PH = self._layer(1, x_PD, self.residual1(x_PD), batch, noise, alpha=1.0)
        # h2 = h1 + dropout(elu(y)), so max(h1, h2) = h1 + dropout(max(elu(y), 0)), and max(elu(y), 0) is elu at alpha 0
        return self._layer(2, h1_PH, h1_PH, batch, noise, alpha=0.0)

    def _layer(
        self, n: int, x_PF: Tensor, residual_PH: Tensor, batch: BagBatch, noise: BagNoise | None, alpha: float
    ) -> Tensor:
        gat, norm = (self.gat1, self.norm1) if n == 1 else (self.gat2, self.norm2)
        on_messages = on_patches = None
        if noise is not None:
            on_messages = noise.of(f"gat{n}.attention", batch.messages_per_bag, self.dropout)
            on_patches = noise.of(f"gat{n}", batch.patches_per_bag, self.dropout)
        x_PH = gat(x_PF, batch.graph, on_messages)
        return residual_block(x_PH, residual_PH, norm.weight, norm.bias, alpha, on_patches)
