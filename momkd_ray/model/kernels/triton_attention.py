"""GATv2 attention on a GPU, in Triton: forward in one pass with an online softmax, backward without atomics."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import Dropout
from momkd_ray.model.kernels.reference import SLOPE
from momkd_ray.model.kernels.triton_launch import (
    block_count,
    compiled,
    dropout_arguments,
    kept,
    launch,
    rows_per_program,
)

TOGETHER = 2
"""Messages that a program fetches at a time; with more, padding to a full number costs more than is gained."""
_SLOPE = tl.constexpr(SLOPE)


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
    """Computes one head of one receiving patch in one pass, with an online softmax."""
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
        valid_T = m_T < last
        source_T = tl.load(source_M + m_T, valid_T, 0).to(tl.int64)
        sent_TC = tl.load(sent_PH + source_T[:, None] * heads * WIDTH + at_C, valid_T[:, None] & inside_C, 0.0)
        pair_TC = sent_TC + received_C
        score_T = tl.sum(weight_C * tl.where(pair_TC > 0, pair_TC, pair_TC * _SLOPE), 1)
        tl.store(score_MA + m_T * heads + head, score_T, valid_T)
        score_T = tl.where(valid_T, score_T, float("-inf"))
        higher = tl.maximum(highest, tl.max(score_T, 0))
        shrink, share_T = tl.exp(highest - higher), tl.exp(score_T - higher)
        total = total * shrink + tl.sum(share_T, 0)
        weighted_T = share_T * kept(keys_M, m_T, valid_T, head, threshold, scale)
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
    """Computes one head of the gradients of a block's received rows and of its messages' scores.

    The gradient of the softmax needs the attention-weighted mean of the attention's gradients. As each of these is
    grad . sent after dropout, the mean is grad . (out - bias), and no second pass over the messages is needed.
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
            valid_T = m_T < last
            source_T = tl.load(source_M + m_T, valid_T, 0).to(tl.int64)
            score_T = tl.load(score_MA + m_T * heads + head, valid_T, float("-inf"))
            sent_TC = tl.load(sent_PH + source_T[:, None] * heads * WIDTH + at_C, valid_T[:, None] & inside_C, 0.0)
            grad_T = kept(keys_M, m_T, valid_T, head, threshold, scale) * tl.sum(grad_C * sent_TC, 1)
            grad_score_T = tl.exp(score_T - normaliser) * (grad_T - mean)
            tl.store(grad_score_MA + m_T * heads + head, grad_score_T, valid_T)
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
    """Computes one head of the gradients of a block's sent rows, through the scores and through the messages."""
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
            s_T = start + tl.arange(0, TOGETHER)
            valid_T = s_T < last
            m_T = tl.load(message_M + s_T, valid_T, 0).to(tl.int64)
            target_T = tl.load(target_M + s_T, valid_T, 0).to(tl.int64)
            row_TC = target_T[:, None] * heads * WIDTH + at_C
            received_TC = tl.load(received_PH + row_TC, valid_T[:, None] & inside_C, 0.0)
            factor_T = kept(keys_M, m_T, valid_T, head, threshold, scale)
            # the rows of dropped messages are not fetched
            wanted_T = tl.where(factor_T != 0, valid_T, False)
            grad_TC = tl.load(grad_PH + row_TC, wanted_T[:, None] & inside_C, 0.0)
            score_T = tl.load(score_MA + m_T * heads + head, valid_T, float("-inf"))
            normaliser_T = tl.load(normaliser_PA + target_T * heads + head, valid_T, 0.0)
            grad_score_T = tl.load(grad_score_MA + m_T * heads + head, valid_T, 0.0)
            through_C += tl.sum(grad_score_T[:, None] * tl.where(sent_C + received_TC > 0, 1.0, _SLOPE), 0)
            grad_sent_C += tl.sum((factor_T * tl.exp(score_T - normaliser_T))[:, None] * grad_TC, 0)
        tl.store(grad_sent_PH + row_C, grad_sent_C + through_C * weight_C, inside_C)
        grad_weight_C += through_C * sent_C
    tl.store(grad_weight_NAC + tl.program_id(0).to(tl.int64) * heads * WIDTH + at_C, grad_weight_C, inside_C)


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
        """Saves the scores (M, A) and the softmax's log-normalisers (P, A) for the backward pass."""
        heads, width = weight_AC.shape
        score_MA, normaliser_PA = (sent_PH.new_empty(n, heads) for n in (len(graph.source_M), len(received_PH)))
        out_PH = torch.empty_like(received_PH)
        inputs = (
            sent_PH,
            received_PH,
            weight_AC,
            bias_H,
            graph.received_P1,
            graph.source_M,
            *dropout_arguments(dropout),
        )
        results = (score_MA, normaliser_PA, out_PH)
        launch(attend_rows, (len(out_PH), heads), width, *inputs, *results, TOGETHER=TOGETHER)
        ctx.save_for_backward(sent_PH, received_PH, weight_AC, bias_H, out_PH, score_MA, normaliser_PA)
        ctx.graph, ctx.dropout = graph, dropout
        return out_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Goes over the receiving patches, which yields the scores' gradients, then over the sending patches."""
        graph, grad_PH = ctx.graph, grad_PH.contiguous()
        if len(graph.target_M) != len(graph.source_M):
            raise ValueError("this subgraph has no sending order, so it has no backward pass; use the entire graph")
        sent_PH, received_PH, weight_AC, bias_H, out_PH, score_MA, normaliser_PA = ctx.saved_tensors
        (heads, width), blocks = weight_AC.shape, block_count(received_PH)
        grad_score_MA, grad_sent_PH, grad_received_PH = map(torch.empty_like, (score_MA, sent_PH, received_PH))
        grad_weight_NAC = weight_AC.new_empty(blocks + block_count(sent_PH), heads, width)
        inputs = (grad_PH, sent_PH, received_PH, weight_AC)
        shared = (*dropout_arguments(ctx.dropout), score_MA, normaliser_PA, grad_score_MA)
        received = (bias_H, out_PH, graph.received_P1, graph.source_M, *shared, grad_received_PH)
        sent = (graph.sent_P1, graph.message_M, graph.target_M, *shared, grad_sent_PH)
        to_received, to_sent = (grad_weight_NAC[:blocks], len(received_PH)), (grad_weight_NAC[blocks:], len(sent_PH))
        for kernel, rows_PH, arguments in (
            (attend_rows_backward_received, received_PH, (*received, *to_received)),
            (attend_rows_backward_sent, sent_PH, (*sent, *to_sent)),
        ):
            sizes = {"ROWS": rows_per_program(rows_PH), "TOGETHER": TOGETHER}
            launch(kernel, (block_count(rows_PH), heads), width, *inputs, *arguments, **sizes)
        return grad_sent_PH, grad_received_PH, grad_weight_NAC.sum(0), grad_PH.sum(0), None, None


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """Implements `momkd_ray.model.kernels.attend` in float32."""
    tensors = (x.contiguous() for x in (sent_PH, received_PH, weight_AC, bias_H))
    out_PH: Tensor = _Attend.apply(*tensors, graph, dropout)  # type: ignore[no-untyped-call]
    return out_PH
