"""Mean pooling and max pooling with logistic regression, the simplest baselines."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import mean_by_bag
from momkd_ray.model.baselines.slide_classifier import SlideOutput
from momkd_ray.model.interface import MILModel, TrainingSummary

MIN_SD = 1e-6  # a feature that varies less over the training bags is centred only


class MeanPool(MILModel):
    """Logistic regression on the standardised mean of a bag's patch features.

    `y = W (mean_p x_p - m) / s + b`, with m and s the mean and standard deviation over the training bags.
    """

    needs_bag_means: ClassVar[bool] = True
    mean_D: Tensor
    scale_D: Tensor

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))
        self.classifier = nn.Linear(width, classes)

    def prepare(self, summary: TrainingSummary) -> None:
        """Takes the mean and standard deviation of the training bags' mean features."""
        means_ND = summary.means_ND.astype(np.float64)
        sd_D = means_ND.std(axis=0)
        scale_D = np.where(sd_D > MIN_SD, 1 / np.maximum(sd_D, MIN_SD), 1.0)
        self.mean_D.copy_(torch.from_numpy(means_ND.mean(axis=0)))
        self.scale_D.copy_(torch.from_numpy(scale_D))

    def pool(self, batch: BagBatch) -> Tensor:
        """Pools the features of each bag: (B, D)."""
        return mean_by_bag(batch.features_PD.float(), batch)

    def forward(self, batch: BagBatch) -> SlideOutput:
        """Classifies the pooled bags."""
        return SlideOutput(self.classifier((self.pool(batch) - self.mean_D) * self.scale_D), None)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy per bag (B,)."""
        assert batch.labels_B is not None, "losses need labels"
        ce_B = F.cross_entropy(output.logits_BY, batch.labels_B, reduction="none")
        return {"ce": ce_B, "total": ce_B}


class MaxPool(MeanPool):
    """Logistic regression on the largest value of each feature over a bag's patches, on the scale of `MeanPool`."""

    def pool(self, batch: BagBatch) -> Tensor:
        """Pools the features of each bag: (B, D)."""
        bags = torch.split(batch.features_PD.float(), list(batch.patches_per_bag))
        return torch.stack([x_QD.amax(dim=0) for x_QD in bags])
