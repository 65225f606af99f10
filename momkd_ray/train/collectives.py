"""Collective operations of the workers of a fold, and their equivalent in a single process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from momkd_ray.errors import RunError
from momkd_ray.storage.process_identity import host_name

K = TypeVar("K")
V = TypeVar("V")


class Collective(Protocol):
    """Collective operations; every rank must call them in the same order."""

    rank: int
    world: int

    def sum(self, x: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, ordered by rank."""
        ...


class SingleProcess:
    """The collective operations of a single process, which exchange nothing."""

    rank = 0
    world = 1

    def sum(self, x: Tensor) -> Tensor:
        """Returns the tensor itself."""
        return x

    def gather(self, value: Any) -> list[Any]:
        """Returns a list of the one value."""
        return [value]


class ProcessGroup:
    """The collective operations of PyTorch's default process group: gloo on CPUs, NCCL on GPUs."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place, in one all-reduce."""
        dist.all_reduce(x)
        return x

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, ordered by rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def mean_in_rank_order(gradient: Tensor) -> torch.futures.Future[Tensor]:
    """Averages a bucket of DDP's gradients in the order of ranks (a communication hook).

    An all-reduce adds the ranks in an order that depends on a value's position in its bucket, and DDP rearranges its
    buckets after the first step of every start: with three and more ranks a resumed run would differ in its last bits.
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
    """Returns the initialised process group, or a single process if there is none."""
    return ProcessGroup() if dist.is_available() and dist.is_initialized() else SingleProcess()


def device_of_worker(gpus: float) -> torch.device:
    """Returns the device assigned to this worker: its current GPU, or the CPU.

    Raises:
        RunError: Ray has assigned a GPU that PyTorch cannot use.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(
            f"Ray has given this worker a GPU of {host_name()}, which PyTorch {torch.__version__} cannot use there: "
            "install PyTorch for CUDA on that machine, or set cluster.gpus_per_worker to 0, then run again"
        )
    return torch.device("cuda", torch.cuda.current_device())


def merge_dicts(parts: Iterable[dict[K, V]]) -> dict[K, V]:
    """Merges the ranks' dictionaries, which have no key in common."""
    return {key: value for part in parts for key, value in part.items()}


def from_rank_0(collective: Collective, value: V | None) -> V:
    """Returns rank 0's value on every rank; the others' is not used."""
    received: V = collective.gather(value)[0]
    return received
