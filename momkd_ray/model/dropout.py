"""Dropout that depends on each bag's own seed, so neither the batch nor the worker a bag falls to changes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class BagNoise:
    """The dropout masks of one forward pass over B bags, each bag drawing from a generator of its own.

    Masks come in the order in which the layers ask for them; the shapes asked for a bag depend on that bag alone.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def keep(self, rows_per_bag: Sequence[int], width: int, p: float) -> Tensor:
        """A mask (sum of rows, width) of 0 and 1 / (1 - p): each entry is dropped with probability p."""
        masks = [
            torch.empty(rows, width, device=self.device).bernoulli_(1 - p, generator=generator)
            for rows, generator in zip(rows_per_bag, self.generators, strict=True)
        ]
        return torch.cat(masks).div_(1 - p)


def dropped(x_NF: Tensor, rows_per_bag: Sequence[int], p: float, noise: BagNoise | None) -> Tensor:
    """`x_NF` after dropout; unchanged without noise or at p = 0."""
    if noise is None or p == 0:
        return x_NF
    return x_NF * noise.keep(rows_per_bag, x_NF.shape[1], p)
