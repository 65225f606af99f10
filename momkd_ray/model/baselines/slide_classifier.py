"""The part that attention-based baselines share: patch embedding, pooling and the slide's classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.dropout import Dropout, Layers, apply_dropout
from momkd_ray.model.interface import MILModel
from momkd_ray.model.kernels.linear import Linear


@dataclass(frozen=True)
class SlideOutput:
    """The result of one forward pass: class logits, and attention or None."""

    logits_BY: Tensor
    attention_P: Tensor | None


class AttentionScore(nn.Module):
    """Attention scores of patches, plain or gated (Ilse et al. 2018, arXiv 1802.04712, equations 8 and 9).

    Plain: `w^T tanh(V h)`; gated: `w^T (tanh(V h) * sigmoid(U h))`, with one w for each of `branches`.
    """

    def __init__(self, hidden: int, width: int, *, gated: bool, branches: int = 1) -> None:
        super().__init__()
        self.value = Linear(hidden, width)
        self.gate = Linear(hidden, width) if gated else None
        self.weight = nn.Linear(width, branches, bias=False)

    def forward(self, h_PH: Tensor) -> Tensor:
        """(P, H) -> scores (P, branches)."""
        activation_PF = torch.tanh(self.value(h_PH))
        if self.gate is not None:
            activation_PF = activation_PF * torch.sigmoid(self.gate(h_PH))
        scores_PJ: Tensor = self.weight(activation_PF)
        return scores_PJ


class SlideModel(MILModel):
    """A model that embeds each patch by one linear layer, `h = dropout(relu(W x))`, before anything else."""

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.embedding = Linear(width, model.hidden)

    def embed(self, batch: BagBatch, dropout: dict[str, Dropout]) -> Tensor:
        """Embeds the patches: (P, H)."""
        return apply_dropout(F.relu(self.embedding(batch.features_PD)), dropout.get("embedding"))

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the embedded patches."""
        return {"embedding": (batch.patches_per_bag, self.model_config.dropout)}

    def cross_entropy(self, logits_BY: Tensor, batch: BagBatch) -> Tensor:
        """Computes the cross-entropy per bag (B,)."""
        assert batch.labels_B is not None, "losses need labels"
        return F.cross_entropy(logits_BY, batch.labels_B, reduction="none")

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy per bag (B,)."""
        ce_B = self.cross_entropy(output.logits_BY, batch)
        return {"ce": ce_B, "total": ce_B}


def linear_classifier(width: int, classes: int) -> nn.Linear:
    """Builds the linear layer from a bag's embedding to its logits."""
    return nn.Linear(width, classes)
