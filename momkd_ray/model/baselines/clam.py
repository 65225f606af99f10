"""CLAM with a single attention branch (Lu et al. 2021, arXiv 2004.09666)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.abmil import GatedABMIL
from momkd_ray.model.baselines.segments import pool_by_attention, rank_in_bag, sum_by_bag
from momkd_ray.model.baselines.slide_classifier import SlideOutput

SAMPLED_PATCHES = 8  # B of the paper
BAG_WEIGHT = 0.7  # c_1 of the paper; the instance loss has 1 - c_1
MARGIN, TEMPERATURE = 1.0, 1.0  # of the smooth SVM loss


@dataclass(frozen=True)
class CLAMOutput(SlideOutput):
    """The result of one forward pass, with the patches' embeddings."""

    h_PH: Tensor


class CLAMSB(GatedABMIL):
    """Gated attention pooling with clustering of the patches of highest and lowest attention.

    Each class has its own classifier of patches. For the bag's class, the B patches of highest attention are positive
    and the B of lowest are negative; for the other classes, those of highest attention are negative. The loss of a
    patch is the smooth top-1 SVM loss (paper, Methods, "Instance-level clustering" and "Smooth SVM loss").
    """

    loss_names = ("ce", "instance", "total")

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.patch_classifiers = nn.ModuleList([nn.Linear(model.hidden, 2) for _ in range(classes)])

    def forward(self, batch: BagBatch) -> CLAMOutput:
        """Pools and classifies the bags."""
        h_PH = self.embed(batch, self.draw_dropout(batch))
        attention_P, pooled_BH = pool_by_attention(self.score(h_PH)[:, 0], h_PH, batch.bag_of_patch_P, len(batch))
        return CLAMOutput(self.classifier(pooled_BH), attention_P, h_PH)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes cross-entropy, instance loss and their weighted total per bag (B,)."""
        assert isinstance(output, CLAMOutput)
        ce_B = self.cross_entropy(output.logits_BY, batch)
        instance_B = self.instance_loss(output, batch)
        return {"ce": ce_B, "instance": instance_B, "total": BAG_WEIGHT * ce_B + (1 - BAG_WEIGHT) * instance_B}

    def instance_loss(self, output: CLAMOutput, batch: BagBatch) -> Tensor:
        """Computes the mean loss of each class's classifier over its patches, averaged over classes, per bag (B,)."""
        assert batch.labels_B is not None and output.attention_P is not None
        bag_P, sizes_B = batch.bag_of_patch_P, batch.patches_B.long()
        rank_P = rank_in_bag(output.attention_P, batch)
        sampled_B = sizes_B.clamp(max=SAMPLED_PATCHES)
        highest_N = (rank_P < sampled_B[bag_P]).nonzero()[:, 0]
        lowest_N = (rank_P >= (sizes_B - sampled_B)[bag_P]).nonzero()[:, 0]
        patch_N = torch.cat([highest_N, lowest_N])
        is_highest_N = torch.arange(len(patch_N), device=patch_N.device) < len(highest_N)
        bag_N, h_NH = bag_P[patch_N], output.h_PH[patch_N]
        total_B = h_NH.new_zeros(len(batch))
        for y, classifier in enumerate(self.patch_classifiers):
            own_N = (batch.labels_B == y)[bag_N]
            loss_N = smooth_svm(classifier(h_NH), (own_N & is_highest_N).long())
            # the bag's own class has 2 B patches, another class B
            share_N = (own_N | is_highest_N) / (sampled_B[bag_N] * (1 + own_N.long()))
            total_B = total_B + sum_by_bag(share_N * loss_N, bag_N, len(batch))
        return total_B / self.classes


def smooth_svm(logits_NY: Tensor, target_N: Tensor) -> Tensor:
    """Computes the smooth top-1 SVM loss (N,) (Berrada et al. 2018, arXiv 1802.07595, equation 8).

    `tau log sum_j exp((s_j - s_y + margin [j != y]) / tau)`.
    """
    other_NY = 1 - F.one_hot(target_N, logits_NY.shape[1])
    target_logit_N1 = logits_NY.gather(1, target_N[:, None])
    return TEMPERATURE * ((logits_NY - target_logit_N1 + MARGIN * other_NY) / TEMPERATURE).logsumexp(dim=1)
