"""The kernels for a CPU, compiled by numba: rows in cache, nothing as large as messages x features, any mask anew.

Rows fall into blocks of a fixed size; sums over all rows add the blocks' sums in order. So the result has the same
bits for every number of threads.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from momkd_ray.bags.messages import MessageGraph
from momkd_ray.model.dropout import COLUMN, FACTOR1, FACTOR2, Dropout
from momkd_ray.model.kernels.reference import SLOPE

Array = NDArray[Any]

BLOCK = 256
"""Rows a block: 512 KB of 512 floats, so that what a block sums is still in cache and a bag has blocks to share out."""
EPSILON = 1e-5
"""Of LayerNorm, as PyTorch's."""
_NO_KEYS = np.zeros(0, np.int64)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use for the types it meets, without the GIL, and keep the machine code on disk if possible.

    Sums may be reordered to use vector instructions; infinities and NaN keep their meaning.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        kernel: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the home directory can be written to
        kernel = numba.njit(**options)(function)
    return kernel


@compiled
def _dropped(key: int, column: int, threshold: int) -> Any:
    h = np.uint32(np.uint32(key) + np.uint32(np.uint32(column) * np.uint32(COLUMN)))
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(FACTOR1))
    h ^= h >> np.uint32(15)
    h = np.uint32(h * np.uint32(FACTOR2))
    h ^= h >> np.uint32(16)
    return h < np.uint32(threshold)


@compiled
def _attend_rows(
    begin: int,
    end: int,
    sent_PAC: Array,
    received_PAC: Array,
    weight_AC: Array,
    received_P1: Array,
    source_M: Array,
    keys_M: Array,
    threshold: int,
    attention_MA: Array,
    out_PAC: Array,
) -> None:
    heads, width = weight_AC.shape
    slope, zero = sent_PAC.dtype.type(SLOPE), sent_PAC.dtype.type(0)
    scale = sent_PAC.dtype.type(1 / (1 - threshold / 2**32))
    for target in range(begin, end):
        first, last = received_P1[target], received_P1[target + 1]
        for a in range(heads):
            received_C, weight_C, out_C = received_PAC[target, a], weight_AC[a], out_PAC[target, a]
            highest = sent_PAC.dtype.type(-np.inf)
            for m in range(first, last):
                sent_C = sent_PAC[source_M[m], a]
                score = zero
                for c in range(width):
                    pair = sent_C[c] + received_C[c]
                    score += weight_C[c] * (pair if pair > zero else slope * pair)
                attention_MA[m, a] = score
                highest = max(highest, score)
            total = zero
            for m in range(first, last):
                attention_MA[m, a] = math.exp(attention_MA[m, a] - highest)
                total += attention_MA[m, a]
            out_C[:] = zero
            for m in range(first, last):
                attention_MA[m, a] /= total
                share = attention_MA[m, a]
                if len(keys_M):
                    share = zero if _dropped(keys_M[m], a, threshold) else share * scale
                if share != zero:
                    sent_C = sent_PAC[source_M[m], a]
                    for c in range(width):
                        out_C[c] += share * sent_C[c]


