"""Operations on the patches of each bag of a batch, for all bags at once.

Shape suffixes beyond those of `model/momkd.py`: T segments (bags, or groups of a bag's patches), J attention branches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from momkd_ray.batches.collate import BagBatch


def own_patches(segment_P: Tensor, segments: int) -> Tensor:
    """Returns which rows belong to each segment (T, P)."""
    own_TP: Tensor = segment_P == torch.arange(segments, device=segment_P.device)[:, None]
    return own_TP


def pool_by_attention(score_P: Tensor, x_PF: Tensor, segment_P: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Pools rows by the softmax of their scores within each segment.

    Args:
        score_P: unnormalised scores.
        x_PF: rows to pool.
        segment_P: index of each row's segment; every segment has a row.
        segments: T.

    Returns:
        The attention (P,), which sums to 1 over each segment, and the pooled rows (T, F).
    """
    attention_TP = torch.where(own_patches(segment_P, segments), score_P, -torch.inf).softmax(dim=1)
    return attention_TP.sum(0), attention_TP @ x_PF


def mean_by_bag(x_PF: Tensor, batch: BagBatch) -> Tensor:
    """Averages rows (P, F) over each bag: (B, F)."""
    own_BP = (batch.bag_of_patch_P == torch.arange(len(batch), device=x_PF.device)[:, None]).to(x_PF.dtype)
    return own_BP @ x_PF / batch.patches_B[:, None]


def sum_by_bag(x_P: Tensor, bag_P: Tensor, bags: int) -> Tensor:
    """Sums values over each bag: (B,)."""
    return x_P.new_zeros(bags).index_add(0, bag_P, x_P)


def rank_in_bag(score_P: Tensor, batch: BagBatch) -> Tensor:
    """Returns each patch's rank (P,) within its bag by descending score, from 0; ties keep the patches' order."""
    by_score_P = score_P.detach().argsort(descending=True, stable=True)
    order_P = by_score_P[batch.bag_of_patch_P[by_score_P].argsort(stable=True)]
    starts_B = batch.patches_B.long().cumsum(0) - batch.patches_B.long()
    positions_P = torch.arange(len(score_P), device=score_P.device)
    ranks_P = positions_P - starts_B[batch.bag_of_patch_P]
    return torch.empty_like(ranks_P).index_copy_(0, order_P, ranks_P)
