"""The kernels alone, forward and backward, against the same mathematics in PyTorch and PyTorch Geometric.

    python benchmarks/kernels.py [--patches 1000 4000 12000] [--rounds 9]

Bytes are those that must move at least: each row read once from memory and all else from cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import ModuleType

import torch
from step import DEVICE, batch_of, made_bag
from table import interleaved, machine, print_table
from torch import Tensor

from momkd_ray.bags.batch import BagBatch
from momkd_ray.model.dropout import BagNoise
from momkd_ray.model.kernels import cpu, reference

HEADS, HIDDEN = 2, 512
ROWS = {"attend": (3, 8), "residual_block": (3, 3)}  # (P, H) arrays read and written on the way forward, and back


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--patches", type=int, nargs="+", default=[1000, 4000, 12_000])
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print(machine())
    rows = []
    for patches in options.patches:
        batch = batch_of([made_bag(patches, 0)])
        for name in ROWS:
            theirs, ours = (way(backend, name, batch) for backend in (reference, cpu))
            for ways, direction, arrays in zip(
                zip(theirs, ours, strict=True), ("forward", "back"), ROWS[name], strict=True
            ):
                seconds = interleaved(
                    dict(zip(("theirs", "ours"), ways, strict=True)), options.rounds, time.process_time
                )
                us = {who: s * 1e6 / patches for who, s in seconds.items()}
                gigabytes = arrays * HIDDEN * 4 * patches / 1e9
                cells = [f"{name}, {direction}", f"{patches:,}", f"{us['theirs']:.2f}", f"{us['ours']:.2f}"]
                rows.append([*cells, f"{us['theirs'] / us['ours']:.1f}x", f"{gigabytes / seconds['ours']:.1f}"])
    print_table(
        "The kernels, float32, dropout 0.5, one thread, CPU time, medians of turns",
        ["kernel", "patches", "PyTorch Geometric, us a patch", "ours", "speed-up", "ours, GB/s at least"],
        rows,
    )


def way(backend: ModuleType, name: str, batch: BagBatch) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward, and backward from a pass made once."""
    torch.manual_seed(0)
    patches, noise = len(batch.features_PD), BagNoise([0], DEVICE)
    x, y = (torch.randn(patches, HIDDEN, requires_grad=True) for _ in range(2))
    bias = torch.randn(HIDDEN, requires_grad=True)
    if name == "attend":
        weight = torch.randn(HEADS, HIDDEN // HEADS, requires_grad=True)
        arguments = (x, y, weight, bias, batch.graph, noise.of("attention", batch.messages_per_bag, 0.5))
    else:
        weight = torch.randn(HIDDEN, requires_grad=True)
        arguments = (x, y, weight, bias, 1.0, noise.of("patches", batch.patches_per_bag, 0.5))

    def forward() -> Tensor:
        out: Tensor = getattr(backend, name)(*arguments)
        return out

    out = forward()
    grad = torch.randn_like(out)
    return forward, lambda: torch.autograd.grad(out, (x, y, weight, bias), grad, retain_graph=True)


if __name__ == "__main__":
    main()
