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
    def update(self, evidence_NS: Tensor, labels_N: Tensor, bags: int) -> None:
        """Moves the `ema` memory by one global step; see `MomentumMemory.update`.

        Args:
            evidence_NS: unit vectors of this rank's bags.
            labels_N: (N, Y K) here: the weight of each vector for every component.
            bags: number of this rank's bags in the step; may be 0.
        """
        if self.rule != "ema":
            return
        accumulator_CS, mass_C = self.accumulator_YKS.flatten(0, 1), self.mass_YK.flatten()
        weights_NC = labels_N if len(evidence_NS) else evidence_NS.new_zeros(0, len(mass_C))
        self._move(weights_NC.T @ evidence_NS, weights_NC.sum(0), accumulator_CS, mass_C, float(bags))
        self.updates += 1

    def _move(self, moved_CS: Tensor, added_C: Tensor, accumulator_CS: Tensor, mass_C: Tensor, count: float) -> None:
        """Averages the ranks' moved accumulators; a class without evidence in the step does not decay."""
        m = self.momentum
        parts = (
            m * count * accumulator_CS + (1 - m) * moved_CS,
            m * count * mass_C + (1 - m) * added_C,
            added_C,
            added_C.new_full((1,), count),
        )
        packed = self.sync(torch.cat([part.flatten() for part in parts]))
        accumulator, mass, added, total = torch.split(packed, [part.numel() for part in parts])
        self._replace(accumulator / total, mass / total, added.view_as(self.mass_YK).sum(1) > 0)
