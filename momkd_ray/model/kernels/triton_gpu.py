"""The kernels for a GPU, in Triton: as on a CPU, nothing as large as messages x features is ever made.

No program adds to what another one writes: weights' gradients are summed by blocks, which the number of rows alone
decides, and the blocks' sums by PyTorch in a fixed order. So the result has the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import COLUMN, FACTOR1, FACTOR2, Dropout
from momkd_ray.model.kernels.cpu_loops import EPSILON
from momkd_ray.model.kernels.reference import SLOPE

TOGETHER = 2
"""Messages a program fetches at a time: with more, those that a patch lacks to a full number cost more than is won."""
PROGRAMS = 4096
"""Of the way back, at most twice as many: enough to fill a GPU, and few enough to keep the partial gradients small."""
_COLUMN, _FACTOR1, _FACTOR2 = tl.constexpr(COLUMN), tl.constexpr(FACTOR1), tl.constexpr(FACTOR2)
_SLOPE, _EPSILON = tl.constexpr(SLOPE), tl.constexpr(EPSILON)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, and not again for a bag with another number of patches."""
    return triton.jit(do_not_specialize=["patches", "threshold"])(function)


@compiled
def kept(
    keys_N: tl.tensor, row: tl.tensor, there: tl.tensor, column: tl.tensor, threshold: tl.tensor, scale: tl.tensor
) -> Any:
    """What dropout multiplies an entry by, where there is one; see `Dropout`."""
    factor = scale
    if keys_N is not None:
        h = tl.load(keys_N + row, there).to(tl.uint32) + column.to(tl.uint32) * _COLUMN
        h = (h ^ (h >> 16)) * _FACTOR1
        h = (h ^ (h >> 15)) * _FACTOR2
        h = h ^ (h >> 16)
        factor = tl.where(h.to(tl.int64) < threshold, 0.0, scale)
    return factor


