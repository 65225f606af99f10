"""TransMIL: a transformer over patches with Nystrom attention (Shao et al. 2021, arXiv 2106.00908).

Shape suffixes beyond those of `model/momkd.py`: V bags of one size, T tokens, L landmarks, A heads, C width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.slide_classifier import SlideModel, SlideOutput, linear_classifier
from momkd_ray.model.dropout import Layers

HEADS = 8  # of the paper
INVERSE_ITERATIONS = 6  # of the paper's pseudo-inverse


class NystromAttention(nn.Module):
    """Self-attention that is approximated by landmarks (Xiong et al. 2021, arXiv 2102.03902, equations 9 to 14).

    `softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V`, with the landmarks Q~ and K~ the means of consecutive
    tokens; the sequence is padded by zeros in front to a multiple of the landmarks. Linear in the tokens.

    Where each landmark is one token, nothing is left to approximate: the three matrices are one, and with its inverse
    the product is that matrix. So the attention is computed itself.
    """

    def __init__(self, width: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x_VTH: Tensor) -> Tensor:
        """(V, T, H) -> (V, T, H)."""
        bags, tokens, width = x_VTH.shape
        padding = -tokens % self.landmarks
        qkv_VTF = self.to_qkv(F.pad(x_VTH, (0, 0, padding, 0)))
        q, k, v = (
            part.view(bags, -1, self.heads, width // self.heads).transpose(1, 2) for part in qkv_VTF.chunk(3, -1)
        )
        q = q * (width // self.heads) ** -0.5
        group = (tokens + padding) // self.landmarks
        if group == 1:
            whole_VATC = F.scaled_dot_product_attention(q[:, :, padding:], k, v, scale=1.0)
            return whole_VATC.transpose(1, 2).flatten(2)
        q_VALC, k_VALC = (x.view(*x.shape[:2], self.landmarks, group, -1).mean(dim=3) for x in (q, k))
        inverse_VALL = pseudo_inverse((q_VALC @ k_VALC.transpose(-1, -2)).softmax(dim=-1))
        # from right to left, so that no product is larger than tokens x landmarks
        summary_VALC = inverse_VALL @ F.scaled_dot_product_attention(q_VALC, k, v, scale=1.0)
        out_VATC = (q[:, :, padding:] @ k_VALC.transpose(-1, -2)).softmax(dim=-1) @ summary_VALC
        out_VTH: Tensor = out_VATC.transpose(1, 2).flatten(2)
        return out_VTH


def pseudo_inverse(x_VALL: Tensor) -> Tensor:
    """Approximates the Moore-Penrose inverse of attention matrices by a third-order iteration (equation 14).

    Each bag's matrices have a common normalisation, the largest of their row sums and column sums.
    """
    columns_V = x_VALL.abs().sum(dim=-2).amax(dim=(1, 2))
    rows_V = x_VALL.abs().sum(dim=-1).amax(dim=(1, 2))
    z_VALL = x_VALL.transpose(-1, -2) / (rows_V * columns_V)[:, None, None, None]
    identity_LL = torch.eye(x_VALL.shape[-1], device=x_VALL.device)
    for _ in range(INVERSE_ITERATIONS):
        xz_VALL = x_VALL @ z_VALL
        z_VALL = (
            0.25 * z_VALL @ (13 * identity_LL - xz_VALL @ (15 * identity_LL - xz_VALL @ (7 * identity_LL - xz_VALL)))
        )
    return z_VALL


class PyramidPosition(nn.Module):
    """Position encoding PPEG: depthwise convolutions of 7, 5 and 3 and the identity, summed, over the square of tokens.

    They are one depthwise convolution whose kernel is the sum of the padded kernels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x_VTH: Tensor) -> Tensor:
        """(V, 1 + side^2, H) -> the same shape; the first token, the class token, is unchanged."""
        side = math.isqrt(x_VTH.shape[1] - 1)
        x_VHss = x_VTH[:, 1:].transpose(1, 2).reshape(len(x_VTH), -1, side, side)
        kernel_H177 = self.conv7.weight + F.pad(self.conv5.weight, (1,) * 4) + F.pad(self.conv3.weight, (2,) * 4)
        bias_H = self.conv7.bias + self.conv5.bias + self.conv3.bias  # type: ignore[operator]
        y_VHss = x_VHss + F.conv2d(x_VHss, kernel_H177, bias_H, padding=3, groups=x_VHss.shape[1])
        return torch.cat([x_VTH[:, :1], y_VHss.flatten(2).transpose(1, 2)], dim=1)


class TransMIL(SlideModel):
    """Two layers of Nystrom attention with a position encoding between them; the class token is classified.

    The patches fill a square, its end with the first patches again, behind a class token: `x = x + attention(norm(x))`,
    PPEG, `x = x + attention(norm(x))`, and the classifier of norm(x)'s class token (paper, §3.3, algorithms 1 and 2).
    Landmarks are half the hidden width. Bags of one size share a pass.
    """

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        hidden = model.hidden
        heads = math.gcd(hidden, HEADS)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden) * 0.02)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention1 = NystromAttention(hidden, heads, max(1, hidden // 2))
        self.attention2 = NystromAttention(hidden, heads, max(1, hidden // 2))
        self.position = PyramidPosition(hidden)
        self.classifier = linear_classifier(hidden, classes)

    def forward(self, batch: BagBatch) -> SlideOutput:
        """Encodes and classifies the bags; there is no attention that sums to 1 over patches."""
        h_PH = self.embed(batch, self.draw_dropout(batch))
        bags = torch.split(h_PH, list(batch.patches_per_bag))
        by_size: dict[int, list[int]] = {}
        for bag, size in enumerate(batch.patches_per_bag):
            by_size.setdefault(size, []).append(bag)
        order = [bag for of_size in by_size.values() for bag in of_size]
        encoded = torch.cat([self._encode(torch.stack([bags[b] for b in of_size])) for of_size in by_size.values()])
        position_B = torch.tensor(order, device=encoded.device).argsort()
        return SlideOutput(self.classifier(encoded[position_B]), None)

    def _encode(self, h_VPH: Tensor) -> Tensor:
        """Encodes bags of one size: the normalised class tokens (V, H)."""
        patches = h_VPH.shape[1]
        side = math.isqrt(patches - 1) + 1
        square_VTH = torch.cat([self.class_token.expand(len(h_VPH), -1, -1), h_VPH, h_VPH[:, : side**2 - patches]], 1)
        x_VTH = square_VTH + self.attention1(self.norm1(square_VTH))
        x_VTH = self.position(x_VTH)
        x_VTH = x_VTH + self.attention2(self.norm2(x_VTH))
        token_VH: Tensor = self.norm(x_VTH[:, 0])
        return token_VH

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the embedded patches."""
        return {"embedding": (batch.patches_per_bag, self.model_config.dropout)}
