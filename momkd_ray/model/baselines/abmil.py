"""Attention-based MIL and its gated variant (Ilse, Tomczak, Welling 2018, arXiv 1802.04712)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import pool_by_attention
from momkd_ray.model.baselines.slide_classifier import AttentionScore, SlideModel, SlideOutput, linear_classifier
from momkd_ray.model.dropout import Dropout
from momkd_ray.model.explain import Readout

ATTENTION_WIDTH = 128  # L of the paper's experiments on histology


class ABMIL(SlideModel):
    """Pools patches by `a = softmax(w^T tanh(V h))`, z = sum_p a_p h_p (equations 7 and 8), and classifies z."""

    gated: ClassVar[bool] = False

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.score = AttentionScore(model.hidden, ATTENTION_WIDTH, gated=self.gated)
        self.classifier = linear_classifier(model.hidden, classes)

    def pool(self, batch: BagBatch, dropout: dict[str, Dropout]) -> tuple[Tensor, Tensor]:
        """Computes attention (P,) and the bags' embeddings (B, H)."""
        h_PH = self.embed(batch, dropout)
        return pool_by_attention(self.score(h_PH)[:, 0], h_PH, batch.bag_of_patch_P, len(batch))

    def forward(self, batch: BagBatch) -> SlideOutput:
        """Pools and classifies the bags."""
        attention_P, pooled_BH = self.pool(batch, self.draw_dropout(batch))
        return SlideOutput(self.classifier(pooled_BH), attention_P)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how one bag is pooled and classified."""
        h_PH = self.embed(batch, {})
        return Readout(h_PH, self.score(h_PH)[:, 0].softmax(dim=0), self.classifier)


class GatedABMIL(ABMIL):
    """The same with gated attention, `a = softmax(w^T (tanh(V h) * sigmoid(U h)))` (equation 9)."""

    gated = True
