"""Makes items in background threads ahead of the consumer, in order and within a bound of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Made = TypeVar("Made")


def prefetch(
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
