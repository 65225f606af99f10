"""DSMIL: dual-stream MIL (Li, Li, Eliceiri 2021, arXiv 2011.08939)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import own_patches
from momkd_ray.model.baselines.slide_classifier import SlideModel, SlideOutput
from momkd_ray.model.explain import Readout
from momkd_ray.model.kernels.linear import Linear

QUERY_WIDTH = 128  # of q, as in the authors' experiments


@dataclass(frozen=True)
class DSMILOutput(SlideOutput):
    """The result of one forward pass, with each stream's scores: of class 1 alone, or of each of several classes.

    `attention_PC` is the attention of each score.
    """

    critical_BC: Tensor
    bag_BC: Tensor
    attention_PC: Tensor


class DSMIL(SlideModel):
    """Scores a bag by its critical patch and by attention to it, and averages the two streams.

    First stream: `c_m = max_p W_0 h_p`, whose patch m is the critical one. Second stream: `c_b = W_b sum_p u_p h_p`
    with `u = softmax_p <q_p, q_m> / sqrt(d)`, q = W_q h. The score of class 1 is (c_m + c_b) / 2 (equations 3 to 7). Of
    more than two classes each has its own W_0, W_b, critical patch and attention, and the classes exclude each other.

    Shape suffix: C scores, 1 for two classes or else Y.
    """

    loss_names = ("critical", "bag", "total")

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        scores = 1 if classes == 2 else classes
        self.query = Linear(model.hidden, QUERY_WIDTH)
        self.patch_classifier = nn.Linear(model.hidden, scores)
        self.bag_classifier = nn.Linear(model.hidden, scores)

    def forward(self, batch: BagBatch) -> DSMILOutput:
        """Computes both streams; the attention is the mean of the classes'."""
        h_PH = self.embed(batch, self.draw_dropout(batch))
        score_PC, query_PF = self.patch_classifier(h_PH), self.query(h_PH)
        own_BP = own_patches(batch.bag_of_patch_P, len(batch))
        attention, critical, bag = [], [], []
        for c in range(score_PC.shape[1]):
            critical_B = torch.where(own_BP, score_PC[:, c], -torch.inf).argmax(dim=1)
            # each bag's critical patch with all patches: a gather for every patch takes longer, above all backward
            similarity_BP = query_PF[critical_B] @ query_PF.T / QUERY_WIDTH**0.5
            attention_BP = torch.where(own_BP, similarity_BP, -torch.inf).softmax(dim=1)
            attention.append(attention_BP.sum(0))
            critical.append(score_PC[critical_B, c])
            bag.append(self.bag_classifier(attention_BP @ h_PH)[:, c])
        attention_PC = torch.stack(attention, dim=1)
        critical_BC, bag_BC = torch.stack(critical, dim=1), torch.stack(bag, dim=1)
        attention_P = attention_PC[:, 0] if len(attention) == 1 else attention_PC.mean(dim=1)
        return DSMILOutput(_logits((critical_BC + bag_BC) / 2), attention_P, critical_BC, bag_BC, attention_PC)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how the second stream pools one bag; the score of the critical patch counts as a constant."""
        output = self(batch)
        assert output.attention_P is not None
        if self.classes == 2:
            return Readout(
                self.embed(batch, {}),
                output.attention_P,
                lambda pooled_NH: _logits((output.critical_BC + self.bag_classifier(pooled_NH)) / 2),
            )
        # each class has its own attention: a patch is worth its score by its share of the mean attention
        own_PC = self.embed(batch, {}) @ self.bag_classifier.weight.T * output.attention_PC
        value_PC = own_PC / output.attention_P[:, None].clamp(min=1e-30)
        constant_1C = output.critical_BC + self.bag_classifier.bias
        return Readout(value_PC, output.attention_P, lambda pooled_NC: (constant_1C + pooled_NC) / 2)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy of each stream and their mean per bag (B,)."""
        assert isinstance(output, DSMILOutput) and batch.labels_B is not None
        if self.classes == 2:
            target_B = batch.labels_B.to(output.bag_BC.dtype)
            critical_B, bag_B = (
                F.binary_cross_entropy_with_logits(score_BC[:, 0], target_B, reduction="none")
                for score_BC in (output.critical_BC, output.bag_BC)
            )
        else:
            critical_B = F.cross_entropy(output.critical_BC, batch.labels_B, reduction="none")
            bag_B = F.cross_entropy(output.bag_BC, batch.labels_B, reduction="none")
        return {"critical": critical_B, "bag": bag_B, "total": (critical_B + bag_B) / 2}


def _logits(score_BC: Tensor) -> Tensor:
    """Returns the logits (B, Y): of two classes, class 0 has the score 0."""
    return torch.cat([torch.zeros_like(score_BC), score_BC], dim=1) if score_BC.shape[1] == 1 else score_BC
