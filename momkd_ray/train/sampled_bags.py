"""Samples the bags from which a model is initialised, so that no large store is read for it as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray.seeds import derive_seed

MAX_SAMPLED_BAGS = 1000
"""Of more bags, each would give fewer than ten of the 10,000 patches that initialise the memory by default."""


def sampled_bags(bag_ids: Sequence[str], indices: Sequence[int], seed: int) -> list[int]:
    """Returns at most `MAX_SAMPLED_BAGS` of the indices, ascending; which ones depends on seed and bags alone.

    Args:
        bag_ids: identifiers of all training bags.
        indices: of the bags to sample from, ascending.
        seed: of the training.
    """
    if len(indices) <= MAX_SAMPLED_BAGS:
        return list(indices)
    drawn = sorted(indices, key=lambda index: derive_seed("sampled bag", seed, bag_ids[index]))
    return sorted(drawn[:MAX_SAMPLED_BAGS])
