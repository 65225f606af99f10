"""The loops of the CPU backend, compiled by numba: one row at a time stays in cache, dropout masks are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from momkd_ray.model.dropout import COLUMN, FACTOR1, FACTOR2
from momkd_ray.model.kernels.reference import SLOPE

Array = NDArray[Any]

EPSILON = 1e-5
"""Epsilon of LayerNorm, PyTorch's default."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a loop on first use, without the GIL, and caches the machine code on disk where possible.

    Sums may be reordered to use vector instructions; infinities and NaN keep their meaning. No loop both sums and
    stores: depending on the distance between two arrays in memory the compiler's code would sum in another order, and
    the same input would give other bits from one call to the next.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        kernel: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the home directory can be written to
        kernel = numba.njit(**options)(function)
    return kernel


@compiled
def is_dropped(key: int, column: int, threshold: int) -> Any:
    """Returns whether a mask entry is dropped; see `Dropout`."""
    h = np.uint32(np.uint32(key) + np.uint32(np.uint32(column) * np.uint32(COLUMN)))
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(FACTOR1))
    h ^= h >> np.uint32(15)
    h = np.uint32(h * np.uint32(FACTOR2))
    h ^= h >> np.uint32(16)
    return h < np.uint32(threshold)


@compiled
def attend_rows(
    begin: int,
    end: int,
    sent_PAC: Array,
    received_PAC: Array,
    weight_AC: Array,
    bias_AC: Array,
    received_P1: Array,
    source_M: Array,
    keys_M: Array,
    threshold: int,
    attention_MA: Array,
    out_PAC: Array,
) -> None:
    """Computes attention and output of the receiving patches `begin` to `end`, head by head."""
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
            for m in range(first, last):
                total += attention_MA[m, a]
            out_C[:] = bias_AC[a]
            for m in range(first, last):
                attention_MA[m, a] /= total
                share = attention_MA[m, a]
                if len(keys_M):
                    share = zero if is_dropped(keys_M[m], a, threshold) else share * scale
                if share != zero:
                    sent_C = sent_PAC[source_M[m], a]
                    for c in range(width):
                        out_C[c] += share * sent_C[c]


@compiled
def attend_rows_backward_received(
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
    grad_bias_AC: Array,
) -> None:
    """Computes the gradients of the scores and of the received rows `begin` to `end`.

    As LeakyReLU(s) is s times its slope, the sum of grad score x slope over a row's messages, times the row, is the
    row's contribution to the gradient of the attention vector; the senders add theirs.
    """
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
                if not len(keys_M) or not is_dropped(keys_M[m], a, threshold):
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
                grad_bias_AC[a, c] += grad_C[c]
                grad_received_C[c] *= weight_AC[a, c]


@compiled
def attend_rows_backward_sent(
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
    """Computes the gradients of the sent rows `begin` to `end`, through the scores and through the messages."""
    heads, width = weight_AC.shape
    slope, zero, one = sent_PAC.dtype.type(SLOPE), sent_PAC.dtype.type(0), sent_PAC.dtype.type(1)
    scale = sent_PAC.dtype.type(1 / (1 - threshold / 2**32))
    through_C = np.empty(width, sent_PAC.dtype)
    for source in range(begin, end):
        for a in range(heads):
            sent_C, grad_sent_C = sent_PAC[source, a], grad_sent_PAC[source, a]
            through_C[:] = zero
            grad_sent_C[:] = zero
            for s in range(sent_P1[source], sent_P1[source + 1]):
                m, target = message_M[s], target_M[s]
                received_C, grad_score = received_PAC[target, a], grad_score_MA[m, a]
                for c in range(width):
                    through_C[c] += grad_score * (one if sent_C[c] + received_C[c] > zero else slope)
                if not len(keys_M) or not is_dropped(keys_M[m], a, threshold):
                    share, grad_C = attention_MA[m, a] * scale, grad_PAC[target, a]
                    for c in range(width):
                        grad_sent_C[c] += share * grad_C[c]
            for c in range(width):
                grad_weight_AC[a, c] += sent_C[c] * through_C[c]
                grad_sent_C[c] += weight_AC[a, c] * through_C[c]


@compiled
def exp_minus_one(x: Any, float_type: Any) -> Any:
    """Computes exp(x) - 1 for x <= 0 by additions and products alone, so that the loop vectorises.

    A Taylor series near 0, then u(2x) = u(x) (u(x) + 2) six times, which has no cancellation.
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
def normalise(x_H: Array, normed_H: Array) -> Any:
    """Normalises a row without LayerNorm's weights; returns 1 / standard deviation."""
    float_type = x_H.dtype.type
    width = len(x_H)
    mean = square = float_type(0)
    for h in range(width):
        mean += x_H[h]
    mean /= float_type(width)
    for h in range(width):
        square += (x_H[h] - mean) * (x_H[h] - mean)
    inverse = float_type(1) / math.sqrt(square / float_type(width) + float_type(EPSILON))
    for h in range(width):
        normed_H[h] = (x_H[h] - mean) * inverse
    return inverse


@compiled
def block_rows(
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
    """Computes rows `begin` to `end` of a residual block."""
    float_type = x_PH.dtype.type
    scale, zero, low = float_type(1 / (1 - threshold / 2**32)), float_type(0), float_type(alpha)
    width = len(weight_H)
    normed_H = np.empty(width, x_PH.dtype)
    for p in range(begin, end):
        normalise(x_PH[p], normed_H)
        key = keys_P[p] if len(keys_P) else 0
        for h in range(width):
            y = normed_H[h] * weight_H[h] + bias_H[h]
            active = y if y > zero else low * exp_minus_one(min(y, zero), float_type)
            kept = zero if is_dropped(key, h, threshold) else scale
            out_PH[p, h] = residual_PH[p, h] + kept * active


@compiled
def block_rows_backward(
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
    """Computes the gradients of rows `begin` to `end` of a residual block; normalises each row again."""
    float_type = x_PH.dtype.type
    scale, zero, low = float_type(1 / (1 - threshold / 2**32)), float_type(0), float_type(alpha)
    width = len(weight_H)
    normed_H = np.empty(width, x_PH.dtype)
    for p in range(begin, end):
        inverse = normalise(x_PH[p], normed_H)
        key = keys_P[p] if len(keys_P) else 0
        mean = projection = zero
        for h in range(width):
            y = normed_H[h] * weight_H[h] + bias_H[h]
            slope = float_type(1) if y > zero else low * (exp_minus_one(min(y, zero), float_type) + float_type(1))
            kept = zero if is_dropped(key, h, threshold) else scale
            grad = grad_PH[p, h] * kept * slope
            grad_bias_H[h] += grad
            grad_weight_H[h] += grad * normed_H[h]
            grad_x_PH[p, h] = grad * weight_H[h]
        for h in range(width):
            mean += grad_x_PH[p, h]
            projection += grad_x_PH[p, h] * normed_H[h]
        mean /= float_type(width)
        projection /= float_type(width)
        for h in range(width):
            grad_x_PH[p, h] = inverse * (grad_x_PH[p, h] - mean - normed_H[h] * projection)