@compiled
def attend_rows(
    sent_PH: tl.tensor,
    received_PH: tl.tensor,
    weight_AC: tl.tensor,
    bias_H: tl.tensor,
    received_P1: tl.tensor,
    source_M: tl.tensor,
    keys_M: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    score_MA: tl.tensor,
    normaliser_PA: tl.tensor,
    out_PH: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """One head of what one patch receives, in one pass: where a score is the highest yet, the sums so far shrink."""
    target, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column_C = tl.arange(0, PADDED)
    inside_C = column_C < WIDTH
    at_C = head * WIDTH + column_C
    received_C = tl.load(received_PH + target * heads * WIDTH + at_C, inside_C, 0.0)
    weight_C = tl.load(weight_AC + at_C, inside_C, 0.0)
    highest, total = tl.full([], float("-inf"), tl.float32), tl.full([], 0.0, tl.float32)
    sum_C = tl.full([PADDED], 0.0, tl.float32)
    first, last = tl.load(received_P1 + target).to(tl.int64), tl.load(received_P1 + target + 1).to(tl.int64)
    for begin in range(first, last, TOGETHER):
        m_T = begin + tl.arange(0, TOGETHER)
        there_T = m_T < last
        source_T = tl.load(source_M + m_T, there_T, 0).to(tl.int64)
        sent_TC = tl.load(sent_PH + source_T[:, None] * heads * WIDTH + at_C, there_T[:, None] & inside_C, 0.0)
        pair_TC = sent_TC + received_C
        score_T = tl.sum(weight_C * tl.where(pair_TC > 0, pair_TC, pair_TC * _SLOPE), 1)
        tl.store(score_MA + m_T * heads + head, score_T, there_T)
        score_T = tl.where(there_T, score_T, float("-inf"))
        higher = tl.maximum(highest, tl.max(score_T, 0))
        shrink, share_T = tl.exp(highest - higher), tl.exp(score_T - higher)
        total = total * shrink + tl.sum(share_T, 0)
        weighted_T = share_T * kept(keys_M, m_T, there_T, head, threshold, scale)
        sum_C = sum_C * shrink + tl.sum(weighted_T[:, None] * sent_TC, 0)
        highest = higher
    total = tl.where(total == 0, 1.0, total)  # a patch that receives nothing
    tl.store(normaliser_PA + target * heads + head, highest + tl.log(total))
    bias_C = tl.load(bias_H + at_C, inside_C, 0.0)
    tl.store(out_PH + target * heads * WIDTH + at_C, sum_C / total + bias_C, inside_C)


@compiled
def attend_rows_backward_received(
    grad_PH: tl.tensor,
    sent_PH: tl.tensor,
    received_PH: tl.tensor,
    weight_AC: tl.tensor,
    bias_H: tl.tensor,
    out_PH: tl.tensor,
    received_P1: tl.tensor,
    source_M: tl.tensor,
    keys_M: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    score_MA: tl.tensor,
    normaliser_PA: tl.tensor,
    grad_score_MA: tl.tensor,
    grad_received_PH: tl.tensor,
    grad_weight_NAC: tl.tensor,
    patches: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """One head of the gradients of a block's received rows and of its messages' scores.

    The softmax wants the mean of the attention's gradients, weighted by the attention. As each is grad . sent, kept,
    that mean is grad . (out - bias), and no second pass over the messages is needed.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    column_C = tl.arange(0, PADDED)
    inside_C = column_C < WIDTH
    at_C = head * WIDTH + column_C
    weight_C, bias_C = tl.load(weight_AC + at_C, inside_C, 0.0), tl.load(bias_H + at_C, inside_C, 0.0)
    grad_weight_C = tl.full([PADDED], 0.0, tl.float32)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    for target in range(begin, tl.minimum(begin + ROWS, patches)):
        row_C = target * heads * WIDTH + at_C
        received_C, grad_C = tl.load(received_PH + row_C, inside_C, 0.0), tl.load(grad_PH + row_C, inside_C, 0.0)
        mean = tl.sum(grad_C * (tl.load(out_PH + row_C, inside_C, 0.0) - bias_C), 0)
        normaliser = tl.load(normaliser_PA + target * heads + head)
        through_C = tl.full([PADDED], 0.0, tl.float32)
        first, last = tl.load(received_P1 + target).to(tl.int64), tl.load(received_P1 + target + 1).to(tl.int64)
        for start in range(first, last, TOGETHER):
            m_T = start + tl.arange(0, TOGETHER)
            there_T = m_T < last
            source_T = tl.load(source_M + m_T, there_T, 0).to(tl.int64)
            score_T = tl.load(score_MA + m_T * heads + head, there_T, float("-inf"))
            sent_TC = tl.load(sent_PH + source_T[:, None] * heads * WIDTH + at_C, there_T[:, None] & inside_C, 0.0)
            grad_T = kept(keys_M, m_T, there_T, head, threshold, scale) * tl.sum(grad_C * sent_TC, 1)
            grad_score_T = tl.exp(score_T - normaliser) * (grad_T - mean)
            tl.store(grad_score_MA + m_T * heads + head, grad_score_T, there_T)
            through_C += tl.sum(grad_score_T[:, None] * tl.where(sent_TC + received_C > 0, 1.0, _SLOPE), 0)
        tl.store(grad_received_PH + row_C, through_C * weight_C, inside_C)
        grad_weight_C += through_C * received_C
    tl.store(grad_weight_NAC + tl.program_id(0).to(tl.int64) * heads * WIDTH + at_C, grad_weight_C, inside_C)


@compiled
def attend_rows_backward_sent(
    grad_PH: tl.tensor,
    sent_PH: tl.tensor,
    received_PH: tl.tensor,
    weight_AC: tl.tensor,
    sent_P1: tl.tensor,
    message_M: tl.tensor,
    target_M: tl.tensor,
    keys_M: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    score_MA: tl.tensor,
    normaliser_PA: tl.tensor,
    grad_score_MA: tl.tensor,
    grad_sent_PH: tl.tensor,
    grad_weight_NAC: tl.tensor,
    patches: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
) -> None:
    """One head of the gradients of a block's sent rows, through the scores and through the messages."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    column_C = tl.arange(0, PADDED)
    inside_C = column_C < WIDTH
    at_C = head * WIDTH + column_C
    weight_C = tl.load(weight_AC + at_C, inside_C, 0.0)
    grad_weight_C = tl.full([PADDED], 0.0, tl.float32)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    for source in range(begin, tl.minimum(begin + ROWS, patches)):
        row_C = source * heads * WIDTH + at_C
        sent_C = tl.load(sent_PH + row_C, inside_C, 0.0)
        through_C, grad_sent_C = tl.full([PADDED], 0.0, tl.float32), tl.full([PADDED], 0.0, tl.float32)
        first, last = tl.load(sent_P1 + source).to(tl.int64), tl.load(sent_P1 + source + 1).to(tl.int64)
        for start in range(first, last, TOGETHER):
            place_T = start + tl.arange(0, TOGETHER)
            there_T = place_T < last
            m_T = tl.load(message_M + place_T, there_T, 0).to(tl.int64)
            target_T = tl.load(target_M + place_T, there_T, 0).to(tl.int64)
            row_TC = target_T[:, None] * heads * WIDTH + at_C
            received_TC = tl.load(received_PH + row_TC, there_T[:, None] & inside_C, 0.0)
            factor_T = kept(keys_M, m_T, there_T, head, threshold, scale)
            # of a dropped message no row is fetched
            wanted_T = tl.where(factor_T != 0, there_T, False)
            grad_TC = tl.load(grad_PH + row_TC, wanted_T[:, None] & inside_C, 0.0)
            score_T = tl.load(score_MA + m_T * heads + head, there_T, float("-inf"))
            normaliser_T = tl.load(normaliser_PA + target_T * heads + head, there_T, 0.0)
            grad_score_T = tl.load(grad_score_MA + m_T * heads + head, there_T, 0.0)
            through_C += tl.sum(grad_score_T[:, None] * tl.where(sent_C + received_TC > 0, 1.0, _SLOPE), 0)
            grad_sent_C += tl.sum((factor_T * tl.exp(score_T - normaliser_T))[:, None] * grad_TC, 0)
        tl.store(grad_sent_PH + row_C, grad_sent_C + through_C * weight_C, inside_C)
        grad_weight_C += through_C * sent_C
    tl.store(grad_weight_NAC + tl.program_id(0).to(tl.int64) * heads * WIDTH + at_C, grad_weight_C, inside_C)


@compiled
def normalised(x_H: tl.tensor, inside_H: tl.tensor, WIDTH: tl.constexpr) -> Any:
    """LayerNorm without its weights, and 1 / standard deviation."""
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
    """A row of a residual block."""
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
    """The gradients of a block of rows, each normalised anew."""
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
        """Keeps the scores (M, A) and each softmax's normaliser (P, A), a logarithm, for the way back."""
        heads, width = weight_AC.shape
        score_MA, normaliser_PA = (sent_PH.new_empty(n, heads) for n in (len(graph.source_M), len(received_PH)))
        out_PH = torch.empty_like(received_PH)
        inputs = (sent_PH, received_PH, weight_AC, bias_H, graph.received_P1, graph.source_M, *_drawn(dropout))
        results = (score_MA, normaliser_PA, out_PH)
        _launch(attend_rows, (len(out_PH), heads), width, *inputs, *results, TOGETHER=TOGETHER)
        ctx.save_for_backward(sent_PH, received_PH, weight_AC, bias_H, out_PH, score_MA, normaliser_PA)
        ctx.graph, ctx.dropout = graph, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """First what each patch received, which gives the scores' gradients; then what each sent."""
        graph, grad_PH = ctx.graph, grad_PH.contiguous()
        if len(graph.target_M) != len(graph.source_M):
            raise ValueError("a part of a graph has no way back; take the whole")
        sent_PH, received_PH, weight_AC, bias_H, out_PH, score_MA, normaliser_PA = ctx.saved_tensors
        (heads, width), blocks = weight_AC.shape, _blocks(received_PH)
        grad_score_MA, grad_sent_PH, grad_received_PH = map(torch.empty_like, (score_MA, sent_PH, received_PH))
        grad_weight_NAC = weight_AC.new_empty(blocks + _blocks(sent_PH), heads, width)
        inputs = (grad_PH, sent_PH, received_PH, weight_AC)
        shared = (*_drawn(ctx.dropout), score_MA, normaliser_PA, grad_score_MA)
        received = (bias_H, out_PH, graph.received_P1, graph.source_M, *shared, grad_received_PH)
        sent = (graph.sent_P1, graph.message_M, graph.target_M, *shared, grad_sent_PH)
        to_received, to_sent = (grad_weight_NAC[:blocks], len(received_PH)), (grad_weight_NAC[blocks:], len(sent_PH))
        for kernel, rows_PH, arguments in (
            (attend_rows_backward_received, received_PH, (*received, *to_received)),
            (attend_rows_backward_sent, sent_PH, (*sent, *to_sent)),
        ):
            sizes = {"ROWS": _rows_a_program(rows_PH), "TOGETHER": TOGETHER}
            _launch(kernel, (_blocks(rows_PH), heads), width, *inputs, *arguments, **sizes)
        return grad_sent_PH, grad_received_PH, grad_weight_NAC.sum(0), grad_PH.sum(0), None, None


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
        inputs = (x_PH, residual_PH, weight_H, bias_H, alpha, *_drawn(dropout))
        _launch(block_rows, (len(x_PH),), len(weight_H), *inputs, out_PH)
        ctx.save_for_backward(x_PH, weight_H, bias_H)
        ctx.alpha, ctx.dropout = alpha, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """The residual's gradient is the one that comes in."""
        x_PH, weight_H, bias_H = ctx.saved_tensors
        grad_x_PH, grad_weights_2NH = torch.empty_like(x_PH), weight_H.new_empty(2, _blocks(x_PH), len(weight_H))
        inputs = (grad_PH.contiguous(), x_PH, weight_H, bias_H, ctx.alpha, *_drawn(ctx.dropout))
        results = (grad_x_PH, *grad_weights_2NH.unbind())
        arguments = (*inputs, *results, len(x_PH))
        _launch(block_rows_backward, (_blocks(x_PH),), len(weight_H), *arguments, ROWS=_rows_a_program(x_PH))
        return grad_x_PH, grad_PH, *grad_weights_2NH.sum(1).unbind(), None, None


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """See `momkd_ray.model.kernels.attend`; float32."""
    tensors = (x.contiguous() for x in (sent_PH, received_PH, weight_AC, bias_H))
    out_PH: Tensor = _Attend.apply(*tensors, graph, dropout)  # type: ignore[no-untyped-call]
    return out_PH


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """See `momkd_ray.model.kernels.residual_block`; float32."""
    tensors = (x.contiguous() for x in (x_PH, residual_PH, weight_H, bias_H))
    out_PH: Tensor = _ResidualBlock.apply(*tensors, alpha, dropout)  # type: ignore[no-untyped-call]
    return out_PH


def _drawn(dropout: Dropout | None) -> tuple[Tensor | None, int, float]:
    """Keys, threshold and what kept entries are multiplied by; without keys nothing is dropped."""
    if dropout is None:
        return None, 0, 1.0
    return dropout.keys_N.contiguous(), dropout.threshold, 1 / max(1 - dropout.p, 2**-32)


def _rows_a_program(x_PH: Tensor) -> int:
    """A power of two, as each is a kernel of its own."""
    return int(triton.next_power_of_2(max(len(x_PH) // PROGRAMS, 1)))


def _blocks(x_PH: Tensor) -> int:
    return -(-len(x_PH) // _rows_a_program(x_PH))


def _launch(kernel: Any, grid: tuple[int, ...], width: int, *arguments: Any, **sizes: int) -> None:
    """On the device of the first argument, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, **_sizes(width), **sizes)


def _sizes(width: int) -> dict[str, int]:
    """A row's width, the power of two that holds it, and the warps that share it, 16 numbers a thread."""
    padded = triton.next_power_of_2(width)
    # said rather than left to Triton, whose releases differ in it
    fused = {"enable_fp_fusion": True}
    return {"WIDTH": width, "PADDED": padded, "num_warps": min(max(padded // 512, 1), 16), **fused}
