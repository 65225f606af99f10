"""Every draw falls to exactly one worker, shards are even, and the steps are the same for any number of workers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.batches.sampling import Draw, plan_epoch
from momkd_ray.batches.sharding import assign_to_ranks, balance, micro_batches

sizes = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)
workers = st.integers(1, 9)
seeds = st.integers(0, 99)


def epoch_of(n: int, bags_per_step: int, seed: int = 0, epoch: int = 0, balanced: bool = False) -> list[list[Draw]]:
    ids, labels = [f"s{i}" for i in range(n)], np.arange(n) % 2
    return plan_epoch(ids, labels, seed=seed, epoch=epoch, bags_per_step=bags_per_step, balanced=balanced)


@given(sizes, workers)
def test_every_bag_falls_to_exactly_one_worker_and_shares_are_even(patches: list[int], workers: int) -> None:
    shares = balance(patches, workers)
    assert sorted(index for share in shares for index in share) == list(range(len(patches)))
    loads = [sum(patches[index] for index in share) for share in shares]
    # the largest-first rule is within 4/3 of the best division, which is at least the mean and the largest bag
    assert max(loads) <= 4 / 3 * max(sum(patches) / workers, max(patches)) + max(patches)
    if len(patches) >= workers:
        assert all(shares)


@given(sizes, st.integers(1, 30_000))
def test_passes_keep_order_and_limit(patches: list[int], limit: int) -> None:
    groups = micro_batches(patches, limit)
    assert [index for group in groups for index in group] == list(range(len(patches)))
    assert all(sum(patches[i] for i in group) <= limit or len(group) == 1 for group in groups)


@given(sizes, workers, st.integers(1, 12), seeds, st.booleans())
def test_workers_share_the_same_epoch_whatever_their_number(
    patches: list[int], workers: int, bags_per_step: int, seed: int, balanced: bool
) -> None:
    plan = epoch_of(len(patches), bags_per_step, seed, balanced=balanced)
    assigned = assign_to_ranks(plan, patches, workers)
    assert len(assigned) == len(plan), "equal steps on all ranks, nothing dropped"
    for step, by_rank in zip(plan, assigned, strict=True):
        assert len(by_rank) == workers
        assert Counter(draw for share in by_rank for draw in share) == Counter(step)
        if len(step) >= workers:
            assert all(by_rank), "no worker idles in a step that has a bag for each"
    assert assign_to_ranks(plan, patches, 1) == [[step] for step in plan]


@given(sizes.filter(lambda patches: len(patches) > 2), st.integers(2, 6), seeds)
def test_the_share_of_an_epoch_is_fair_by_patches(patches: list[int], workers: int, seed: int) -> None:
    """Whoever had least takes most, so over any number of steps no two workers are further apart than two bags."""
    assigned = assign_to_ranks(epoch_of(len(patches), workers, seed), patches, workers)
    loads = [sum(patches[draw.bag] for by_rank in assigned for draw in by_rank[rank]) for rank in range(workers)]
    assert max(loads) - min(loads) <= 2 * max(patches)


@given(sizes, workers, st.integers(1, 12), seeds, st.data())
def test_an_epoch_taken_up_in_the_middle_goes_on_the_same(
    patches: list[int], workers: int, bags_per_step: int, seed: int, data: Any
) -> None:
    plan = epoch_of(len(patches), bags_per_step, seed)
    at = data.draw(st.integers(0, len(plan)))
    again = assign_to_ranks(epoch_of(len(patches), bags_per_step, seed), patches, workers)
    assert again[at:] == assign_to_ranks(plan, patches, workers)[at:]
