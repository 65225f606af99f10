"""Prefetching keeps the order and the limit of memory for any number of threads."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.batches.prefetch import prefetch
from momkd_ray.errors import InputError


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 6), st.integers(1, 120))
def test_prefetching_keeps_order_and_memory_for_any_number_of_threads(
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
    # beside the one that the caller works on
    assert highest[0] <= max([limit, *costs]) + max([0, *costs])


def test_prefetching_passes_errors_on_in_their_turn() -> None:
    def make(n: int) -> int:
        if n == 3:
            raise InputError("the third is damaged")
        return n

    made = prefetch(range(6), make, lambda n: 1, threads=4, limit=4)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="third"):
        next(made)


@pytest.mark.parametrize("cost", [1, 100])
def test_reading_overlaps_with_the_computation(cost: int) -> None:
    """While the caller works on one bag the next is made before it is asked for, also where each is above the limit."""
    started = [threading.Event() for _ in range(3)]

    def make(n: int) -> int:
        started[n].set()
        return n

    made = prefetch(range(3), make, lambda n: cost, threads=1, limit=3)
    for n in range(3):
        assert next(made) == n
        assert all(event.wait(10) for event in started[: n + 2])
    assert list(made) == []


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
