"""The momentum memory: K unit components per class, shared by histology and omics (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.config.sections import MemoryConfig

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all workers, in place, and returns it."""


def no_reduce(x: Tensor) -> Tensor:
    """Returns the tensor unchanged: the all-reduce of a single process."""
    return x


class MomentumMemory(nn.Module):
    """Class memory (Y, K, S) under one of three update rules; all of its state is in `state_dict` (docs/method.md §4).

    - `ema`: a linear accumulator s (Y, K, S) and masses (Y, K), moved by `update`; components c = s / ||s||.
    - `gradient`: a parameter moved by the optimiser (the released code); its norm is free.
    - `fixed`: never moves after initialisation (the paper's ablation).

    Args:
        config: the configuration's `memory` section.
        classes: Y.
        width: S.
    """

    accumulator_YKS: Tensor
    mass_YK: Tensor
    updates: Tensor
    jitter_YKS: Tensor
    raw_buffer_YKS: Tensor

    def __init__(self, config: MemoryConfig, classes: int, width: int) -> None:
        super().__init__()
        self.rule = config.rule
        self.momentum = config.momentum
        self.sharpness = config.sharpness
        self.reseed = config.reseed
        self.sync: AllReduce = no_reduce
        shape = (classes, config.components, width)
        start_YKS = F.normalize(torch.randn(shape), dim=-1)
        if self.rule == "ema":
            self.register_buffer("accumulator_YKS", torch.zeros(shape))
            self.register_buffer("mass_YK", torch.zeros(shape[:2]))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
            # small constant offsets keep components apart that are re-seeded from the same evidence
            jitter = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1 / width**0.5
            self.register_buffer("jitter_YKS", jitter, persistent=False)
        elif self.rule == "gradient":
            self.raw_parameter_YKS = nn.Parameter(start_YKS)
        else:
            self.register_buffer("raw_buffer_YKS", start_YKS)
        self.initialise(start_YKS)

    @torch.no_grad()
    def initialise(self, components_YKS: Tensor) -> None:
        """Sets the components; under `ema` all get the same mass."""
        if self.rule == "ema":
            mass = 1.0 / (components_YKS.shape[0] * components_YKS.shape[1])
            self.mass_YK.fill_(mass)
            self.accumulator_YKS.copy_(F.normalize(components_YKS, dim=-1) * mass)
            self.updates.zero_()
        else:
            self.raw_YKS.copy_(components_YKS)

    @property
    def raw_YKS(self) -> Tensor:
        """The stored components (Y, K, S); un-normalised under `gradient`."""
        if self.rule == "ema":
            return F.normalize(self.accumulator_YKS, dim=-1)
        return self.raw_parameter_YKS if self.rule == "gradient" else self.raw_buffer_YKS

    @property
    def components(self) -> Tensor:
        """The unit components c (Y, K, S)."""
        return self.raw_YKS if self.rule == "ema" else F.normalize(self.raw_YKS, dim=-1)

    @torch.no_grad()
    def update(self, evidence_NS: Tensor, labels_N: Tensor, /, bags: int) -> None:
        """Moves the `ema` memory by one global step; does nothing under the other rules (docs/method.md §4).

        Each rank updates its accumulator with the mean over its own bags; one all-reduce then averages the ranks'
        accumulators, weighted by their numbers of bags. As the accumulator is linear, the result is the moving
        average over the global batch, for every division of it among ranks.

        Args:
            evidence_NS: unit vectors of this rank's bags: of every slide, and of the omics of patients that have them.
            labels_N: class of each vector.
            bags: number of this rank's bags in the step; may be 0.
        """
        if self.rule != "ema":
            return
        labels_NY = F.one_hot(labels_N, len(self.mass_YK)).to(evidence_NS.dtype)
        similarity_NYK = torch.einsum("ns,yks->nyk", evidence_NS, self.components)
        responsibility_NYK = F.softmax(self.sharpness * similarity_NYK, dim=-1) * labels_NY[:, :, None]
        added_YKS = torch.einsum("nyk,ns->yks", responsibility_NYK, evidence_NS)
        evidence_YS = self._move(added_YKS, responsibility_NYK.sum(0), labels_NY.T @ evidence_NS, bags)
        self._reseed(evidence_YS)

    def _move(self, added_YKS: Tensor, added_YK: Tensor, evidence_YS: Tensor, bags: int) -> Tensor:
        """Averages the ranks' moved accumulators in one all-reduce; a class without evidence does not decay.

        Args:
            added_YKS: this rank's evidence for every component.
            added_YK: its mass.
            evidence_YS: is summed over the ranks beside them.
            bags: number of this rank's bags.

        Returns:
            The sum of `evidence_YS`.
        """
        m, count = self.momentum, float(bags)
        parts = (
            m * count * self.accumulator_YKS + (1 - m) * added_YKS,
            m * count * self.mass_YK + (1 - m) * added_YK,
            evidence_YS,
            added_YK.sum(1),
            added_YK.new_full((1,), count),
        )
        packed = self.sync(torch.cat([part.flatten() for part in parts]))
        accumulator, mass, evidence, present_Y, total = torch.split(packed, [part.numel() for part in parts])
        moved_YKS, moved_YK = (accumulator / total).view_as(added_YKS), (mass / total).view_as(added_YK)
        has_evidence_Y1 = present_Y[:, None] > 0
        self.accumulator_YKS.copy_(torch.where(has_evidence_Y1[:, :, None], moved_YKS, self.accumulator_YKS))
        self.mass_YK.copy_(torch.where(has_evidence_Y1, moved_YK, self.mass_YK))
        self.updates += 1
        return evidence.view_as(evidence_YS)

    def _reseed(self, evidence_YS: Tensor) -> None:
        """Re-seeds the weakest component of each class from the step's evidence if its mass is below the threshold."""
        mean_Y1 = self.mass_YK.mean(dim=1, keepdim=True)
        weakest_YK = F.one_hot(self.mass_YK.argmin(dim=1), self.mass_YK.shape[1]).bool()
        has_evidence_Y1 = evidence_YS.norm(dim=1, keepdim=True) > 0
        reseeded_YK = weakest_YK & (self.mass_YK < self.reseed * mean_Y1) & has_evidence_Y1
        new_YKS = F.normalize(F.normalize(evidence_YS, dim=-1)[:, None] + self.jitter_YKS, dim=-1)
        new_YKS = new_YKS * mean_Y1[:, :, None]
        self.accumulator_YKS.copy_(torch.where(reseeded_YK[:, :, None], new_YKS, self.accumulator_YKS))
        self.mass_YK.copy_(torch.where(reseeded_YK, mean_Y1, self.mass_YK))


@torch.no_grad()
def spherical_kmeans(x_NS: Tensor, start_K: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Clusters points on the unit sphere by spherical k-means (docs/method.md §4, initialisation).

    Args:
        x_NS: points, normalised here.
        start_K: indices of the points that serve as initial centroids.
        iterations: rounds of assignment to the nearest centroid by cosine and of new means.

    Returns:
        Unit centroids (K, S), and the last assignment of each point (N,). A centroid without points does not move.
    """
    x_NS = F.normalize(x_NS, dim=-1)
    centroids_KS = x_NS[start_K].clone()
    assigned_N = torch.zeros(len(x_NS), dtype=torch.int64, device=x_NS.device)
    for _ in range(iterations):
        assigned_N = (x_NS @ centroids_KS.T).argmax(dim=1)
        sums_KS = torch.zeros_like(centroids_KS).index_add_(0, assigned_N, x_NS)
        empty_K = torch.bincount(assigned_N, minlength=len(centroids_KS)) == 0
        centroids_KS = torch.where(empty_K[:, None], centroids_KS, F.normalize(sums_KS, dim=-1))
    return centroids_KS, assigned_N