@compiled
def _attend_rows_backward_received(
    begin: int,
    end: int,
    grad_PAC: Array,
    sent_PAC: Array,
    received_PAC: Array,
    weight_AC: Array,
    received_P1: Array,
    source_M: Array,
    keys_M: Array,
    threshold: int,
    attention_MA: Array,
    grad_score_MA: Array,
    grad_received_PAC: Array,
    grad_weight_AC: Array,
) -> None:
    heads, width = weight_AC.shape
    slope, zero, one = sent_PAC.dtype.type(SLOPE), sent_PAC.dtype.type(0), sent_PAC.dtype.type(1)
    scale = sent_PAC.dtype.type(1 / (1 - threshold / 2**32))
    for target in range(begin, end):
        first, last = received_P1[target], received_P1[target + 1]
        for a in range(heads):
            received_C, grad_C, grad_received_C = (
                received_PAC[target, a],
                grad_PAC[target, a],
                grad_received_PAC[target, a],
            )
            expected = zero
            for m in range(first, last):
                grad = zero
                if not len(keys_M) or not _dropped(keys_M[m], a, threshold):
                    sent_C = sent_PAC[source_M[m], a]
                    for c in range(width):
                        grad += grad_C[c] * sent_C[c]
                    grad *= scale
                grad_score_MA[m, a] = grad
                expected += attention_MA[m, a] * grad
            grad_received_C[:] = zero
            for m in range(first, last):
                grad_score_MA[m, a] = attention_MA[m, a] * (grad_score_MA[m, a] - expected)
                grad_score, sent_C = grad_score_MA[m, a], sent_PAC[source_M[m], a]
                for c in range(width):
                    grad_received_C[c] += grad_score * (one if sent_C[c] + received_C[c] > zero else slope)
            for c in range(width):
                grad_weight_AC[a, c] += received_C[c] * grad_received_C[c]
                grad_received_C[c] *= weight_AC[a, c]


@compiled
def _attend_rows_backward_sent(
    begin: int,
    end: int,
    grad_PAC: Array,
    sent_PAC: Array,
    received_PAC: Array,
    weight_AC: Array,
    sent_P1: Array,
    message_M: Array,
    target_M: Array,
    keys_M: Array,
    threshold: int,
    attention_MA: Array,
    grad_score_MA: Array,
    grad_sent_PAC: Array,
    grad_weight_AC: Array,
) -> None:
    heads, width = weight_AC.shape
    slope, zero, one = sent_PAC.dtype.type(SLOPE), sent_PAC.dtype.type(0), sent_PAC.dtype.type(1)
    scale = sent_PAC.dtype.type(1 / (1 - threshold / 2**32))
    through_C = np.empty(width, sent_PAC.dtype)
    for source in range(begin, end):
        for a in range(heads):
            sent_C, grad_sent_C = sent_PAC[source, a], grad_sent_PAC[source, a]
            through_C[:] = zero
            grad_sent_C[:] = zero
            for place in range(sent_P1[source], sent_P1[source + 1]):
                m, target = message_M[place], target_M[place]
                received_C, grad_score = received_PAC[target, a], grad_score_MA[m, a]
                for c in range(width):
                    through_C[c] += grad_score * (one if sent_C[c] + received_C[c] > zero else slope)
                if not len(keys_M) or not _dropped(keys_M[m], a, threshold):
                    share, grad_C = attention_MA[m, a] * scale, grad_PAC[target, a]
                    for c in range(width):
                        grad_sent_C[c] += share * grad_C[c]
            for c in range(width):
                grad_weight_AC[a, c] += sent_C[c] * through_C[c]
                grad_sent_C[c] += weight_AC[a, c] * through_C[c]


@compiled
def _exp_minus_one(x: Any, float_type: Any) -> Any:
    """exp(x) - 1 for x <= 0 by additions and products alone, so that it vectorises in any float type.

    A Taylor series near 0, then u(2x) = u(x) (u(x) + 2) six times, in which nothing cancels.
    """
    one = float_type(1)
    y = max(x, float_type(-40)) * float_type(1 / 64)
    u = one + y * float_type(1 / 9)
    u = one + u * y * float_type(1 / 8)
    u = one + u * y * float_type(1 / 7)
    u = one + u * y * float_type(1 / 6)
    u = one + u * y * float_type(1 / 5)
    u = one + u * y * float_type(1 / 4)
    u = one + u * y * float_type(1 / 3)
    u = one + u * y * float_type(1 / 2)
    u *= y
    for _ in range(6):
        u *= u + float_type(2)
    return u


@compiled
def _normalise(x_H: Array, normed_H: Array) -> Any:
    """LayerNorm without its weights; returns 1 / standard deviation."""
    float_type = x_H.dtype.type
    width = len(x_H)
    mean = square = float_type(0)
    for h in range(width):
        mean += x_H[h]
    mean /= float_type(width)
    for h in range(width):
        normed_H[h] = x_H[h] - mean
        square += normed_H[h] * normed_H[h]
    inverse = float_type(1) / math.sqrt(square / float_type(width) + float_type(EPSILON))
    for h in range(width):
        normed_H[h] *= inverse
    return inverse


