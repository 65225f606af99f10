"""What each epoch draws, which worker takes which bag, and reading ahead of the computation.

Everything here follows from (seed, epoch, bags): an epoch can be taken up at any step, by any number of workers with
any number of reading threads, and gives the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from momkd_ray.seeds import derive_seed


@dataclass(frozen=True)
class Draw:
    """One bag of a step: its place in the training set, the seed of its dropout, and its own place in the epoch."""

    bag: int
    seed: int
    place: int


Step = list[Draw]  # the bags that are learnt from together, on all workers


def plan_epoch(
    bag_ids: Sequence[str],
    labels_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    bags_per_step: int,
    balanced: bool,
) -> list[Step]:
    """The steps of an epoch: as many draws as there are bags, cut into steps (the last may be shorter).

    Balanced: each draw takes a class evenly, then one of its bags, with replacement. Otherwise every bag
    once, shuffled. Depends on (seed, epoch) and the bags alone.
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
    for place, bag in enumerate(map(int, chosen)):
        seen[bag] = seen.get(bag, 0) + 1
        draws.append(Draw(bag, derive_seed("dropout", seed, epoch, bag_ids[bag], seen[bag]), place))
    return [draws[i : i + bags_per_step] for i in range(0, n, bags_per_step)]


def assign_to_ranks(steps: Sequence[Step], patches: Sequence[int], workers: int) -> list[list[Step]]:
    """Each worker's share of every step, fair by patches within the step and over the epoch.

    Each step is divided evenly; whoever has had least so far takes its largest share, so that neither the odd bag of a
    step nor the remainder of an epoch always falls to the same worker.

    Args:
        steps: of the whole epoch, from its first step.
        patches: of each bag.
        workers: how many.

    Returns:
        For each step its draws by rank; a rank's may be empty in a step of fewer bags than workers.
    """
    load = [0] * workers
    dealt = []
    for step in steps:
        sizes = [patches[draw.bag] for draw in step]
        shares = balance(sizes, workers)
        largest_first = sorted(shares, key=lambda share: -sum(sizes[place] for place in share))
        by_rank: list[Step] = [[] for _ in range(workers)]
        for rank, share in zip(sorted(range(workers), key=lambda r: (load[r], r)), largest_first, strict=True):
            by_rank[rank] = [step[place] for place in share]
            load[rank] += sum(sizes[place] for place in share)
        dealt.append(by_rank)
    return dealt


def balance(patches: Sequence[int], workers: int) -> list[list[int]]:
    """Give each worker its share of some bags, even by patches: the largest first, to whoever has least.

    Returns each worker's places in `patches`, ascending; every place is in exactly one share.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [(0, 0, rank) for rank in range(workers)]
    for place in sorted(range(len(patches)), key=lambda i: (-patches[i], i)):
        filled, bags, rank = min(load)
        shares[rank].append(place)
        load[rank] = (filled + patches[place], bags + 1, rank)
    return [sorted(share) for share in shares]


def micro_batches(patches: Sequence[int], limit: int) -> list[list[int]]:
    """Group a step's bags, in order, into passes of at most `limit` patches (a larger bag goes alone)."""
    groups: list[list[int]] = []
    filled = 0
    for place, size in enumerate(patches):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += size
    return groups
