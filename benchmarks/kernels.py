"""Times the kernels alone, forward and backward, against the same mathematics in PyTorch and PyTorch Geometric.

    python benchmarks/kernels.py [--device cuda] [--patches 1000 4000 12000] [--rounds 9]

Bytes are the least that must move: each row read once from memory and everything else from cache. On a GPU they are
given as a share of the bandwidth of a large copy; "with messages" also counts a row for each message, which comes from
the GPU's cache, as a share of the bandwidth of a copy within that cache. Times are those in which the GPU computes, by
PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import ModuleType

import step
import torch
from step import batch_of, busy, made_bag
from table import interleaved, machine, print_table
from torch import Tensor

from momkd_ray.batches.collate import BagBatch
from momkd_ray.model.dropout import draw_dropout, dropout_pieces
from momkd_ray.model.kernels import cpu, reference

HEADS, HIDDEN = 2, 512
ROWS = {"attend": (3, 8), "residual_block": (3, 3)}  # (P, H) arrays read and written, forward and backward
FETCHED = {"attend": (1, 2.5), "residual_block": (0, 0)}  # rows a message; backward one less for the dropped half
CACHED_MB, LARGE_MB = 16, 2048
TURNS = 20  # runs of a kernel in one measurement on a GPU


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default=step.DEVICE.type)
    arguments.add_argument("--patches", type=int, nargs="+", default=[1000, 4000, 12_000])
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    step.use(options.device)
    copied = cached = None
    if options.device == "cuda":
        copied, cached = copy_gb_s(LARGE_MB), copy_gb_s(CACHED_MB)
        print(f"a copy of {LARGE_MB} MB moves {copied:,.0f} GB/s, one of {CACHED_MB} MB {cached:,.0f}; ", end="")
    print(machine())
    rows = []
    for patches in options.patches:
        batch = batch_of([made_bag(patches, 0)])
        for name in ROWS:
            theirs, ours = (way(backend, name, batch) for backend in (reference, own_backend()))
            for ways, direction, arrays, fetched in zip(
                zip(theirs, ours, strict=True), ("forward", "back"), ROWS[name], FETCHED[name], strict=True
            ):
                turns = dict(zip(("theirs", "ours"), ways, strict=True))
                if copied is None:
                    seconds = interleaved(turns, options.rounds, time.process_time)
                else:
                    seconds = {who: busy_a_turn(do) for who, do in turns.items()}
                us = {who: s * 1e6 / patches for who, s in seconds.items()}
                gb_s = arrays * HIDDEN * 4 / us["ours"] / 1e3
                cells = [f"{name}, {direction}", f"{patches:,}", f"{us['theirs']:.4g}", f"{us['ours']:.4g}"]
                cells += [f"{us['theirs'] / us['ours']:.1f}x", f"{gb_s:.1f}"]
                if copied is not None and cached is not None:
                    all_gb_s = gb_s * (1 + fetched * len(batch.graph.source_M) / patches / arrays)
                    cells += [f"{gb_s / copied:.0%}", f"{all_gb_s:.0f}", f"{all_gb_s / cached:.0%}"]
                rows.append(cells)
    clock = "one thread, CPU time, medians of turns" if copied is None else "what the GPU takes, means of turns"
    columns = ["kernel", "patches", "PyTorch Geometric, us a patch", "ours", "speed-up", "ours, GB/s at least"]
    print_table(
        f"The kernels, float32, dropout 0.5, {clock}",
        columns if copied is None else [*columns, "of a copy's", "with messages, GB/s", "of a copy's in cache"],
        rows,
    )


def own_backend() -> ModuleType:
    if step.DEVICE.type == "cpu":
        return cpu
    from momkd_ray.model.kernels import triton_gpu as gpu

    return gpu


def copy_gb_s(megabytes: int) -> float:
    """GB that a copy on the GPU reads and writes in a second."""
    source = torch.randn(megabytes * 2**18, device=step.DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / busy_a_turn(lambda: target.copy_(source)) / 1e9


def busy_a_turn(do: Callable[[], object]) -> float:
    """Mean seconds of GPU computation over `TURNS` runs."""

    def turns() -> None:
        for _ in range(TURNS):
            do()

    do()  # compilation and warm-up
    return busy(turns) / TURNS


def way(backend: ModuleType, name: str, batch: BagBatch) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass, and the backward pass of one forward pass."""
    torch.manual_seed(0)
    patches, device = len(batch.features_PD), batch.features_PD.device
    layers = {"attend": (batch.messages_per_bag, 0.5), "residual_block": (batch.patches_per_bag, 0.5)}
    dropout = draw_dropout(dropout_pieces([0], layers).to(device), layers)[name]
    x, y = (torch.randn(patches, HIDDEN, device=device, requires_grad=True) for _ in range(2))
    bias = torch.randn(HIDDEN, device=device, requires_grad=True)
    if name == "attend":
        weight = torch.randn(HEADS, HIDDEN // HEADS, device=device, requires_grad=True)
        arguments = (x, y, weight, bias, batch.graph, dropout)
    else:
        weight = torch.randn(HIDDEN, device=device, requires_grad=True)
        arguments = (x, y, weight, bias, 1.0, dropout)

    def forward() -> Tensor:
        out: Tensor = getattr(backend, name)(*arguments)
        return out

    out = forward()
    grad = torch.randn_like(out)
    return forward, lambda: torch.autograd.grad(out, (x, y, weight, bias), grad, retain_graph=True)


if __name__ == "__main__":
    main()
