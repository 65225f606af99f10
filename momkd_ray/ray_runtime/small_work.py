"""Decides whether work is worth a cluster: starting one takes longer than small work does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from momkd_ray import progress
from momkd_ray.ray_runtime.cluster import Connection, connect, starts_own_cluster
from momkd_ray.ray_runtime.own_cluster import available_cpus

CLUSTER_START_S = 15.0
"""What a cluster on this machine takes to start, to give its processes their first task, and to end."""

FIRST_TASKS_S = 5.0
"""What a running cluster takes to start the processes of Ray Data's first tasks, and those tasks."""

SECONDS_A_FILE = 0.02
"""What opening and checking a feature file takes on one CPU (benchmarks/small_work.py)."""

SECONDS_A_MB = 0.01
"""What reading a MB of features, checking it and finding its neighbours takes."""


@dataclass(frozen=True)
class Work:
    """Independent items of work, and what they take on one CPU.

    Attributes:
        items: how many can be done side by side.
        seconds: of all together.
    """

    items: int
    seconds: float

    def saved_by_cluster(self, cpus: int) -> float:
        """Returns the seconds by which a cluster with so many CPUs would be done earlier, without its start."""
        return self.seconds * (1 - 1 / max(1, min(cpus, self.items))) if self.items else 0.0


def work_on_files(files: int, size_bytes: float, per_file_s: float = 0.0, per_mb_s: float = 0.0) -> Work:
    """Returns the work of reading feature files, and of what is done with each and with each MB of them."""
    seconds = files * (SECONDS_A_FILE + per_file_s) + size_bytes / 2**20 * (SECONDS_A_MB + per_mb_s)
    return Work(files, seconds)


@contextmanager
def connect_if_named(address: str | None) -> Iterator[Connection | None]:
    """Connects to the Ray cluster that the user names, by an address or `RAY_ADDRESS`; to none else.

    Raises:
        InputError, RunError: as `connect`.
    """
    with nullcontext() if starts_own_cluster(address) else connect(address) as connection:
        yield connection


@contextmanager
def connect_if_worth(work: Work, address: str | None = None, *, needs_cluster: bool = False) -> Iterator[bool]:
    """Connects to the cluster that the user names, or starts one if the work is done sooner with it.

    `parallel_map` may run on the cluster within the block, and otherwise runs in this process. Within another
    connection there is nothing to decide.

    Args:
        work: what is to be done.
        address: of a running cluster; None takes `RAY_ADDRESS`.
        needs_cluster: whether this process cannot do the work.

    Yields:
        Whether there is a cluster.

    Raises:
        InputError, RunError: as `connect`.
    """
    cpus = available_cpus()
    saved_s = math.inf if needs_cluster else work.saved_by_cluster(cpus)
    alone = starts_own_cluster(address) and saved_s <= CLUSTER_START_S
    size = f"{work.items} items, about {work.seconds:.1f} s on one CPU"
    progress.detail(f"{'Without' if alone else 'With'} a Ray cluster: {size}, {cpus} CPUs here")
    with nullcontext() if alone else connect(address):
        yield not alone
