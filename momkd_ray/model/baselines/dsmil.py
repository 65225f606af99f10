"""DSMIL: dual-stream MIL (Li, Li, Eliceiri 2021, arXiv 2011.08939)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import pool_by_attention, rank_in_bag
from momkd_ray.model.baselines.slide_classifier import SlideModel, SlideOutput
from momkd_ray.model.explain import Readout
from momkd_ray.model.kernels.linear import Linear

QUERY_WIDTH = 128  # of q, as in the authors' experiments


@dataclass(frozen=True)
class DSMILOutput(SlideOutput):
    """The result of one forward pass, with each stream's score of class 1."""

    critical_B: Tensor
    bag_B: Tensor


class DSMIL(SlideModel):
    """Scores a bag by its critical patch and by attention to it, and averages the two streams.

    First stream: `c_m = max_p W_0 h_p`, whose patch m is the critical one. Second stream: `c_b = W_b sum_p u_p h_p`
    with `u = softmax_p <q_p, q_m> / sqrt(d)`, q = W_q h. The score of class 1 is (c_m + c_b) / 2 (equations 3 to 7).
    """

    loss_names = ("critical", "bag", "total")

    def __init__(self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes)
        self.query = Linear(model.hidden, QUERY_WIDTH)
        self.patch_classifier = nn.Linear(model.hidden, 1)
        self.bag_classifier = nn.Linear(model.hidden, 1)

    def forward(self, batch: BagBatch) -> DSMILOutput:
        """Computes both streams."""
        h_PH = self.embed(batch, self.draw_dropout(batch))
        score_P = self.patch_classifier(h_PH)[:, 0]
        critical_B = (rank_in_bag(score_P, batch) == 0).nonzero()[:, 0]  # one per bag, in their order
        query_PF = self.query(h_PH)
        similarity_P = (query_PF * query_PF[critical_B][batch.bag_of_patch_P]).sum(dim=1) / QUERY_WIDTH**0.5
        attention_P, pooled_BH = pool_by_attention(similarity_P, h_PH, batch.bag_of_patch_P, len(batch))
        critical_score_B, bag_score_B = score_P[critical_B], self.bag_classifier(pooled_BH)[:, 0]
        mean_B = (critical_score_B + bag_score_B) / 2
        logits_BY = torch.stack([torch.zeros_like(mean_B), mean_B], dim=1)
        return DSMILOutput(logits_BY, attention_P, critical_score_B, bag_score_B)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how the second stream pools one bag; the score of the critical patch counts as a constant."""
        output = self(batch)
        assert output.attention_P is not None

        def classify(pooled_NH: Tensor) -> Tensor:
            mean_N = (output.critical_B + self.bag_classifier(pooled_NH)[:, 0]) / 2
            return torch.stack([torch.zeros_like(mean_N), mean_N], dim=1)

        return Readout(self.embed(batch, {}), output.attention_P, classify)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy of each stream and their mean per bag (B,)."""
        assert isinstance(output, DSMILOutput) and batch.labels_B is not None
        target_B = batch.labels_B.to(output.bag_B.dtype)
        critical_B = F.binary_cross_entropy_with_logits(output.critical_B, target_B, reduction="none")
        bag_B = F.binary_cross_entropy_with_logits(output.bag_B, target_B, reduction="none")
        return {"critical": critical_B, "bag": bag_B, "total": (critical_B + bag_B) / 2}
