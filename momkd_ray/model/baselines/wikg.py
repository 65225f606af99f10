"""WiKG: a knowledge graph between patches, built dynamically (Li et al. 2024, arXiv 2403.07719).

Shape suffixes beyond those of `model/momkd.py`: J neighbours of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.segments import mean_by_bag, pool_by_attention
from momkd_ray.model.baselines.slide_classifier import SlideModel, SlideOutput, linear_classifier
from momkd_ray.model.dropout import Dropout
from momkd_ray.model.explain import Readout
from momkd_ray.model.kernels.linear import Linear

NEIGHBOURS = 6  # k of the paper
CHUNK_PATCHES = 1024  # patches whose similarities to all patches of their bags are held at a time


class WiKG(SlideModel):
    """Attention between each patch and the k patches whose tails are most similar to its head.

    With `h = W_h x` (head) and `t = W_t x` (tail): the k nearest by `<h_i, t_j> / sqrt(H)`, whose softmax is w_ij;
    the edge `r_ij = w_ij t_j + (1 - w_ij) h_i`; knowledge-aware attention `u_ij = <t_j, tanh(h_i + r_ij)>`, whose
    softmax pools the tails to n_i; and the update `leaky(W_1 (h_i + n_i)) + leaky(W_2 (h_i * n_i))` (equations 2 to 8).
    The slide is read out by attention. The similarities are computed for a chunk of patches at a time, without
    gradient, and again with it for the k chosen: memory is linear in the patches.
    """

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        hidden = model.hidden
        self.head, self.tail = Linear(hidden, hidden), Linear(hidden, hidden)
        self.update_sum, self.update_product = Linear(hidden, hidden), Linear(hidden, hidden)
        self.read1, self.read2 = Linear(hidden, max(1, hidden // 2)), nn.Linear(max(1, hidden // 2), 1)
        self.norm = nn.LayerNorm(hidden)
        self.classifier = linear_classifier(hidden, classes)

    def forward(self, batch: BagBatch) -> SlideOutput:
        """Builds the graph, updates the patches and classifies the bags; the attention is that of the readout."""
        updated_PH, score_P = self._update(batch, self.draw_dropout(batch))
        attention_P, pooled_BH = pool_by_attention(score_P, updated_PH, batch.bag_of_patch_P, len(batch))
        return SlideOutput(self.classifier(self.norm(pooled_BH)), attention_P)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how one bag's updated patches are pooled and classified."""
        updated_PH, score_P = self._update(batch, {})
        return Readout(updated_PH, score_P.softmax(dim=0), lambda pooled_NH: self.classifier(self.norm(pooled_NH)))

    def _update(self, batch: BagBatch, dropout: dict[str, Dropout]) -> tuple[Tensor, Tensor]:
        """Computes the updated patches (P, H) and their scores (P,) for the readout."""
        x_PH = self.embed(batch, dropout)
        x_PH = (x_PH + mean_by_bag(x_PH, batch)[batch.bag_of_patch_P]) / 2  # patches begin with the slide's context
        head_PH, tail_PH = self.head(x_PH), self.tail(x_PH)
        neighbour_PJ, valid_PJ = nearest_tails(head_PH.detach(), tail_PH.detach(), batch)
        received_PH = knowledge_attention(head_PH, tail_PH, neighbour_PJ, valid_PJ)
        updated_PH = F.leaky_relu(self.update_sum(head_PH + received_PH)) + F.leaky_relu(
            self.update_product(head_PH * received_PH)
        )
        return updated_PH, self.read2(F.leaky_relu(self.read1(updated_PH)))[:, 0]


@torch.no_grad()
def nearest_tails(head_PH: Tensor, tail_PH: Tensor, batch: BagBatch) -> tuple[Tensor, Tensor]:
    """Finds for each patch the k patches of its own bag with the most similar tails.

    Returns:
        Their indices (P, J), and whether there is such a patch (P, J): a bag of fewer than k patches has fewer.
    """
    neighbours = min(NEIGHBOURS, max(batch.patches_per_bag))
    found, valid, start = [], [], 0
    bag_P, starts = batch.bag_of_patch_P, [0]
    for size in batch.patches_per_bag:
        starts.append(starts[-1] + size)
    bag = 0
    while start < len(head_PH):
        end = min(start + CHUNK_PATCHES, len(head_PH))
        while starts[bag + 1] <= start:
            bag += 1
        last = bag
        while starts[last + 1] < end:
            last += 1
        first_column, end_column = starts[bag], max(starts[last + 1], starts[bag] + neighbours)
        columns = slice(max(0, min(first_column, len(head_PH) - neighbours)), min(end_column, len(head_PH)))
        similarity_QP = head_PH[start:end] @ tail_PH[columns].T
        similarity_QP.masked_fill_(bag_P[start:end, None] != bag_P[columns], -torch.inf)
        top_QJ = similarity_QP.topk(neighbours, dim=1)
        found.append(top_QJ.indices + columns.start)
        valid.append(top_QJ.values > -torch.inf)
        start = end
    return torch.cat(found), torch.cat(valid)


def knowledge_attention(head_PH: Tensor, tail_PH: Tensor, neighbour_PJ: Tensor, valid_PJ: Tensor) -> Tensor:
    """Pools the neighbours' tails by knowledge-aware attention (equations 4 to 6): (P, H)."""
    patches, neighbours = neighbour_PJ.shape
    tail_PJH = tail_PH[neighbour_PJ.flatten()].view(patches, neighbours, -1)
    logit_PJ = torch.einsum("ph,pjh->pj", head_PH, tail_PJH) / head_PH.shape[1] ** 0.5
    weight_PJ1 = torch.where(valid_PJ, logit_PJ, -torch.inf).softmax(dim=1)[..., None]
    # h + r = h + w t + (1 - w) h, written so that one large tensor is kept for the gradient
    gate_PJH = torch.tanh(torch.lerp(2 * head_PH[:, None], head_PH[:, None] + tail_PJH, weight_PJ1))
    score_PJ = (tail_PJH * gate_PJH).sum(dim=-1)
    attention_PJ = torch.where(valid_PJ, score_PJ, -torch.inf).softmax(dim=1)
    return torch.einsum("pj,pjh->ph", attention_PJ, tail_PJH)
