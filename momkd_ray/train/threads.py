"""The number of PyTorch's threads of a worker, and how their memory is reused and given back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from momkd_ray.model.registry import model_class
from momkd_ray.train.task import FoldTask, RoleBags

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers by which the C library knows these two (malloc.h)
_LARGEST_REUSED = 32 * 2**20  # the most that it takes


def threads_of_worker(task: FoldTask) -> int:
    """Returns the number of threads for a fold: its CPUs, or fewer so that each has `numbers_per_thread` to work on.

    Small operations take longer with several threads, which wait for each other at the end of each. The number depends
    on the fold's bags and configuration alone, so that it is the same when the fold is resumed.
    """
    config, patches = task.config, RoleBags.of(task.bags, "train").patches
    cpus = max(1, int(config.cluster.cpus_per_worker))
    if cpus == 1 or not patches:
        return 1
    bags = -(-config.train.bags_per_step // config.cluster.least_workers)
    mean = sum(patches) / len(patches)
    patches_of_pass = max(mean, min(bags * mean, config.train.patches_per_pass))
    return int(min(cpus, max(1, patches_of_pass * task.width // model_class(config.model).numbers_per_thread)))


def reuse_freed_memory() -> None:
    """Makes the C library reuse freed memory, which it otherwise returns and takes anew in every step.

    A step allocates its gradients and frees them: at a few patches a bag, a third of its time is then that of the
    kernel, which clears new pages. The two limits are those to which the library itself moves once a block of 32 MiB
    has been freed. Nothing happens where they are set from outside, or where there is no such function.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_REUSED)


def return_unused_memory() -> None:
    """Gives what a fold no longer uses back to the machine, to be called when no thread of the process computes.

    Every fold of a process has a thread of its own. MKL keeps some megabytes for the products of each, also after it
    has ended, and the C library keeps what was freed. Nothing happens where PyTorch has no MKL or the library no such
    function.
    """
    pytorch = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if pytorch.exists() and (free := getattr(ctypes.CDLL(str(pytorch)), "mkl_serv_free_buffers", None)) is not None:
        free()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
