"""DTFD-MIL: double-tier feature distillation over pseudo-bags (Zhang et al. 2022, arXiv 2203.12081)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import pool_by_attention, rank_in_bag, sum_by_bag
from momkd_ray.model.baselines.slide_classifier import AttentionScore, SlideModel, SlideOutput, linear_classifier
from momkd_ray.model.dropout import Dropout, Layers
from momkd_ray.model.explain import Readout

PSEUDO_BAGS = 5  # M of the paper's experiments
ATTENTION_WIDTH = 128


@dataclass(frozen=True)
class DTFDOutput(SlideOutput):
    """The result of one forward pass, with the logits of the pseudo-bags and the bag that each belongs to."""

    pseudo_logits_TY: Tensor
    bag_of_pseudo_T: Tensor


class DTFDMIL(SlideModel):
    """Attention pooling of pseudo-bags, and of what they pool.

    A bag's patches are divided at random into M pseudo-bags. Tier 1 pools and classifies each with the bag's label
    (equation 10); tier 2 pools the features of a bag's pseudo-bags by an attention of its own and classifies the bag
    (equation 11). The distilled feature is the pseudo-bag's pooled one: aggregated feature selection, the paper's AFS.
    Without training the division is by the patches' order.
    """

    loss_names = ("ce", "pseudo_bags", "total")

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.score1 = AttentionScore(model.hidden, ATTENTION_WIDTH, gated=True)
        self.score2 = AttentionScore(model.hidden, ATTENTION_WIDTH, gated=True)
        self.classifier1 = linear_classifier(model.hidden, classes)
        self.classifier2 = linear_classifier(model.hidden, classes)

    def forward(self, batch: BagBatch) -> DTFDOutput:
        """Pools and classifies pseudo-bags and bags."""
        dropout = self.draw_dropout(batch)
        h_PH = self.embed(batch, dropout)
        pseudo_P, bag_T = self.divide(batch, dropout.get("pseudo_bags"))
        attention1_P, pooled_TH = pool_by_attention(self.score1(h_PH)[:, 0], h_PH, pseudo_P, len(bag_T))
        attention2_T, pooled_BH = pool_by_attention(self.score2(pooled_TH)[:, 0], pooled_TH, bag_T, len(batch))
        attention_P = attention1_P * attention2_T[pseudo_P]
        return DTFDOutput(self.classifier2(pooled_BH), attention_P, self.classifier1(pooled_TH), bag_T)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how both tiers together pool one bag."""
        output = self(batch)
        assert output.attention_P is not None
        return Readout(self.embed(batch, {}), output.attention_P, self.classifier2)

    def divide(self, batch: BagBatch, draws: Dropout | None) -> tuple[Tensor, Tensor]:
        """Divides patches into pseudo-bags of almost equal sizes.

        Args:
            batch: the bags.
            draws: gives each patch a random number; None in evaluation mode.

        Returns:
            The pseudo-bag of each patch (P,) and the bag of each pseudo-bag (T,).
        """
        order_P = -torch.arange(len(batch.features_PD), device=batch.features_PD.device)
        # hash values stay below 2^32, so double precision holds them without ties
        rank_P = rank_in_bag(order_P if draws is None else draws.keys_N.double(), batch)
        counts_B = batch.patches_B.long().clamp(max=PSEUDO_BAGS)
        starts_B = counts_B.cumsum(0) - counts_B
        pseudo_P = starts_B[batch.bag_of_patch_P] + rank_P % counts_B[batch.bag_of_patch_P]
        bags_B = torch.arange(len(batch), device=counts_B.device)
        return pseudo_P, bags_B.repeat_interleave(
            counts_B, output_size=sum(min(n, PSEUDO_BAGS) for n in batch.patches_per_bag)
        )

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropies of bag and pseudo-bags and their sum per bag (B,)."""
        assert isinstance(output, DTFDOutput) and batch.labels_B is not None
        ce_B, bag_T = self.cross_entropy(output.logits_BY, batch), output.bag_of_pseudo_T
        ce_T = F.cross_entropy(output.pseudo_logits_TY, batch.labels_B[bag_T], reduction="none")
        pseudo_B = sum_by_bag(ce_T, bag_T, len(batch)) / batch.patches_B.clamp(max=PSEUDO_BAGS)
        return {"ce": ce_B, "pseudo_bags": pseudo_B, "total": ce_B + pseudo_B}

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the embedded patches, and the draws that divide them."""
        draws = (batch.patches_per_bag, 0.5)  # only the random keys of its rows are used
        return {**super().dropout_layers(batch), "pseudo_bags": draws}
