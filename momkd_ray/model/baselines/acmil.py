"""ACMIL: attention-challenging MIL (Zhang et al. 2023, arXiv 2311.07125).

Shape suffixes beyond those of `model/momkd.py`: J attention branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import rank_in_bag
from momkd_ray.model.baselines.slide_classifier import AttentionScore, SlideModel, SlideOutput, linear_classifier
from momkd_ray.model.dropout import Dropout, Layers
from momkd_ray.model.explain import Readout

BRANCHES = 5  # M of the paper
MASKED_PATCHES, MASKING = 10, 0.6  # K and p of the paper's stochastic top-K instance masking
ATTENTION_WIDTH = 128


@dataclass(frozen=True)
class ACMILOutput(SlideOutput):
    """The result of one forward pass, with the logits and the attention of each branch."""

    branch_logits_BJY: Tensor
    branch_attention_BJP: Tensor


class ACMIL(SlideModel):
    """Several branches of gated attention that must differ, and random masking of the patches with most attention.

    Multiple branch attention: each branch pools and classifies the bag (loss L_p), and the cosine between two
    branches' attentions is a loss (L_d, equation 6). Stochastic top-K instance masking: while training, each of a
    branch's K patches of highest attention is masked with probability p, and the rest is renormalised. The bag is
    pooled by the mean of the branches' attention (equation 7). Total: L_b + L_p + L_d (equation 8).
    """

    loss_names = ("ce", "branches", "diversity", "total")

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.score = AttentionScore(model.hidden, ATTENTION_WIDTH, gated=True, branches=BRANCHES)
        self.branch_classifiers = nn.ModuleList([linear_classifier(model.hidden, classes) for _ in range(BRANCHES)])
        self.classifier = linear_classifier(model.hidden, classes)

    def forward(self, batch: BagBatch) -> ACMILOutput:
        """Pools and classifies the bags by every branch and by all together."""
        dropout = self.draw_dropout(batch)
        h_PH = self.embed(batch, dropout)
        score_PJ = self.score(h_PH)
        if (draws := dropout.get("masking")) is not None:
            score_PJ = score_PJ.masked_fill(self._masked(score_PJ, draws, batch), -torch.inf)
        own_BP = batch.bag_of_patch_P == torch.arange(len(batch), device=score_PJ.device)[:, None]
        attention_BJP = torch.where(own_BP[:, None], score_PJ.T, -torch.inf).softmax(dim=2)
        pooled_BJH = attention_BJP @ h_PH
        branch_logits_BJY = torch.stack([c(pooled_BJH[:, j]) for j, c in enumerate(self.branch_classifiers)], dim=1)
        logits_BY = self.classifier(pooled_BJH.mean(dim=1))
        return ACMILOutput(logits_BY, attention_BJP.mean(dim=1).sum(dim=0), branch_logits_BJY, attention_BJP)

    def _masked(self, score_PJ: Tensor, draws: Dropout, batch: BagBatch) -> Tensor:
        """Draws which patches each branch does not see (P, J); every bag keeps its patch of lowest attention."""
        highest_PJ = torch.stack([rank_in_bag(score_P, batch) for score_P in score_PJ.unbind(1)], dim=1)
        masked_B = (batch.patches_B.long() - 1).clamp(max=MASKED_PATCHES)
        return (highest_PJ < masked_B[batch.bag_of_patch_P][:, None]) & (draws.keep(score_PJ.shape[1]) == 0)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how the mean of the branches pools one bag."""
        h_PH = self.embed(batch, {})
        return Readout(h_PH, self.score(h_PH).softmax(dim=0).mean(dim=1), self.classifier)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the losses of bag, branches and diversity and their sum per bag (B,)."""
        assert isinstance(output, ACMILOutput) and batch.labels_B is not None
        ce_B = self.cross_entropy(output.logits_BY, batch)
        labels_N = batch.labels_B.repeat_interleave(BRANCHES)
        ce_N = F.cross_entropy(output.branch_logits_BJY.flatten(0, 1), labels_N, reduction="none")
        branches_B = ce_N.view(len(batch), BRANCHES).mean(dim=1)
        unit_BJP = F.normalize(output.branch_attention_BJP, dim=-1)
        cosine_BJJ = unit_BJP @ unit_BJP.transpose(1, 2)
        pairs = BRANCHES * (BRANCHES - 1)
        diversity_B = (cosine_BJJ.sum(dim=(1, 2)) - cosine_BJJ.diagonal(dim1=1, dim2=2).sum(dim=1)) / pairs
        total_B = ce_B + branches_B + diversity_B
        return {"ce": ce_B, "branches": branches_B, "diversity": diversity_B, "total": total_B}

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the embedded patches, and the masking of each branch's patches."""
        return {**super().dropout_layers(batch), "masking": (batch.patches_per_bag, MASKING)}
