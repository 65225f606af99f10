"""The residual block (LayerNorm, ELU, dropout, residual) on a GPU, in Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from momkd_ray.model.dropout import Dropout
from momkd_ray.model.kernels.cpu_loops import EPSILON
from momkd_ray.model.kernels.triton_launch import (
    block_count,
    compiled,
    dropout_arguments,
    kept,
    launch,
    rows_per_program,
)

_EPSILON = tl.constexpr(EPSILON)


@compiled
def normalised(x_H: tl.tensor, inside_H: tl.tensor, WIDTH: tl.constexpr) -> Any:
    """Normalises a row without LayerNorm's weights; returns it and 1 / standard deviation."""
    centred_H = tl.where(inside_H, x_H - tl.sum(x_H, 0) / WIDTH, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred_H * centred_H, 0) / WIDTH + _EPSILON)
    return centred_H * inverse, inverse


@compiled
def block_rows(
    x_PH: tl.tensor,
    residual_PH: tl.tensor,
    weight_H: tl.tensor,
    bias_H: tl.tensor,
    alpha: tl.tensor,
    keys_P: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    out_PH: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """Computes one row of a residual block."""
    p, column_H = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside_H = column_H < WIDTH
    row_H = p * WIDTH + column_H
    normed_H, _ = normalised(tl.load(x_PH + row_H, inside_H, 0.0), inside_H, WIDTH)
    y_H = normed_H * tl.load(weight_H + column_H, inside_H, 0.0) + tl.load(bias_H + column_H, inside_H, 0.0)
    active_H = tl.where(y_H > 0, y_H, alpha * (tl.exp(tl.minimum(y_H, 0.0)) - 1))
    residual_H = tl.load(residual_PH + row_H, inside_H, 0.0)
    tl.store(out_PH + row_H, kept(keys_P, p, True, column_H, threshold, scale) * active_H + residual_H, inside_H)


@compiled
def block_rows_backward(
    grad_PH: tl.tensor,
    x_PH: tl.tensor,
    weight_H: tl.tensor,
    bias_H: tl.tensor,
    alpha: tl.tensor,
    keys_P: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    grad_x_PH: tl.tensor,
    grad_weight_NH: tl.tensor,
    grad_bias_NH: tl.tensor,
    patches: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Computes the gradients of a block of rows; normalises each row again."""
    column_H = tl.arange(0, PADDED)
    inside_H = column_H < WIDTH
    weight_at_H, bias_at_H = tl.load(weight_H + column_H, inside_H, 0.0), tl.load(bias_H + column_H, inside_H, 0.0)
    grad_weight_H, grad_bias_H = tl.full([PADDED], 0.0, tl.float32), tl.full([PADDED], 0.0, tl.float32)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    for p in range(begin, tl.minimum(begin + ROWS, patches)):
        row_H = p * WIDTH + column_H
        normed_H, inverse = normalised(tl.load(x_PH + row_H, inside_H, 0.0), inside_H, WIDTH)
        y_H = normed_H * weight_at_H + bias_at_H
        slope_H = tl.where(y_H > 0, 1.0, alpha * tl.exp(tl.minimum(y_H, 0.0)))
        factor_H = kept(keys_P, p, True, column_H, threshold, scale)
        grad_H = tl.load(grad_PH + row_H, inside_H, 0.0) * factor_H * slope_H
        grad_weight_H += grad_H * normed_H
        grad_bias_H += grad_H
        through_H = grad_H * weight_at_H
        mean, projection = tl.sum(through_H, 0) / WIDTH, tl.sum(through_H * normed_H, 0) / WIDTH
        tl.store(grad_x_PH + row_H, inverse * (through_H - mean - normed_H * projection), inside_H)
    block_H = tl.program_id(0).to(tl.int64) * WIDTH + column_H
    tl.store(grad_weight_NH + block_H, grad_weight_H, inside_H)
    tl.store(grad_bias_NH + block_H, grad_bias_H, inside_H)


class _ResidualBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_PH: Tensor,
        residual_PH: Tensor,
        weight_H: Tensor,
        bias_H: Tensor,
        alpha: float,
        dropout: Dropout | None,
    ) -> Tensor:
        """Saves only its input for the backward pass."""
        out_PH = torch.empty_like(x_PH)
        inputs = (x_PH, residual_PH, weight_H, bias_H, alpha, *dropout_arguments(dropout))
        launch(block_rows, (len(x_PH),), len(weight_H), *inputs, out_PH)
        ctx.save_for_backward(x_PH, weight_H, bias_H)
        ctx.alpha, ctx.dropout = alpha, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Passes the incoming gradient on to the residual unchanged."""
        x_PH, weight_H, bias_H = ctx.saved_tensors
        grad_x_PH, grad_weights_2NH = torch.empty_like(x_PH), weight_H.new_empty(2, block_count(x_PH), len(weight_H))
        inputs = (grad_PH.contiguous(), x_PH, weight_H, bias_H, ctx.alpha, *dropout_arguments(ctx.dropout))
        results = (grad_x_PH, *grad_weights_2NH.unbind())
        arguments = (*inputs, *results, len(x_PH))
        launch(block_rows_backward, (block_count(x_PH),), len(weight_H), *arguments, ROWS=rows_per_program(x_PH))
        return grad_x_PH, grad_PH, *grad_weights_2NH.sum(1).unbind(), None, None


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """Implements `momkd_ray.model.kernels.residual_block` in float32."""
    tensors = (x.contiguous() for x in (x_PH, residual_PH, weight_H, bias_H))
    out_PH: Tensor = _ResidualBlock.apply(*tensors, alpha, dropout)  # type: ignore[no-untyped-call]
    return out_PH
