"""Alignment of slide and omics features within a batch, which MoMKD's memory replaces (arXiv 2602.21395, §1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.abmil import GatedABMIL
from momkd_ray.model.baselines.omics_classifier import OmicsClassifier, scatter_rows
from momkd_ray.model.baselines.slide_classifier import SlideOutput
from momkd_ray.model.dropout import Layers

TEMPERATURE = 0.1  # of the contrast between the bags of a step
ALIGN_WEIGHT, OMICS_WEIGHT = 0.2, 0.2


@dataclass(frozen=True)
class AlignedOutput(SlideOutput):
    """The result of one forward pass, with the unit projections of slides, and of omics with their logits."""

    slide_BS: Tensor
    omics_RS: Tensor | None
    omics_logits_RY: Tensor | None


class BatchAlignment(GatedABMIL):
    """Gated attention pooling whose slide feature is drawn to the patient's omics feature of the same batch.

    Slide and omics are projected to unit vectors w and r. A bag's alignment is `1 - <w, r>` and, with the other bags
    that have omics in the same step as its negatives, the symmetric InfoNCE loss (van den Oord et al. 2018, arXiv
    1807.03748, equation 4). The omics branch learns its own classification. All bags of a step share one pass, whatever
    `train.patches_per_pass`, and one worker; of a step of one bag there are no negatives.
    """

    loss_names = ("ce", "align", "omics", "total")
    omics_loss_names = ("align", "omics")
    uses_omics = True
    contrasts_bags = True

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.omics = OmicsClassifier(model, genes, classes)
        self.project_slide = nn.Linear(model.hidden, model.shared)
        self.project_omics = nn.Linear(model.omics_embedding, model.shared)

    def forward(self, batch: BagBatch) -> AlignedOutput:
        """Classifies the slides and projects both; the omics branch runs if the model is training."""
        dropout = self.draw_dropout(batch)
        attention_P, pooled_BH = self.pool(batch, dropout)
        slide_BS = F.normalize(self.project_slide(pooled_BH), dim=-1)
        omics_RS = omics_RY = None
        if self.training and batch.omics_RG is not None:
            embedding_RE, omics_RY = self.omics(batch.omics_RG, dropout.get("omics_encoder"))
            omics_RS = F.normalize(self.project_omics(embedding_RE), dim=-1)
        return AlignedOutput(self.classifier(pooled_BH), attention_P, slide_BS, omics_RS, omics_RY)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the losses of classification, alignment and omics and their weighted total per bag (B,)."""
        assert isinstance(output, AlignedOutput) and batch.labels_B is not None
        ce_B = self.cross_entropy(output.logits_BY, batch)
        if output.omics_RS is None or output.omics_logits_RY is None or batch.omics_bag_R is None:
            zero_B = (output.slide_BS.sum(dim=1)) * 0.0  # the projection has a gradient on every pass
            return {"ce": ce_B, "align": zero_B, "omics": zero_B, "total": ce_B + zero_B}
        rows_R = batch.omics_bag_R
        similarity_RR = output.slide_BS[rows_R] @ output.omics_RS.T
        own_R = torch.arange(len(rows_R), device=rows_R.device)
        align_R = 1 - similarity_RR.diagonal()
        if len(rows_R) > 1:
            logits_RR = similarity_RR / TEMPERATURE
            contrast_R = F.cross_entropy(logits_RR, own_R, reduction="none")
            align_R = align_R + (contrast_R + F.cross_entropy(logits_RR.T, own_R, reduction="none")) / 2
        omics_R = F.cross_entropy(output.omics_logits_RY, batch.labels_B[rows_R], reduction="none")
        align_B, omics_B = (scatter_rows(loss_R, rows_R, len(batch)) for loss_R in (align_R, omics_R))
        total_B = ce_B + ALIGN_WEIGHT * align_B + OMICS_WEIGHT * omics_B
        return {"ce": ce_B, "align": align_B, "omics": omics_B, "total": total_B}

    def omics_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the omics branch."""
        return [*self.omics.parameters(), *self.project_omics.parameters()]

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of both branches."""
        return {**super().dropout_layers(batch), **self.omics.dropout_layers(batch)}
