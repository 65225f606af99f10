"""A test's function in several processes at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

# each process finds what takes seconds to import already there; DDP imports PyTorch's compiler
multiprocessing.set_forkserver_preload(
    ["momkd_ray.train.worker", "momkd_ray.model.kernels.cpu", "torch._dynamo", "sklearn.metrics"]
)


def in_processes(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run `function(rank, *arguments)` in `count` processes."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")
