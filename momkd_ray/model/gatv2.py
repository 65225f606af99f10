"""The slide encoder: two residual GATv2 layers over the patches' neighbour graph (method 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv

from momkd_ray.bags.batch import BagBatch
from momkd_ray.model.dropout import BagNoise, dropped


class GATv2(GATv2Conv):  # type: ignore[misc]  # PyTorch Geometric carries no types for it
    """PyTorch Geometric's GATv2 with the attention's dropout mask handed in."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__(width_in, width_out // heads, heads=heads, add_self_loops=False)

    def forward(self, x_PF: Tensor, edge_index_2M: Tensor, keep_MA: Tensor | None) -> Tensor:
        """(P, F) -> (P, H); `edge_index_2M` already has its self-loops, `keep_MA` a value an edge and head."""
        source_PAC = self.lin_l(x_PF).view(-1, self.heads, self.out_channels)
        target_PAC = self.lin_r(x_PF).view(-1, self.heads, self.out_channels)
        attention_MA = self.edge_updater(edge_index_2M, x=(source_PAC, target_PAC), edge_attr=None)
        if keep_MA is not None:
            attention_MA = attention_MA * keep_MA
        out_PAC: Tensor = self.propagate(edge_index_2M, x=(source_PAC, target_PAC), alpha=attention_MA)
        out_PH: Tensor = out_PAC.flatten(1) + self.bias
        return out_PH


class SlideEncoder(nn.Module):
    """Patch features (P, D) and their graph -> contextual patch embeddings (P, H)."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.heads = heads
        self.gat1 = GATv2(width, hidden, heads)
        self.gat2 = GATv2(hidden, hidden, heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.residual1 = nn.Linear(width, hidden)

    def forward(self, batch: BagBatch, noise: BagNoise | None) -> Tensor:
        """max(h1, h2) of the two residual layers, elementwise."""
        x_PD = batch.features_PD
        h1_PH = self._layer(self.gat1, self.norm1, x_PD, batch, noise) + self.residual1(x_PD)
        h2_PH = self._layer(self.gat2, self.norm2, h1_PH, batch, noise) + h1_PH
        return torch.maximum(h1_PH, h2_PH)

    def _layer(self, gat: GATv2, norm: nn.LayerNorm, x_PF: Tensor, batch: BagBatch, noise: BagNoise | None) -> Tensor:
        out_PH = gat(x_PF, batch.edge_index_2M, self._attention_keep(batch, noise))
        return dropped(F.elu(norm(out_PH)), batch.patches_per_bag, self.dropout, noise)

    def _attention_keep(self, batch: BagBatch, noise: BagNoise | None) -> Tensor | None:
        if noise is None or self.dropout == 0:
            return None
        # edges and self-loops are drawn apart because the batch stores all edges before all self-loops
        edges = noise.keep(batch.edges_per_bag, self.heads, self.dropout)
        loops = noise.keep(batch.patches_per_bag, self.heads, self.dropout)
        return torch.cat([edges, loops])
