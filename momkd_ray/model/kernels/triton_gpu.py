"""The GPU backend: the Triton kernels of attention and residual block under one name."""

from momkd_ray.model.kernels.triton_attention import attend
from momkd_ray.model.kernels.triton_block import residual_block

__all__ = ["attend", "residual_block"]
