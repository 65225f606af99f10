"""The class memory by tissue component: component k of every class is about tissue component k (docs/method.md §9)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_ray.model.memory import MomentumMemory


class ComponentMemory(MomentumMemory):
    """A momentum memory whose evidence says which component of which class each vector is for, and how much."""

    def omics_weights(self, omics_RS: Tensor, share_RY: Tensor) -> Tensor:
        """Returns the weights (R, Y K) of omics: each class's share, divided among its components by nearness."""
        similarity_RYK = torch.einsum("rs,yks->ryk", omics_RS, self.components)
        weights_RYK = F.softmax(self.sharpness * similarity_RYK, dim=-1) * share_RY[:, :, None]
        return weights_RYK.flatten(1)

    @torch.no_grad()
    def update(self, evidence_NS: Tensor, weights_NC: Tensor, /, bags: int) -> None:
        """Moves the `ema` memory by one global step; see `MomentumMemory.update`. No component is re-seeded.

        Args:
            evidence_NS: unit vectors of this rank's bags.
            weights_NC: (N, Y K), the weight of each vector for every component.
            bags: number of this rank's bags in the step; may be 0.
        """
        if self.rule != "ema":
            return
        if not len(evidence_NS):
            weights_NC = evidence_NS.new_zeros(0, self.mass_YK.numel())
        added_YKS = (weights_NC.T @ evidence_NS).view_as(self.accumulator_YKS)
        self._move(added_YKS, weights_NC.sum(0).view_as(self.mass_YK), evidence_NS.new_zeros(0), bags)
