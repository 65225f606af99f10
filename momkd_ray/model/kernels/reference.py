"""The reference backend in PyTorch and PyTorch Geometric, for any device; tests compare the others with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import Dropout, apply_dropout

SLOPE = 0.2
"""Negative slope of the attention's LeakyReLU (docs/method.md §2)."""


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """Implements `momkd_ray.model.kernels.attend`."""
    from torch_geometric.utils import softmax  # takes two seconds to import

    source_M, target_M = graph.edge_index_2M
    sent_MAC = sent_PH.view(-1, *weight_AC.shape)[source_M]
    received_PAC = received_PH.view(-1, *weight_AC.shape)
    score_MA = (F.leaky_relu(sent_MAC + received_PAC[target_M], SLOPE) * weight_AC).sum(dim=-1)
    attention_MA = apply_dropout(softmax(score_MA, target_M, num_nodes=len(received_PH)), dropout)
    message_MAC = attention_MA[:, :, None] * sent_MAC
    return torch.zeros_like(received_PAC).index_add(0, target_M, message_MAC).flatten(1) + bias_H


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """Implements `momkd_ray.model.kernels.residual_block`."""
    normed_PH = F.layer_norm(x_PH, weight_H.shape, weight_H, bias_H)
    active_PH = F.elu(normed_PH, alpha) if alpha else F.relu(normed_PH)
    return apply_dropout(active_PH, dropout) + residual_PH
