"""Shared parts of the Triton kernels: compilation, the dropout mask, and launches with fixed block sizes.

No intermediate of size messages x features is ever allocated, and no program adds to what another one writes: the
gradients of weights are summed in blocks, which follow from the number of rows alone, and PyTorch adds the blocks' sums
in a fixed order. So the result has the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from momkd_ray.model.dropout import COLUMN, FACTOR1, FACTOR2, Dropout

PROGRAMS = 4096
"""Programs of a backward kernel, at most twice as many: they fill a GPU, and keep the partial gradients small."""
_COLUMN, _FACTOR1, _FACTOR2 = tl.constexpr(COLUMN), tl.constexpr(FACTOR1), tl.constexpr(FACTOR2)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a kernel on first use, once for all numbers of patches."""
    return triton.jit(do_not_specialize=["patches", "threshold"])(function)


@compiled
def kept(
    keys_N: tl.tensor, row: tl.tensor, there: tl.tensor, column: tl.tensor, threshold: tl.tensor, scale: tl.tensor
) -> Any:
    """Computes the factor that dropout multiplies an entry with: 0 or `scale`; see `Dropout`."""
    factor = scale
    if keys_N is not None:
        h = tl.load(keys_N + row, there).to(tl.uint32) + column.to(tl.uint32) * _COLUMN
        h = (h ^ (h >> 16)) * _FACTOR1
        h = (h ^ (h >> 15)) * _FACTOR2
        h = h ^ (h >> 16)
        factor = tl.where(h.to(tl.int64) < threshold, 0.0, scale)
    return factor


def dropout_arguments(dropout: Dropout | None) -> tuple[Tensor | None, int, float]:
    """Returns keys, threshold and scale of kept entries for the kernels; no keys without dropout."""
    if dropout is None:
        return None, 0, 1.0
    return dropout.keys_N.contiguous(), dropout.threshold, 1 / max(1 - dropout.p, 2**-32)


def rows_per_program(x_PH: Tensor) -> int:
    """Returns the rows of one backward program, a power of two, as each value is compiled separately."""
    return int(triton.next_power_of_2(max(len(x_PH) // PROGRAMS, 1)))


def block_count(x_PH: Tensor) -> int:
    """Returns the number of backward programs for these rows."""
    return -(-len(x_PH) // rows_per_program(x_PH))


def launch(kernel: Any, grid: tuple[int, ...], width: int, *arguments: Any, **sizes: int) -> None:
    """Launches a kernel on the device of its first argument, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, **_sizes(width), **sizes)


def _sizes(width: int) -> dict[str, int]:
    """Returns a row's width, the power of two that holds it, and the number of warps, 16 values per thread."""
    padded = triton.next_power_of_2(width)
    # set explicitly, as Triton's releases differ in their default
    fused = {"enable_fp_fusion": True}
    return {"WIDTH": width, "PADDED": padded, "num_warps": min(max(padded // 512, 1), 16), **fused}
