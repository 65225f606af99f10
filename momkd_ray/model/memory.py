"""The class memory: K unit components a class, where histology and omics meet (method 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.config.sections import MemoryConfig

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all workers, in place, and returns it."""


def alone(x: Tensor) -> Tensor:
    """The all-reduce of a single process."""
    return x


class MomentumMemory(nn.Module):
    """Memory (Y, K, S) under one of three rules; all of its state is in `state_dict`.

    - `gradient`: a parameter that the optimiser moves (as released); it need not have unit norm.
    - `fixed`: stays as initialised (the paper's ablation).
    - `ema`: a linear accumulator s (Y, K, S) with masses (Y, K), moved by `update`; c = s / ||s||.
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
        self.sync: AllReduce = alone
        shape = (classes, config.components, width)
        start_YKS = F.normalize(torch.randn(shape), dim=-1)
        if self.rule == "ema":
            self.register_buffer("accumulator_YKS", torch.zeros(shape))
            self.register_buffer("mass_YK", torch.zeros(shape[:2]))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
            # fixed small directions keep components that start again from the same evidence apart
            jitter = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1 / width**0.5
            self.register_buffer("jitter_YKS", jitter, persistent=False)
        elif self.rule == "gradient":
            self.raw_parameter_YKS = nn.Parameter(start_YKS)
        else:
            self.register_buffer("raw_buffer_YKS", start_YKS)
        self.initialise(start_YKS)

    @torch.no_grad()
    def initialise(self, components_YKS: Tensor) -> None:
        """Start from given components, every one of a class with the same mass."""
        if self.rule == "ema":
            mass = 1.0 / (components_YKS.shape[0] * components_YKS.shape[1])
            self.mass_YK.fill_(mass)
            self.accumulator_YKS.copy_(F.normalize(components_YKS, dim=-1) * mass)
            self.updates.zero_()
        else:
            self.raw_YKS.copy_(components_YKS)

    @property
    def raw_YKS(self) -> Tensor:
        """The components as they are stored: un-normalised under `gradient`."""
        if self.rule == "ema":
            return F.normalize(self.accumulator_YKS, dim=-1)
        return self.raw_parameter_YKS if self.rule == "gradient" else self.raw_buffer_YKS

    @property
    def components(self) -> Tensor:
        """c (Y, K, S), unit norm."""
        return self.raw_YKS if self.rule == "ema" else F.normalize(self.raw_YKS, dim=-1)

    @torch.no_grad()
    def update(self, evidence_NS: Tensor, labels_N: Tensor, bags: int) -> None:
        """Move the `ema` memory by one global step; other rules stay (method 4).

        Each rank moves its accumulator by the mean over its own bags and the ranks' accumulators are then averaged,
        weighted by their numbers of bags, in one all-reduce. The accumulator being linear, this is the moving
        average over the global batch, however it was divided.

        Args:
            evidence_NS: unit vectors of this rank's bags: the slide's and, where there is one, the omics'.
            labels_N: the class of each.
            bags: this rank's bags in the step; may be 0.
        """
        if self.rule != "ema":
            return
        labels_NY = F.one_hot(labels_N, len(self.mass_YK)).to(evidence_NS.dtype)
        similarity_NYK = torch.einsum("ns,yks->nyk", evidence_NS, self.components)
        share_NYK = F.softmax(self.sharpness * similarity_NYK, dim=-1) * labels_NY[:, :, None]
        m, count = self.momentum, float(bags)
        weighted_YKS = m * count * self.accumulator_YKS + (1 - m) * torch.einsum("nyk,ns->yks", share_NYK, evidence_NS)
        weighted_YK = m * count * self.mass_YK + (1 - m) * share_NYK.sum(0)
        evidence_YS = labels_NY.T @ evidence_NS
        packed = torch.cat(
            [
                weighted_YKS.flatten(),
                weighted_YK.flatten(),
                evidence_YS.flatten(),
                evidence_NS.new_full((1,), count),
            ]
        )
        packed = self.sync(packed)
        sizes = [weighted_YKS.numel(), weighted_YK.numel(), evidence_YS.numel(), 1]
        accumulator, mass, evidence, total = torch.split(packed, sizes)
        self.accumulator_YKS.copy_((accumulator / total).view_as(self.accumulator_YKS))
        self.mass_YK.copy_((mass / total).view_as(self.mass_YK))
        self.updates += 1
        self._reseed(evidence.view_as(evidence_YS))

    def _reseed(self, evidence_YS: Tensor) -> None:
        """Start each class's weakest component again from the step's evidence if it has all but died out."""
        mean_Y1 = self.mass_YK.mean(dim=1, keepdim=True)
        weakest_YK = F.one_hot(self.mass_YK.argmin(dim=1), self.mass_YK.shape[1]).bool()
        seen_Y1 = evidence_YS.norm(dim=1, keepdim=True) > 0
        again_YK = weakest_YK & (self.mass_YK < self.reseed * mean_Y1) & seen_Y1
        fresh_YKS = F.normalize(F.normalize(evidence_YS, dim=-1)[:, None] + self.jitter_YKS, dim=-1)
        fresh_YKS = fresh_YKS * mean_Y1[:, :, None]
        self.accumulator_YKS.copy_(torch.where(again_YK[:, :, None], fresh_YKS, self.accumulator_YKS))
        self.mass_YK.copy_(torch.where(again_YK, mean_Y1, self.mass_YK))


@torch.no_grad()
def spherical_kmeans(x_NS: Tensor, start_K: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """k-means on the unit sphere (method 4, initialisation).

    Args:
        x_NS: points; their norms do not matter.
        start_K: the points that the centroids start from.
        iterations: assignments to the nearest centroid by cosine, each followed by new means.

    Returns:
        centroids (K, S) of unit norm, and each point's last assignment (N,). A centroid without points stays.
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
