"""The collectives of the workers, and what stands for them in a single process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

K = TypeVar("K")
V = TypeVar("V")


class Collective(Protocol):
    """What workers do together; every rank must call each in the same order."""

    rank: int
    world: int

    def sum(self, x: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        ...


class SingleProcess:
    """One process: nothing to exchange."""

    rank = 0
    world = 1

    def sum(self, x: Tensor) -> Tensor:
        """The tensor itself."""
        return x

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]


class ProcessGroup:
    """The default process group: gloo on CPUs, NCCL on GPUs."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place, in one all-reduce."""
        dist.all_reduce(x)
        return x

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def mean_in_rank_order(gradient: Tensor) -> torch.futures.Future[Tensor]:
    """DDP's mean of a bucket of gradients, added rank by rank.

    An all-reduce adds the ranks in an order that depends on where in a bucket a value lies, and DDP lays its buckets
    out anew after the first step of every start: of three and more ranks, a resumed run would differ in its last bits.
    """
    world = dist.get_world_size()
    of_ranks = [torch.empty_like(gradient) for _ in range(world)]
    gathered = dist.all_gather(of_ranks, gradient, async_op=True)

    def mean(_: torch.futures.Future[object]) -> Tensor:
        total = of_ranks[0]
        for other in of_ranks[1:]:
            total += other
        return total.div_(world)

    future: torch.futures.Future[Tensor] = gathered.get_future().then(mean)
    return future


def join_process_group() -> Collective:
    """The workers of the process group that is up, or this process alone."""
    return ProcessGroup() if dist.is_available() and dist.is_initialized() else SingleProcess()


def device_of_worker(gpus: float) -> torch.device:
    """The device that this worker was given: its current GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")


def merge_dicts(parts: Iterable[dict[K, V]]) -> dict[K, V]:
    """The union of the ranks' dictionaries, which share no key."""
    return {key: value for part in parts for key, value in part.items()}
