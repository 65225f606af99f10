"""Knowledge distillation by a teacher's soft labels (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.adamw import AdamW
from momkd_ray.model.baselines.abmil import GatedABMIL
from momkd_ray.model.baselines.omics_classifier import OmicsClassifier, scatter_rows
from momkd_ray.model.baselines.slide_classifier import SlideOutput
from momkd_ray.model.interface import TrainingSummary

TEMPERATURE = 2.0  # T of the softened probabilities
SOFT_WEIGHT = 0.5  # of the soft labels; the labels have the rest
TEACHER_STEPS, TEACHER_LR, TEACHER_DECAY = 200, 1e-3, 1e-2


@dataclass(frozen=True)
class StudentOutput(SlideOutput):
    """The result of one forward pass, with the teacher's logits of the bags that have omics."""

    teacher_logits_RY: Tensor | None


class SoftLabels(GatedABMIL):
    """Gated attention pooling as the student of an omics classifier.

    The teacher is trained on the fold's training patients with omics before the student, and then stays fixed. The
    student's loss is `(1 - w) CE(label) + w T^2 KL(teacher || student)` of probabilities at temperature T; for a bag
    without omics, the cross-entropy.
    """

    loss_names = ("ce", "soft_labels", "total")
    omics_loss_names = ("soft_labels",)
    uses_omics = True

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.teacher = OmicsClassifier(model, genes, classes).requires_grad_(False)

    def prepare(self, summary: TrainingSummary) -> None:
        """Trains the teacher by full-batch steps, so that the result does not depend on an order."""
        device = self.teacher.classifier.weight.device
        omics_NG = torch.from_numpy(summary.omics_NG).to(device)
        labels_N = torch.from_numpy(summary.omics_labels_N).to(device)
        self.teacher.requires_grad_(True)
        optimiser = AdamW(self.teacher.parameters(), lr=TEACHER_LR, weight_decay=TEACHER_DECAY)
        with torch.enable_grad():
            for _ in range(TEACHER_STEPS):
                optimiser.zero_grad()
                F.cross_entropy(self.teacher(omics_NG)[1], labels_N).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        optimiser.zero_grad()
        self.teacher.requires_grad_(False)

    def forward(self, batch: BagBatch) -> StudentOutput:
        """Classifies the slides; the teacher classifies the omics if the model is training."""
        attention_P, pooled_BH = self.pool(batch, self.draw_dropout(batch))
        teacher_RY = None
        if self.training and batch.omics_RG is not None:
            teacher_RY = self.teacher(batch.omics_RG)[1]
        return StudentOutput(self.classifier(pooled_BH), attention_P, teacher_RY)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes cross-entropy, distillation loss and their weighted total per bag (B,)."""
        assert isinstance(output, StudentOutput)
        ce_B = self.cross_entropy(output.logits_BY, batch)
        if output.teacher_logits_RY is None or batch.omics_bag_R is None:
            return {"ce": ce_B, "soft_labels": torch.zeros_like(ce_B), "total": ce_B}
        teacher_RY = (output.teacher_logits_RY / TEMPERATURE).log_softmax(dim=-1)
        student_RY = (output.logits_BY[batch.omics_bag_R] / TEMPERATURE).log_softmax(dim=-1)
        divergence_R = (teacher_RY.exp() * (teacher_RY - student_RY)).sum(dim=-1) * TEMPERATURE**2
        soft_B = scatter_rows(divergence_R, batch.omics_bag_R, len(batch))
        weight_B = scatter_rows(torch.full_like(divergence_R, SOFT_WEIGHT), batch.omics_bag_R, len(batch))
        return {"ce": ce_B, "soft_labels": soft_B, "total": (1 - weight_B) * ce_B + weight_B * soft_B}
