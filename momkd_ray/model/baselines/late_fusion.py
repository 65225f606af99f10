"""Late fusion of slide and omics, both at test time: the upper reference of what omics add to histology."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.abmil import GatedABMIL
from momkd_ray.model.baselines.omics_classifier import OmicsClassifier, has_omics, scatter_rows
from momkd_ray.model.baselines.slide_classifier import SlideOutput
from momkd_ray.model.dropout import Layers


@dataclass(frozen=True)
class FusionOutput(SlideOutput):
    """The result of one forward pass, with the logits of the slide alone."""

    slide_logits_BY: Tensor


class LateFusion(GatedABMIL):
    """Averages the logits of gated attention pooling and of an omics classifier.

    Both are trained by the cross-entropy of the average, and the slide branch by its own too. A patient without omics
    is predicted by the slide branch.
    """

    loss_names = ("ce", "slide", "total")
    uses_omics = True
    needs_omics_to_predict = True

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.omics = OmicsClassifier(model, genes, classes)

    def forward(self, batch: BagBatch) -> FusionOutput:
        """Classifies slide and omics of the bags; the attention is the slide's."""
        dropout = self.draw_dropout(batch)
        attention_P, pooled_BH = self.pool(batch, dropout)
        slide_BY = self.classifier(pooled_BH)
        if batch.omics_RG is None or batch.omics_bag_R is None:
            return FusionOutput(slide_BY, attention_P, slide_BY)
        omics_RY = self.omics(batch.omics_RG, dropout.get("omics_encoder"))[1]
        omics_BY = scatter_rows(omics_RY, batch.omics_bag_R, len(batch))
        fused_BY = torch.where(has_omics(batch)[:, None], (slide_BY + omics_BY) / 2, slide_BY)
        return FusionOutput(fused_BY, attention_P, slide_BY)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropies of fusion and slide and their mean per bag (B,)."""
        assert isinstance(output, FusionOutput)
        ce_B = self.cross_entropy(output.logits_BY, batch)
        slide_B = self.cross_entropy(output.slide_logits_BY, batch)
        return {"ce": ce_B, "slide": slide_B, "total": (ce_B + slide_B) / 2}

    def omics_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the omics branch."""
        return list(self.omics.parameters())

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of both branches."""
        return {**super().dropout_layers(batch), **self.omics.dropout_layers(batch)}
