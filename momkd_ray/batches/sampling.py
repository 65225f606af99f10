"""Samples the bags of every epoch and assigns them to workers.

Everything follows from (seed, epoch, bags): an epoch can be resumed at any step, by any number of workers, and gives
the same batches.
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


def assign_to_ranks(steps: Sequence[Step], patches: Sequence[int], workers: int) -> list[list[Step]]:
    """Divides every step among the workers, balanced by patches within the step and over the epoch.

    Each step is divided evenly, and the rank with the fewest patches so far takes the largest part, so that the
    remainder of a step does not always fall to the same rank.

    Args:
        steps: all steps of the epoch.
        patches: number of patches of each bag.
        workers: number of ranks.

    Returns:
        For each step the draws of every rank; a rank has none in a step with fewer bags than ranks.
    """
    load = [0] * workers
    assigned = []
    for step in steps:
        sizes = [patches[draw.bag] for draw in step]
        shares = balance(sizes, workers)
        largest_first = sorted(shares, key=lambda share: -sum(sizes[i] for i in share))
        by_rank: list[Step] = [[] for _ in range(workers)]
        for rank, share in zip(sorted(range(workers), key=lambda r: (load[r], r)), largest_first, strict=True):
            by_rank[rank] = [step[i] for i in share]
            load[rank] += sum(sizes[i] for i in share)
        assigned.append(by_rank)
    return assigned


def balance(patches: Sequence[int], workers: int) -> list[list[int]]:
    """Partitions bags among workers, balanced by patches: the largest first, to the worker with the fewest.

    Returns:
        For each worker the indices into `patches`, ascending; every index is in exactly one share.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [(0, 0, rank) for rank in range(workers)]
    for index in sorted(range(len(patches)), key=lambda i: (-patches[i], i)):
        filled, bags, rank = min(load)
        shares[rank].append(index)
        load[rank] = (filled + patches[index], bags + 1, rank)
    return [sorted(share) for share in shares]


def micro_batches(patches: Sequence[int], limit: int) -> list[list[int]]:
    """Groups a step's bags, in order, into micro-batches of at most `limit` patches (a larger bag is one alone)."""
    groups: list[list[int]] = []
    filled = 0
    for index, size in enumerate(patches):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += size
    return groups
