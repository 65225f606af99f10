"""Delivers a worker's bags through Ray Data, in the order in which they are needed, over all epochs.

Read tasks run on any node with free CPUs, within a limit of memory; a lost block is read again by its lineage. What
does not arrive in time, or at all, the worker reads itself: a failure of Ray Data costs time and changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from momkd_ray import storage
from momkd_ray.bags.bag_rows import from_row, row_at
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import add_note
from momkd_ray.bags.shared_bags import BagSource, JointBags, join_bags
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import as_user_error, input_error_within, run_error_within
from momkd_ray.formats.bag import Bag

GROUP_BYTES = 32 * 2**20
"""Bytes of a read task: Ray Data spends 10 ms of the worker's time on each task, whatever its size."""
FIRST_GROUPS = 4
"""Tasks of a single bag at the beginning, so that the first one arrives early."""
TASKS_AN_EXECUTION = 256
PRIMED_TASKS = 16
"""Tasks before the end of an execution at which the next one starts, so that there is no gap between them."""
LOOK_AHEAD = 20_000
"""Items beyond the one that was taken last, up to which it is planned what to read."""
CACHED_LOOK_AHEAD = 64
"""The same where the node caches bags: other workers of the node may cache what is needed later."""
OUT_OF_ORDER = 64
"""Items by which the threads that take bags may be out of order; one further back is not taken any more."""
PATIENCE_S = 20.0
"""Seconds for which a bag is waited for at most."""
STALL_S = 2.0
"""Seconds without any new block after which bags are read directly, until one comes: Ray may be starting processes."""
FIRST_STALL_S = 1.0
"""The same from the beginning to the first block, for which Ray has processes to start more often."""
READ_CPUS = 0.5

Item = tuple[Hashable, str]
"""What a bag is needed for, and its name."""


@dataclass(frozen=True)
class RayDataBags:
    """Bags that are delivered by Ray Data where their order is known, and read directly otherwise.

    Attributes:
        source: the store, or the store with the node's cache.
        spare_cpus: CPUs of the cluster that no worker takes; with fewer than `READ_CPUS` the worker's node reads.
    """

    source: BagStore | CachedBags
    spare_cpus: float = 0.0

    def read(self, bag_id: str) -> Bag:
        """Returns the bag of a slide."""
        return self.source.read(bag_id)

    @property
    def store(self) -> BagStore:
        """The bag store."""
        return self.source.store if isinstance(self.source, CachedBags) else self.source


def is_remote(source: BagSource) -> bool:
    """Returns whether reading a bag may wait for S3."""
    if isinstance(source, JointBags):
        return is_remote(source.slides)
    store = source.store if isinstance(source, RayDataBags | CachedBags) else source
    return isinstance(store, BagStore) and storage.local_path(store.uri) is None


def open_stream(source: BagSource, items: Iterator[Item], name: str, *, limit: int, tasks: int) -> BagStream | None:
    """Begins to deliver bags in an order; None if the source does not do that.

    Args:
        source: of the bags.
        items: the bags in the order in which they will be taken; consumed as needed.
        name: of the dataset, in Ray's dashboard and metrics.
        limit: bytes of bags that have been read and not yet taken.
        tasks: number of read tasks at a time.
    """
    members = source.members if isinstance(source, JointBags) else None
    base = source.slides if isinstance(source, JointBags) else source
    if not isinstance(base, RayDataBags):
        return None
    return BagStream(base, source, members, items, name, limit, tasks)


