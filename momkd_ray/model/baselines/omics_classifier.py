"""A classifier of omics vectors: the teacher of the distillation baselines and the upper references."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import ModelConfig
from momkd_ray.model.baselines.slide_classifier import linear_classifier
from momkd_ray.model.dropout import Dropout, Layers
from momkd_ray.model.omics import OmicsMLP


class OmicsClassifier(nn.Module):
    """MoMKD's omics encoder with a linear classifier behind it."""

    def __init__(self, model: ModelConfig, genes: int, classes: int) -> None:
        super().__init__()
        self.p = model.omics_dropout
        self.encoder = OmicsMLP(genes, model.omics_hidden, model.omics_embedding)
        self.classifier = linear_classifier(model.omics_embedding, classes)

    def forward(self, omics_RG: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """(R, G) -> embeddings (R, E) and logits (R, Y)."""
        embedding_RE = F.relu(self.encoder(omics_RG, dropout))
        return embedding_RE, self.classifier(embedding_RE)

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the encoder; none for a batch without omics."""
        return {} if batch.omics_RG is None else {"omics_encoder": (batch.omics_per_bag, self.p)}


def scatter_rows(rows_RF: Tensor, rows_R: Tensor, bags: int) -> Tensor:
    """Places rows at their bags: (B, F), with 0 for the other bags."""
    return rows_RF.new_zeros(bags, *rows_RF.shape[1:]).index_add(0, rows_R, rows_RF)


def has_omics(batch: BagBatch) -> Tensor:
    """Returns whether each bag's patient has omics (B,)."""
    present_B = torch.zeros(len(batch), dtype=torch.bool, device=batch.features_PD.device)
    return present_B if batch.omics_bag_R is None else present_B.index_fill(0, batch.omics_bag_R, True)
