"""What each patch of a bag contributes to its prediction, for every model that pools patches by attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXACT_ABOVE = 0.01  # attention from which a patch is left out in fact rather than to first order; at most 100 patches

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Readout:
    """How a model in evaluation mode gets from the encoded patches of one bag to its logits.

    Attributes:
        patches_PH: what is pooled.
        attention_P: the weights of the pooling, which sum to 1.
        classify: maps pooled vectors (N, H) to logits (N, Y).
        similarity_PYK: cosine of every patch with every memory component; None without a memory.
    """

    patches_PH: Tensor
    attention_P: Tensor
    classify: Callable[[Tensor], Tensor]
    similarity_PYK: Tensor | None = None

    @property
    def pooled_1H(self) -> Tensor:
        """The pooled bag."""
        return self.attention_P[None] @ self.patches_PH


@dataclass(frozen=True)
class Explanation:
    """Attention, contributions and nearest memory components of the patches of one bag.

    Attributes:
        logits_Y: the bag's logits.
        attention_P: attention, which sums to 1.
        contribution_PY: by how much each logit falls when the patch alone is left out of the pooling; NaN for the only
            patch of a bag.
        component_P: index y K + k of the nearest memory component; None without a memory.
        similarity_P: cosine with that component.
        components: K.
    """

    logits_Y: Floats
    attention_P: Floats
    contribution_PY: Floats
    component_P: NDArray[np.int64] | None
    similarity_P: Floats | None
    components: int


def explain(readout: Readout) -> Explanation:
    """Computes attention, contributions and nearest memory components of one bag's patches."""
    nearest_P = similarity_P = None
    if readout.similarity_PYK is not None:
        similarity_P, nearest_P = readout.similarity_PYK.flatten(1).max(dim=1)
    return Explanation(
        logits_Y=_array(readout.classify(readout.pooled_1H)[0]),
        attention_P=_array(readout.attention_P),
        contribution_PY=_array(contributions(readout)),
        component_P=None if nearest_P is None else nearest_P.cpu().numpy(),
        similarity_P=None if similarity_P is None else _array(similarity_P),
        components=0 if readout.similarity_PYK is None else readout.similarity_PYK.shape[2],
    )


def contributions(readout: Readout) -> Tensor:
    """Computes by how much each logit falls when a patch is left out and the others' attention is renormalised.

    The pooled bag without patch p is V - a_p (h_p - V) / (1 - a_p). Where a_p is small the change of the logits is
    taken to first order, whose error is a_p times the contribution; elsewhere the classifier is applied to that
    vector. How a patch alters the encoding of its neighbours is not counted.

    Returns:
        (P, Y); NaN for the only patch of a bag.
    """
    attention_P, patches_PH = readout.attention_P.detach(), readout.patches_PH.detach()
    pooled_1H = readout.pooled_1H.detach().requires_grad_()
    with torch.enable_grad():
        logits_1Y = readout.classify(pooled_1H)
        gradient_YH = torch.cat(
            [torch.autograd.grad(logit, pooled_1H, retain_graph=True)[0] for logit in logits_1Y.unbind(1)]
        )
    pooled_1H = pooled_1H.detach()
    offset_PY = patches_PH @ gradient_YH.T - pooled_1H @ gradient_YH.T
    with torch.no_grad():
        result_PY = (attention_P / (1 - attention_P))[:, None] * offset_PY
        for p in (attention_P > EXACT_ABOVE).nonzero()[:, 0].tolist():
            others_P = attention_P.clone()
            others_P[p] = 0
            left_out_1H = (others_P[None] @ patches_PH) / others_P.sum()
            result_PY[p] = (logits_1Y - readout.classify(left_out_1H))[0]
    return result_PY


def _array(x: Tensor) -> Floats:
    return x.detach().float().cpu().numpy()
