"""Shards the bags of every step over the workers, balanced by patches, and each worker's shard into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray.batches.sampling import Step


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
