"""The CPU backend: no intermediate of size messages x features is ever allocated.

Rows are divided into blocks of a fixed size, and sums over all rows add the blocks' sums in order, so the result has
the same bits for every number of threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import Dropout
from momkd_ray.model.kernels.cpu_loops import (
    Array,
    attend_rows,
    attend_rows_backward_received,
    attend_rows_backward_sent,
    block_rows,
    block_rows_backward,
)

BLOCK = 256
"""Rows per block: 512 KB of 512 floats, which stay in cache, while a bag still has blocks for several threads."""
_NO_KEYS = np.zeros(0, np.int64)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sent_PH: Tensor,
        received_PH: Tensor,
        weight_AC: Tensor,
        bias_H: Tensor,
        graph: MessageGraph,
        dropout: Dropout | None,
    ) -> Tensor:
        """Saves the attention (M, A) before dropout for the backward pass."""
        attention_MA = sent_PH.new_empty(len(graph.source_M), len(weight_AC))
        out_PH = torch.empty_like(received_PH)
        sent_PAC, received_PAC, bias_AC, out_PAC = _by_head(weight_AC.shape, sent_PH, received_PH, bias_H, out_PH)
        inputs = (sent_PAC, received_PAC, *_arrays(weight_AC), bias_AC, *_arrays(graph.received_P1, graph.source_M))
        arrays = (*inputs, *_dropout_arguments(dropout), *_arrays(attention_MA))
        _by_blocks(len(out_PH), lambda _, begin, end: attend_rows(begin, end, *arrays, out_PAC))
        ctx.save_for_backward(sent_PH, received_PH, weight_AC, attention_MA)
        ctx.graph, ctx.dropout = graph, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Goes over the receiving patches, which yields the scores' gradients, then over the sending patches."""
        graph, drawn = ctx.graph, _dropout_arguments(ctx.dropout)
        sent_PH, received_PH, weight_AC, attention_MA = ctx.saved_tensors
        if len(graph.target_M) != len(graph.source_M):
            raise ValueError("this subgraph has no sending order, so it has no backward pass; use the entire graph")
        grad_score_MA, grad_sent_PH, grad_received_PH = map(torch.empty_like, (attention_MA, sent_PH, received_PH))
        blocks = -(-max(len(grad_PH), len(sent_PH)) // BLOCK)
        grad_weights_2NAC = weight_AC.new_zeros(2, blocks, *weight_AC.shape)
        rows = _by_head(weight_AC.shape, grad_PH.contiguous(), sent_PH, received_PH)
        inputs = (*rows, *_arrays(weight_AC))
        to_received_PAC, to_sent_PAC = _by_head(weight_AC.shape, grad_received_PH, grad_sent_PH)
        scores, (to_weight_NAC, to_bias_NAC) = _arrays(attention_MA, grad_score_MA), _arrays(*grad_weights_2NAC)
        received = (*inputs, *_arrays(graph.received_P1, graph.source_M), *drawn, *scores, to_received_PAC)
        sent = (*inputs, *_arrays(graph.sent_P1, graph.message_M, graph.target_M), *drawn, *scores, to_sent_PAC)

        def back_to_received(block: int, begin: int, end: int) -> None:
            attend_rows_backward_received(begin, end, *received, to_weight_NAC[block], to_bias_NAC[block])

        def back_to_sent(block: int, begin: int, end: int) -> None:
            attend_rows_backward_sent(begin, end, *sent, to_weight_NAC[block])

        _by_blocks(len(grad_PH), back_to_received)
        _by_blocks(len(sent_PH), back_to_sent)
        grad_weight_AC, grad_bias_AC = grad_weights_2NAC.sum(1)
        return grad_sent_PH, grad_received_PH, grad_weight_AC, grad_bias_AC.flatten(), None, None


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
        arrays = (*_arrays(x_PH, residual_PH, weight_H, bias_H), alpha, *_dropout_arguments(dropout), *_arrays(out_PH))
        _by_blocks(len(x_PH), lambda _, begin, end: block_rows(begin, end, *arrays))
        ctx.save_for_backward(x_PH, weight_H, bias_H)
        ctx.alpha, ctx.dropout = alpha, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Passes the incoming gradient on to the residual unchanged."""
        x_PH, weight_H, bias_H = ctx.saved_tensors
        blocks = -(-len(x_PH) // BLOCK)
        grad_x_PH, grad_weights_2NH = torch.empty_like(x_PH), weight_H.new_zeros(2, blocks, len(weight_H))
        arrays = (*_arrays(grad_PH.contiguous(), x_PH, weight_H, bias_H), ctx.alpha, *_dropout_arguments(ctx.dropout))
        to_x, to_weights = _arrays(grad_x_PH, grad_weights_2NH)
        _by_blocks(
            len(x_PH),
            lambda block, begin, end: block_rows_backward(begin, end, *arrays, to_x, *to_weights[:, block]),
        )
        return grad_x_PH, grad_PH, *grad_weights_2NH.sum(1).unbind(), None, None


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """Implements `momkd_ray.model.kernels.attend` in float32 or float64."""
    tensors = (x.contiguous() for x in (sent_PH, received_PH, weight_AC, bias_H))
    out_PH: Tensor = _Attend.apply(*tensors, graph, dropout)  # type: ignore[no-untyped-call]
    return out_PH


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """Implements `momkd_ray.model.kernels.residual_block` in float32 or float64."""
    tensors = (x.contiguous() for x in (x_PH, residual_PH, weight_H, bias_H))
    out_PH: Tensor = _ResidualBlock.apply(*tensors, alpha, dropout)  # type: ignore[no-untyped-call]
    return out_PH


def _arrays(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def _by_head(shape_AC: Sequence[int], *tensors: Tensor) -> tuple[Array, ...]:
    """Views the last axis H = A C of each as (A, C)."""
    return _arrays(*(tensor.detach().view(*tensor.shape[:-1], *shape_AC) for tensor in tensors))


def _dropout_arguments(dropout: Dropout | None) -> tuple[Array, int]:
    """Returns keys and threshold for the kernels; no keys without dropout."""
    return (_NO_KEYS, 0) if dropout is None else (dropout.keys_N.numpy(), dropout.threshold)


def _by_blocks(rows: int, work: Callable[[int, int, int], object]) -> None:
    """Calls `work(block, first row, end)` for every block, on as many threads as PyTorch uses."""
    blocks = [(begin // BLOCK, begin, min(begin + BLOCK, rows)) for begin in range(0, rows, BLOCK)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        for block in blocks:
            work(*block)
    else:
        list(_pool(threads).map(lambda block: work(*block), blocks))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


# a forked process inherits the pools without their threads
os.register_at_fork(after_in_child=_pool.cache_clear)
