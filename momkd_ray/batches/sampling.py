"""Samples the bags of every epoch.

The draws follow from (seed, epoch, bags) alone: an epoch can be resumed at any step, by any number of workers, and
gives the same global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from momkd_ray.seeds import derive_seed


@dataclass(frozen=True)
class Draw:
    """One sampled bag of a step.

    Attributes:
        bag: index into the training bags.
        seed: of the bag's dropout in this draw.
        position: of the draw in the epoch.
    """

    bag: int
    seed: int
    position: int


Step = list[Draw]
"""The draws of one optimisation step, of all workers together (the global batch)."""


def plan_epoch(
    bag_ids: Sequence[str],
    labels_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    bags_per_step: int,
    balanced: bool,
) -> list[Step]:
    """Samples the steps of an epoch: as many draws as there are bags; the last step may be shorter.

    Args:
        bag_ids: identifiers of the training bags; they enter the dropout seeds.
        labels_N: class of each bag.
        seed: of the fold.
        epoch: from 0.
        bags_per_step: size of the global batch.
        balanced: sample a class uniformly, then one of its bags, with replacement (docs/method.md §5); otherwise
            every bag once, shuffled.
    """
    rng = np.random.default_rng(derive_seed("epoch", seed, epoch))
    n = len(bag_ids)
    if balanced:
        by_class = [np.flatnonzero(labels_N == y) for y in np.unique(labels_N)]
        chosen = [rng.choice(by_class[c]) for c in rng.integers(0, len(by_class), n)]
    else:
        chosen = list(rng.permutation(n))
    seen: dict[int, int] = {}
    draws = []
    for position, bag in enumerate(map(int, chosen)):
        seen[bag] = seen.get(bag, 0) + 1
        draws.append(Draw(bag, derive_seed("dropout", seed, epoch, bag_ids[bag], seen[bag]), position))
    return [draws[i : i + bags_per_step] for i in range(0, n, bags_per_step)]
