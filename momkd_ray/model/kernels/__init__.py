"""The operations of a GATv2 layer besides its matrix products, dispatched to the fastest backend of the device."""

from __future__ import annotations

import os
import shutil
import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import Dropout
from momkd_ray.model.kernels import reference


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """Computes GATv2's attention and aggregates its messages (docs/method.md §2), (P, H) with H = A C.

    The attention of message i -> j in head a is softmax_i(weight[a] . leaky_relu(sent[i, a] + received[j, a])) over
    all messages that j receives; after dropout, j receives the weighted sum of sent[i, a], plus the bias.

    Args:
        sent_PH: W_l x of the sending patches.
        received_PH: W_r x of the receiving patches.
        weight_AC: attention vector of each head.
        bias_H: added to every row.
        graph: the messages.
        dropout: of the attention, one row per message in receiving order and one column per head.

    Raises:
        ValueError: sizes, devices or types do not fit together.
    """
    heads, width = weight_AC.shape
    _check((len(graph.sent_P1) - 1, heads * width), sent=sent_PH)
    _check((len(graph.received_P1) - 1, heads * width), received=received_PH)
    _check((heads * width,), bias=bias_H)
    keys = [] if dropout is None else [dropout.keys_N]
    _check((len(graph.source_M),), keys=keys[0] if keys else None)
    _check_devices(sent_PH, received_PH, weight_AC, bias_H, graph.source_M, *keys)
    sent_PH, received_PH, weight_AC, bias_H = _computable(sent_PH, received_PH, weight_AC, bias_H)
    out_PH: Tensor = _backend(sent_PH).attend(sent_PH, received_PH, weight_AC, bias_H, graph, dropout)
    return out_PH


def residual_block(
    x_PH: Tensor, residual_PH: Tensor, weight_H: Tensor, bias_H: Tensor, alpha: float, dropout: Dropout | None
) -> Tensor:
    """Computes dropout(elu(LayerNorm(x))) + residual, (P, H); with alpha 0 the activation is ReLU.

    Args:
        x_PH: the input of LayerNorm.
        residual_PH: added at the end.
        weight_H: scale of LayerNorm.
        bias_H: shift of LayerNorm.
        alpha: of ELU, which tends to -alpha for negative inputs.
        dropout: one row per patch.

    Raises:
        ValueError: sizes, devices or types do not fit together.
    """
    patches, width = x_PH.shape
    _check((patches, width), residual=residual_PH)
    _check((width,), weight=weight_H, bias=bias_H)
    _check((patches,), keys=None if dropout is None else dropout.keys_N)
    _check_devices(x_PH, residual_PH, weight_H, bias_H, *([] if dropout is None else [dropout.keys_N]))
    x_PH, residual_PH, weight_H, bias_H = _computable(x_PH, residual_PH, weight_H, bias_H)
    out_PH: Tensor = _backend(x_PH).residual_block(x_PH, residual_PH, weight_H, bias_H, alpha, dropout)
    return out_PH


def _backend(x: Tensor) -> ModuleType:
    if x.device.type == "cpu":
        from momkd_ray.model.kernels import cpu  # numba takes half a second to import

        return cpu
    if x.device.type == "cuda" and x.dtype == torch.float32 and triton_works():
        from momkd_ray.model.kernels import triton_gpu as gpu

        return gpu
    return reference


@cache
def triton_works() -> bool:
    """Returns whether Triton is installed, and a C compiler with which it builds its launchers on first use."""
    if find_spec("triton") is None:
        missing = "Triton"
    elif os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc"))):
        return True
    else:
        missing = "a C compiler"
    warnings.warn(
        f"without {missing} the graph attention runs on this GPU in plain PyTorch, slower and with more memory",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _check(shape: tuple[int, ...], **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but must have {shape}")


def _check_devices(*tensors: Tensor) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {' and '.join(sorted(devices))}; move them to one device")


def _computable(*tensors: Tensor) -> list[Tensor]:
    """Casts all to one float type: float64 if all are float64, else float32."""
    wanted = torch.float64 if all(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"{tensor.dtype} is not a floating-point type")
    return [tensor.to(wanted) for tensor in tensors]
