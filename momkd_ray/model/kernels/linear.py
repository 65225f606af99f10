"""Linear layers of the slide encoder, in float32 or bfloat16, by the fastest library of the device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Linear(nn.Linear):
    """A linear layer that multiplies in its input's type, float32 or bfloat16, and returns float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (P, F) to (P, H)."""
        if input.dtype == torch.bfloat16:
            product: Any = _HalfLinear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        elif input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32 and _has_onednn():
            product = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            product = super().forward(input)
        return product  # type: ignore[no-any-return]


def multiplies_bf16(device: torch.device) -> bool:
    """Returns whether the device has bfloat16 instructions; a CPU without them would take five times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public function for these two
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


@cache
def _has_onednn() -> bool:
    """Returns whether PyTorch has oneDNN products of float32, on CPUs not by Intel a fifth faster than MKL's."""
    built: Any = torch.backends.mkldnn
    return built.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _by_onednn(x_PF: Tensor, weight_HF: Tensor, bias_H: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_PF, weight_HF, bias_H, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PF: Tensor, weight_HF: Tensor, bias_H: Tensor) -> Tensor:
        ctx.save_for_backward(x_PF, weight_HF)
        return _by_onednn(x_PF, weight_HF, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the weight's gradient by MKL, which is as fast at a product of this shape."""
        x_PF, weight_HF = ctx.saved_tensors
        to_x_PF = _by_onednn(grad_PH.contiguous(), weight_HF.T, None) if ctx.needs_input_grad[0] else None
        return to_x_PF, grad_PH.T @ x_PF, grad_PH.sum(0)


class _HalfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PF: Tensor, weight_HF: Tensor, bias_H: Tensor) -> Tensor:
        half_HF = weight_HF.bfloat16()
        ctx.save_for_backward(x_PF, half_HF)
        return F.linear(x_PF, half_HF) + bias_H  # the float32 bias makes the sum float32

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        x_PF, half_HF = ctx.saved_tensors
        half_PH = grad_PH.bfloat16()
        to_x_PF = half_PH @ half_HF if ctx.needs_input_grad[0] else None
        return to_x_PF, (half_PH.T @ x_PF).float(), grad_PH.sum(0)
