"""What a GATv2 layer does between its matrix products, by the fastest means that the tensors' device has."""

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
from momkd_ray.model.kernels import cpu, reference


def attend(
    sent_PH: Tensor,
    received_PH: Tensor,
    weight_AC: Tensor,
    bias_H: Tensor,
    graph: MessageGraph,
    dropout: Dropout | None,
) -> Tensor:
    """GATv2's attention and its messages (method 2), (P, H) with H = A C.

    Head a of message i -> j weighs softmax_i(weight[a] . leaky_relu(sent[i, a] + received[j, a])), over all that j
    receives; after dropout, j gets the so weighted sum of sent[i, a], and the bias.

    Args:
        sent_PH: W_l x, what patches send.
        received_PH: W_r x, what they compare it with; of a part of a graph only the rows that receive.
        weight_AC: the attention's vector for each of A heads.
        bias_H: added to every row.
        graph: of the P patches.
        dropout: of the attention, a row a message in the order received and a column a head.

    Raises:
        ValueError: sizes, devices or types that do not go together.
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
    """dropout(elu(LayerNorm(x))) + residual, (P, H); with alpha 0 the activation is ReLU.

    Args:
        x_PH: what is normalised.
        residual_PH: what is added.
        weight_H, bias_H: LayerNorm's.
        alpha: ELU's: what it goes to far below 0, negated.
        dropout: a row a patch.

    Raises:
        ValueError: sizes, devices or types that do not go together.
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
        return cpu
    if x.device.type == "cuda" and x.dtype == torch.float32 and triton_works():
        from momkd_ray.model.kernels import triton_gpu as gpu

        return gpu
    return reference


@cache
def triton_works() -> bool:
    """Whether Triton is there with the C compiler that it builds its launchers with on first use."""
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
            raise ValueError(f"{name} is {tuple(tensor.shape)}, but {shape} is wanted")


def _check_devices(*tensors: Tensor) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {' and '.join(sorted(devices))}; move them to one device")


def _computable(*tensors: Tensor) -> list[Tensor]:
    """All in one float type: float64 if they are, else float32."""
    wanted = torch.float64 if all(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"{tensor.dtype} is no float type")
    return [tensor.to(wanted) for tensor in tensors]
