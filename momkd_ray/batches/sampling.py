"""What each epoch draws, which worker takes which bag, and reading ahead of the computation.

Everything here follows from (seed, epoch, bags): an epoch can be taken up at any step, by any number of workers with
any number of reading threads, and gives the same batches.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Draw:
    """One bag of a step: its place in the training set, the seed of its dropout, and its own place in the epoch."""

    bag: int
    seed: int
    place: int


Step = list[Draw]  # the bags that are learnt from together, on all workers


def draw_seed(*parts: int | str) -> int:
    """A seed from what identifies a draw; the same on every machine and for every number of workers."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


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
    rng = np.random.default_rng(draw_seed("epoch", seed, epoch))
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
        draws.append(Draw(bag, draw_seed("dropout", seed, epoch, bag_ids[bag], seen[bag]), place))
    return [draws[i : i + bags_per_step] for i in range(0, n, bags_per_step)]


def deal(steps: Sequence[Step], patches: Sequence[int], workers: int) -> list[list[Step]]:
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
        shares = divide(sizes, workers)
        largest_first = sorted(shares, key=lambda share: -sum(sizes[place] for place in share))
        by_rank: list[Step] = [[] for _ in range(workers)]
        for rank, share in zip(sorted(range(workers), key=lambda r: (load[r], r)), largest_first, strict=True):
            by_rank[rank] = [step[place] for place in share]
            load[rank] += sum(sizes[place] for place in share)
        dealt.append(by_rank)
    return dealt


def divide(patches: Sequence[int], workers: int) -> list[list[int]]:
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


def passes(patches: Sequence[int], limit: int) -> list[list[int]]:
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


def ahead(
    tasks: Iterable[Task],
    make: Callable[[Task], Made],
    cost: Callable[[Task], int],
    *,
    threads: int,
    limit: int,
) -> Iterator[Made]:
    """What `make` gives for each task, in order, made in the background while the caller computes.

    Args:
        tasks: what to make; taken from as they are needed.
        make: called on one of `threads` threads.
        cost: of a task, such as the bytes it will hold.
        threads: how many tasks are made at a time.
        limit: of the cost of all that is made or being made but not yet taken. A task above it goes alone.

    Raises:
        Exception: what `make` raised, when its task's turn comes.
    """
    waiting = iter(tasks)
    pending: deque[tuple[int, Future[Made]]] = deque()
    held, following = 0, next(waiting, None)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        while True:
            while following is not None and (not pending or held + cost(following) <= limit):
                pending.append((cost(following), pool.submit(make, following)))
                held, following = held + pending[-1][0], next(waiting, None)
            if not pending:
                return
            spent, future = pending.popleft()
            made = future.result()
            del future  # the caller alone may hold what was made
            # what the caller works on still counts until it comes for the next
            yield made
            del made
            held -= spent
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