@compiled
def _block_rows(
    begin: int,
    end: int,
    x_PH: Array,
    residual_PH: Array,
    weight_H: Array,
    bias_H: Array,
    alpha: float,
    keys_P: Array,
    threshold: int,
    out_PH: Array,
) -> None:
    float_type = x_PH.dtype.type
    scale, zero, low = float_type(1 / (1 - threshold / 2**32)), float_type(0), float_type(alpha)
    width = len(weight_H)
    normed_H = np.empty(width, x_PH.dtype)
    for p in range(begin, end):
        _normalise(x_PH[p], normed_H)
        key = keys_P[p] if len(keys_P) else 0
        for h in range(width):
            y = normed_H[h] * weight_H[h] + bias_H[h]
            active = y if y > zero else low * _exp_minus_one(min(y, zero), float_type)
            kept = zero if _dropped(key, h, threshold) else scale
            out_PH[p, h] = residual_PH[p, h] + kept * active


@compiled
def _block_rows_backward(
    begin: int,
    end: int,
    grad_PH: Array,
    x_PH: Array,
    weight_H: Array,
    bias_H: Array,
    alpha: float,
    keys_P: Array,
    threshold: int,
    grad_x_PH: Array,
    grad_weight_H: Array,
    grad_bias_H: Array,
) -> None:
    float_type = x_PH.dtype.type
    scale, zero, low = float_type(1 / (1 - threshold / 2**32)), float_type(0), float_type(alpha)
    width = len(weight_H)
    normed_H = np.empty(width, x_PH.dtype)
    for p in range(begin, end):
        inverse = _normalise(x_PH[p], normed_H)
        key = keys_P[p] if len(keys_P) else 0
        mean = projection = zero
        for h in range(width):
            y = normed_H[h] * weight_H[h] + bias_H[h]
            slope = float_type(1) if y > zero else low * (_exp_minus_one(min(y, zero), float_type) + float_type(1))
            kept = zero if _dropped(key, h, threshold) else scale
            grad = grad_PH[p, h] * kept * slope
            grad_bias_H[h] += grad
            grad_weight_H[h] += grad * normed_H[h]
            grad *= weight_H[h]
            mean += grad
            projection += grad * normed_H[h]
            grad_x_PH[p, h] = grad
        mean /= float_type(width)
        projection /= float_type(width)
        for h in range(width):
            grad_x_PH[p, h] = inverse * (grad_x_PH[p, h] - mean - normed_H[h] * projection)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sent_PAC: Tensor,
        received_PAC: Tensor,
        weight_AC: Tensor,
        graph: MessageGraph,
        dropout: Dropout | None,
    ) -> Tensor:
        """Keeps the attention (M, A), before dropout, for the way back."""
        attention_MA = sent_PAC.new_empty(len(graph.source_M), len(weight_AC))
        out_PAC = torch.empty_like(received_PAC)
        arrays = _arrays(sent_PAC, received_PAC, weight_AC, graph.received_P1, graph.source_M)
        results = _arrays(attention_MA, out_PAC)
        keys_and_threshold = _drawn(dropout)
        _by_blocks(len(out_PAC), lambda _, begin, end: _attend_rows(begin, end, *arrays, *keys_and_threshold, *results))
        ctx.save_for_backward(sent_PAC, received_PAC, weight_AC, attention_MA)
        ctx.graph, ctx.dropout = graph, dropout
        return out_PAC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PAC: Tensor) -> tuple[Tensor | None, ...]:
        """First what each patch received, which gives the scores' gradients; then what each sent."""
        graph, (keys_M, threshold) = ctx.graph, _drawn(ctx.dropout)
        sent_PAC, received_PAC, weight_AC, attention_MA = ctx.saved_tensors
        inputs = _arrays(grad_PAC.contiguous(), sent_PAC, received_PAC, weight_AC)
        blocks = -(-len(grad_PAC) // BLOCK)
        grad_score_MA, grad_sent_PAC = torch.empty_like(attention_MA), torch.empty_like(sent_PAC)
        grad_received_PAC, grad_weight_NAC = torch.empty_like(sent_PAC), weight_AC.new_zeros(blocks, *weight_AC.shape)
        received, sent = (
            _arrays(graph.received_P1, graph.source_M),
            _arrays(graph.sent_P1, graph.message_M, graph.target_M),
        )
        scores = _arrays(attention_MA, grad_score_MA)
        (to_received, to_sent, to_weight) = _arrays(grad_received_PAC, grad_sent_PAC, grad_weight_NAC)

        def back_to_received(block: int, begin: int, end: int) -> None:
            results = (*scores, to_received, to_weight[block])
            _attend_rows_backward_received(begin, end, *inputs, *received, keys_M, threshold, *results)

        def back_to_sent(block: int, begin: int, end: int) -> None:
            results = (*scores, to_sent, to_weight[block])
            _attend_rows_backward_sent(begin, end, *inputs, *sent, keys_M, threshold, *results)

        _by_blocks(len(grad_PAC), back_to_received)
        _by_blocks(len(grad_PAC), back_to_sent)
        return grad_sent_PAC, grad_received_PAC, grad_weight_NAC.sum(0), None, None


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
        """Keeps its input alone."""
        out_PH = torch.empty_like(x_PH)
        arrays = (*_arrays(x_PH, residual_PH, weight_H, bias_H), alpha, *_drawn(dropout), *_arrays(out_PH))
        _by_blocks(len(x_PH), lambda _, begin, end: _block_rows(begin, end, *arrays))
        ctx.save_for_backward(x_PH, weight_H, bias_H)
        ctx.alpha, ctx.dropout = alpha, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """The residual's gradient is the one that comes in."""
        x_PH, weight_H, bias_H = ctx.saved_tensors
        blocks = -(-len(x_PH) // BLOCK)
        grad_x_PH, grad_weights_2NH = torch.empty_like(x_PH), weight_H.new_zeros(2, blocks, len(weight_H))
        arrays = (*_arrays(grad_PH.contiguous(), x_PH, weight_H, bias_H), ctx.alpha, *_drawn(ctx.dropout))
        to_x, to_weights = _arrays(grad_x_PH, grad_weights_2NH)
        _by_blocks(
            len(x_PH),
            lambda block, begin, end: _block_rows_backward(begin, end, *arrays, to_x, *to_weights[:, block]),
        )
        return grad_x_PH, grad_PH, *grad_weights_2NH.sum(1).unbind(), None, None


def attend(
    sent_PAC: Tensor, received_PAC: Tensor, weight_AC: Tensor, graph: MessageGraph, dropout: Dropout | None
) -> Tensor:
    """See `momkd_ray.model.kernels.attend`; float32 or float64."""
    tensors = (x.contiguous() for x in (sent_PAC, received_PAC, weight_AC))
    out_PAC: Tensor = _Attend.apply(*tensors, graph, dropout)  # type: ignore[no-untyped-call]
    return out_PAC


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """See `momkd_ray.model.kernels.residual_block`; float32 or float64."""
    tensors = (x.contiguous() for x in (x_PH, residual_PH, weight_H, bias_H))
    out_PH: Tensor = _ResidualBlock.apply(*tensors, alpha, dropout)  # type: ignore[no-untyped-call]
    return out_PH


def _arrays(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def _drawn(dropout: Dropout | None) -> tuple[Array, int]:
    """Keys and threshold as the kernels take them: no keys where nothing is dropped."""
    return (_NO_KEYS, 0) if dropout is None else (dropout.keys_N.numpy(), dropout.threshold)


def _by_blocks(rows: int, work: Callable[[int, int, int], object]) -> None:
    """`work(block, first row, end)` for every block, on as many threads as PyTorch uses."""
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


# a forked process has the pools but not their threads
os.register_at_fork(after_in_child=_pool.cache_clear)
