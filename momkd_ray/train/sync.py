"""The collectives of the workers, and what stands for them in a single process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


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


class Alone:
    """One process: nothing to exchange."""

    rank = 0
    world = 1

    def sum(self, x: Tensor) -> Tensor:
        """The tensor itself."""
        return x

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]


class Workers:
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


def join_workers() -> Collective:
    """The workers of the process group that is up, or this process alone."""
    return Workers() if dist.is_available() and dist.is_initialized() else Alone()


def device_of_worker(gpus: float) -> torch.device:
    """The device that this worker was given: its current GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The union of the ranks' dictionaries, which share no key."""
    return {key: value for part in parts for key, value in part.items()}
