"""What an epoch draws and who takes it: every bag exactly once, equal steps, the same for any number of workers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.batches.prefetch import prefetch
from momkd_ray.batches.sampling import Draw, assign_to_ranks, balance, micro_batches, plan_epoch
from momkd_ray.errors import InputError

sizes = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)
workers = st.integers(1, 9)
seeds = st.integers(0, 99)


def epoch_of(n: int, bags_per_step: int, seed: int = 0, epoch: int = 0, balanced: bool = False) -> list[list[Draw]]:
    ids, labels = [f"s{i}" for i in range(n)], np.arange(n) % 2
    return plan_epoch(ids, labels, seed=seed, epoch=epoch, bags_per_step=bags_per_step, balanced=balanced)


@given(sizes, workers)
def test_every_bag_falls_to_exactly_one_worker_and_shares_are_even(patches: list[int], workers: int) -> None:
    shares = balance(patches, workers)
    assert sorted(place for share in shares for place in share) == list(range(len(patches)))
    loads = [sum(patches[place] for place in share) for share in shares]
    # the largest-first rule is within 4/3 of the best division, which is at least the mean and the largest bag
    assert max(loads) <= 4 / 3 * max(sum(patches) / workers, max(patches)) + max(patches)
    if len(patches) >= workers:
        assert all(shares)


@given(sizes, st.integers(1, 30_000))
def test_passes_keep_order_and_limit(patches: list[int], limit: int) -> None:
    groups = micro_batches(patches, limit)
    assert [place for group in groups for place in group] == list(range(len(patches)))
    assert all(sum(patches[i] for i in group) <= limit or len(group) == 1 for group in groups)


@given(st.integers(2, 50), st.integers(1, 9), seeds, seeds)
def test_an_epoch_without_balance_takes_every_bag_once(n: int, bags: int, seed: int, epoch: int) -> None:
    plan = epoch_of(n, bags, seed, epoch)
    assert sorted(draw.bag for step in plan for draw in step) == list(range(n))
    assert [len(step) for step in plan[:-1]] == [bags] * (len(plan) - 1)
    assert plan == epoch_of(n, bags, seed, epoch)


def test_a_balanced_epoch_draws_rare_and_common_classes_alike() -> None:
    ids, labels = [f"s{i}" for i in range(2000)], (np.arange(2000) < 100).astype(int)
    plan = plan_epoch(ids, labels, seed=1, epoch=0, bags_per_step=7, balanced=True)
    drawn = [draw for step in plan for draw in step]
    assert len(drawn) == 2000
    assert 0.45 < np.mean([labels[draw.bag] for draw in drawn]) < 0.55
    # a bag drawn twice in an epoch gets another dropout each time
    assert len({draw.seed for draw in drawn}) == 2000
    other = plan_epoch(ids, labels, seed=1, epoch=1, bags_per_step=7, balanced=True)
    assert [d.bag for s in other for d in s] != [d.bag for d in drawn]


@given(sizes, workers, st.integers(1, 12), seeds, st.booleans())
def test_workers_share_the_same_epoch_whatever_their_number(
    patches: list[int], workers: int, bags_per_step: int, seed: int, balanced: bool
) -> None:
    plan = epoch_of(len(patches), bags_per_step, seed, balanced=balanced)
    dealt = assign_to_ranks(plan, patches, workers)
    assert len(dealt) == len(plan), "equal steps on all ranks, nothing dropped"
    for step, by_rank in zip(plan, dealt, strict=True):
        assert len(by_rank) == workers
        assert Counter(draw for share in by_rank for draw in share) == Counter(step)
        if len(step) >= workers:
            assert all(by_rank), "no worker idles in a step that has a bag for each"
    assert assign_to_ranks(plan, patches, 1) == [[step] for step in plan]


@given(sizes.filter(lambda patches: len(patches) > 2), st.integers(2, 6), seeds)
def test_the_share_of_an_epoch_is_fair_by_patches(patches: list[int], workers: int, seed: int) -> None:
    """Whoever had least takes most, so over any number of steps no two workers are further apart than two bags."""
    dealt = assign_to_ranks(epoch_of(len(patches), workers, seed), patches, workers)
    loads = [sum(patches[draw.bag] for by_rank in dealt for draw in by_rank[rank]) for rank in range(workers)]
    assert max(loads) - min(loads) <= 2 * max(patches)


@given(sizes, workers, st.integers(1, 12), seeds, st.data())
def test_an_epoch_taken_up_in_the_middle_goes_on_the_same(
    patches: list[int], workers: int, bags_per_step: int, seed: int, data: Any
) -> None:
    plan = epoch_of(len(patches), bags_per_step, seed)
    at = data.draw(st.integers(0, len(plan)))
    again = assign_to_ranks(epoch_of(len(patches), bags_per_step, seed), patches, workers)
    assert again[at:] == assign_to_ranks(plan, patches, workers)[at:]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 6), st.integers(1, 120))
def test_reading_ahead_keeps_order_and_memory_for_any_number_of_threads(
    costs: list[int], threads: int, limit: int
) -> None:
    lock, held, highest = threading.Lock(), [0], [0]

    def make(task: tuple[int, int]) -> tuple[int, int]:
        with lock:
            held[0] += task[1]
            highest[0] = max(highest[0], held[0])
        return task

    tasks = list(enumerate(costs))
    taken = []
    for made in prefetch(tasks, make, lambda task: task[1], threads=threads, limit=limit):
        taken.append(made)
        with lock:
            held[0] -= made[1]
    assert taken == tasks
    assert highest[0] <= max([limit, *costs])


def test_reading_ahead_passes_errors_on_in_their_turn() -> None:
    def make(n: int) -> int:
        if n == 3:
            raise InputError("the third is damaged")
        return n

    made = prefetch(range(6), make, lambda n: 1, threads=4, limit=4)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="third"):
        next(made)


def test_reading_overlaps_with_the_computation() -> None:
    """While the caller holds one bag the next ones are made: the threads are seen at work before they are asked."""
    started = [threading.Event() for _ in range(3)]

    def make(n: int) -> int:
        started[n].set()
        return n

    made = prefetch(range(3), make, lambda n: 1, threads=1, limit=3)
    assert next(made) == 0
    assert all(event.wait(10) for event in started)
    assert list(made) == [1, 2]


def test_nothing_is_read_on_after_the_caller_has_gone() -> None:
    count = [0]

    def make(n: int) -> int:
        count[0] += 1
        time.sleep(0.001)
        return n

    made = prefetch(range(10_000), make, lambda n: 1, threads=2, limit=5)
    next(made)
    made.close()
    time.sleep(0.02)
    seen = count[0]
    time.sleep(0.02)
    assert count[0] == seen < 20
