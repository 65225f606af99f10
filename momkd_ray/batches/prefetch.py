"""Prefetches items in background threads, in order and within a memory limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def prefetch(
    tasks: Iterable[Task],
    make: Callable[[Task], Result],
    cost: Callable[[Task], int],
    *,
    threads: int,
    limit: int,
) -> Generator[Result]:
    """Yields `make(task)` for each task, in order, computed in background threads while the caller works.

    Args:
        tasks: consumed lazily.
        make: called in one of `threads` threads.
        cost: of a task's result, such as its bytes.
        threads: number of background threads.
        limit: on the summed cost of results that are computed or in work, beside the one that the caller works on. A
            task above the limit is computed alone.

    Raises:
        Exception: whatever `make` raised, when the caller reaches that task.
    """
    remaining = iter(tasks)
    pending: deque[tuple[int, Future[Result]]] = deque()
    held, upcoming = 0, next(remaining, None)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")

    def fill() -> None:
        nonlocal held, upcoming
        while upcoming is not None and (not pending or held + cost(upcoming) <= limit):
            pending.append((cost(upcoming), pool.submit(make, upcoming)))
            held, upcoming = held + pending[-1][0], next(remaining, None)

    try:
        fill()
        while pending:
            released, future = pending.popleft()
            result = future.result()
            del future  # only the caller may keep the result alive
            held -= released
            fill()
            yield result
            del result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
