"""A worker's bags in the order of its epoch plan, as a data source of Ray Data: a read task reads a few bags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from momkd_ray.bags.bag_rows import rows_table
from momkd_ray.bags.store import BagStore

THREADS_A_TASK = 8

_verified: set[str] = set()  # SHA-256 of the bags that this process has verified


class PlanSource(Datasource):  # type: ignore[misc]  # Ray carries no types
    """Groups of bags, one read task each, in their order.

    Args:
        store: the bag store.
        groups: the slides of each read task.
    """

    def __init__(self, store: BagStore, groups: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self._store, self._groups = store, groups

    def get_name(self) -> str:
        """Returns the name that Ray's dashboard shows."""
        return "Bags"

    def estimate_inmemory_data_size(self) -> int:
        """Returns the bytes of all bags."""
        return sum(self._bytes(group) for group in self._groups)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None
    ) -> list[ReadTask]:
        """Returns a task for each group, whatever the parallelism, so that their order is that of the plan."""
        return [
            ReadTask(
                _reader(self._store.subset(group), list(group)),
                BlockMetadata(num_rows=len(group), size_bytes=self._bytes(group), exec_stats=None, input_files=None),
            )
            for group in self._groups
        ]

    def _bytes(self, group: Sequence[str]) -> int:
        return sum(map(self._store.nbytes, group))


def _reader(store: BagStore, slide_ids: list[str]) -> Callable[[], Iterable[pa.Table]]:
    return lambda: read_group(store, slide_ids)


def read_group(store: BagStore, slide_ids: Sequence[str]) -> Iterator[pa.Table]:
    """Reads bags side by side and yields them in their order, each as a table of one row."""
    with ThreadPoolExecutor(min(THREADS_A_TASK, len(slide_ids))) as pool:
        for row in pool.map(
            lambda slide_id: store.read_row(slide_id, verify=store.entries[slide_id]["sha256"] not in _verified),
            slide_ids,
        ):
            _verified.add(row["sha256"])
            yield rows_table([row])
