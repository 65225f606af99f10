"""The omics encoder and decoder (docs/method.md §2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.model.dropout import Dropout, apply_dropout


class OmicsMLP(nn.Module):
    """A perceptron Linear - LayerNorm - ReLU - Dropout - Linear: the encoder of genes, or the decoder back to them."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width_in, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.linear2 = nn.Linear(hidden, width_out)

    def forward(self, x_RF: Tensor, dropout: Dropout | None) -> Tensor:
        """Maps (R, width_in) to (R, width_out), one row for each bag with omics."""
        hidden_RH = F.relu(self.norm(self.linear1(x_RF)))
        out_RF: Tensor = self.linear2(apply_dropout(hidden_RH, dropout))
        return out_RF