class BagStream:
    """Bags on their way to one worker. `take` is thread-safe.

    Args:
        base: gives the slides' bags.
        whole: gives the bags by name, for those that are not delivered.
        members: the slides of each bag; None where a bag is a slide.
        items: the bags in their order.
        name: of the dataset.
        limit: bytes of bags that have been read and not yet taken.
        tasks: number of read tasks at a time.
    """

    def __init__(
        self,
        base: RayDataBags,
        whole: BagSource,
        members: Any,
        items: Iterator[Item],
        name: str,
        limit: int,
        tasks: int,
    ) -> None:
        self._base, self._whole, self._members, self._items = base, whole, members, items
        self._name, self._limit, self._tasks = name, limit, tasks
        self._look_ahead = CACHED_LOOK_AHEAD if isinstance(base.source, CachedBags) else LOOK_AHEAD
        self._changed = threading.Condition()
        self._expected: dict[Hashable, int] = {}  # under way, with the number of the item
        self._ready: dict[Hashable, tuple[int, int, list[Any]]] = {}  # number, bytes and rows
        self._wanted: list[int] = []  # numbers of the items that are waited for
        self._held, self._planned, self._taken, self._exhausted = 0, 0, 0, False
        self._error: BaseException | None = None
        self._ended, self._arrived = False, False
        self._starved_since: float | None = time.monotonic()  # bags are waited for and none has come
        self.delivered, self.read_directly = 0, 0
        # planned here, so that a bag that is asked for at once is known to be under way
        self._first = self._plan_execution(FIRST_GROUPS)
        threading.Thread(target=self._deliver, name="bags", daemon=True).start()

    def take(self, key: Hashable, bag_id: str) -> Bag:
        """Returns the bag of an item; one that is not under way, or late, is read here.

        Raises:
            InputError, RunError: the bag cannot be read.
        """
        with self._changed:
            self._wait_for(key)
            if self._error is not None:
                raise self._error
            self._expected.pop(key, None)
            _, size, rows = self._ready.pop(key, (0, 0, []))
            self._held -= size
            self._taken += 1
            for other in [other for other, (number, _, _) in self._ready.items() if self._is_past(number)]:
                self._held -= self._ready.pop(other)[1]
            self.delivered += bool(rows)
            self.read_directly += not rows
            self._changed.notify_all()
        if not rows:
            return self._whole.read(bag_id)
        bags = [from_row(row) for row in rows]
        return bags[0] if self._members is None else join_bags(bag_id, bags)

    def _wait_for(self, key: Hashable) -> None:
        """Waits while an item is under way and not late."""
        number, latest = self._expected.get(key, -1), time.monotonic() + PATIENCE_S
        self._wanted.append(number)
        self._changed.notify_all()
        while key in self._expected and key not in self._ready and not self._ended:
            if self._starved_since is None:
                self._starved_since = time.monotonic()
            # in a stall the worker reads what it needs, and the tasks catch up with it
            stalled = self._starved_since + (STALL_S if self._arrived else FIRST_STALL_S)
            remaining = min(stalled, latest) - time.monotonic()
            if remaining <= 0:
                break
            self._changed.wait(remaining)
        self._wanted.remove(number)

    def _is_past(self, number: int) -> bool:
        return number + OUT_OF_ORDER < self._taken

    def close(self) -> None:
        """Ends the delivery; what is under way is dropped."""
        with self._changed:
            self._ended = True
            self._ready.clear()
            self._changed.notify_all()

    def _deliver(self) -> None:
        try:
            upcoming = self._start(self._first)
            while not self._ended and not (upcoming is None and self._exhausted):
                upcoming = self._plan_later() if upcoming is None else self._consume(*upcoming)
        except Exception as error:
            with self._changed:
                self._error = input_error_within(error) or run_error_within(error)
            if self._error is None:
                said = as_user_error("Ray Data", error)
                add_note(f"bags are read by the workers themselves from here on, as Ray Data failed: {said}")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _plan_later(self) -> Any:
        """Plans and starts an execution when enough of what is planned has been taken."""
        with self._changed:
            while self._planned - self._taken > self._look_ahead // 2 and not self._ended:
                self._changed.wait()
        return self._start(self._plan_execution(0))

    def _consume(self, plan: list[list[Item]], blocks: Iterator[Any]) -> Any:
        """Takes in the blocks of one execution; returns the next one, which starts before this one ends."""
        slides = [
            (key, slide, self._slides(bag)) for group in plan for key, bag in group for slide in self._slides(bag)
        ]
        starts_next_at = sum(len(self._slides(bag)) for group in plan[:-PRIMED_TASKS] for _, bag in group)
        position, upcoming, primed = 0, None, False
        rows: list[Any] = []
        with suppress(StopIteration):
            while not self._ended:
                if position >= starts_next_at and not primed:
                    upcoming, primed = self._start(self._plan_execution(0)), True
                block = next(blocks)
                with self._changed:
                    self._arrived, self._starved_since = True, None
                    self._changed.notify_all()
                for index in range(block.num_rows):
                    key, slide_id, members = slides[position]
                    row = row_at(block, index)
                    assert row["slide_id"] == slide_id
                    if isinstance(self._base.source, CachedBags):
                        self._base.source.keep(row)
                    rows.append(row)
                    position += 1
                    if len(rows) == len(members):
                        self._put(key, rows)
                        rows = []
        close = getattr(blocks, "close", None)
        if close is not None:
            close()
        if position < len(slides) and not self._ended:
            raise RuntimeError("an execution ended before its last bag")
        return upcoming

    def _put(self, key: Hashable, rows: list[Any]) -> None:
        size = sum(self._base.store.nbytes(row["slide_id"]) for row in rows)
        with self._changed:
            while self._held + size > self._limit and self._held and key in self._expected and not self._ended:
                if any(number >= self._expected[key] for number in self._wanted):
                    break  # what is waited for comes after this
                self._changed.wait()
            if key not in self._expected or self._ended or self._is_past(self._expected[key]):
                return  # it was late, and has been read directly
            self._ready[key] = (self._expected[key], size, rows)
            self._held += size
            self._starved_since = None
            self._changed.notify_all()

    def _slides(self, bag_id: str) -> Sequence[str]:
        return (bag_id,) if self._members is None else self._members[bag_id]

    def _plan_execution(self, singles: int) -> list[list[Item]]:
        """Groups the next bags into read tasks; those that this node has cached, or is about to cache, are left out."""
        caches, store = isinstance(self._base.source, CachedBags), self._base.store
        groups: list[list[Item]] = []
        filled = GROUP_BYTES
        coming: set[str] = set()
        while self._planned - self._taken <= self._look_ahead:
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
                break
            key, bag_id = item
            slides = self._slides(bag_id)
            self._planned += 1
            if caches and (bag_id in coming or all(map(self._base.source.holds, slides))):  # type: ignore[union-attr]
                continue
            coming.add(bag_id)
            size = sum(map(store.nbytes, slides))
            if len(groups) <= singles or filled + size > GROUP_BYTES:
                if len(groups) == TASKS_AN_EXECUTION:  # this item begins the next execution
                    self._items = chain([item], self._items)
                    self._planned -= 1
                    break
                groups.append([])
                filled = 0
            with self._changed:
                if self._is_past(self._planned):
                    continue
                self._expected[key] = self._planned
            groups[-1].append(item)
            filled += size
        return [group for group in groups if group]

    def _start(self, plan: list[list[Item]]) -> tuple[list[list[Item]], Iterator[Any]] | None:
        """Starts the execution of a plan; None if it has no bags."""
        if not plan or self._ended:
            return None
        import ray

        from momkd_ray.bags.plan_source import PlanSource

        groups = [[slide for _, bag_id in group for slide in self._slides(bag_id)] for group in plan]
        where: dict[str, Any] = {"num_cpus": READ_CPUS}
        if self._base.spare_cpus < READ_CPUS:  # workers have all CPUs, and a task that waits for one would never run
            where = {
                "num_cpus": 0,
                "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            }
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.read_datasource(
            PlanSource(self._base.store, groups),
            override_num_blocks=len(groups),
            concurrency=min(self._tasks, len(groups)),
            **where,
        )
        dataset.set_name(self._name)
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(object_store_memory=max(self._limit, 2 * GROUP_BYTES))
        blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        return plan, iter(blocks)
