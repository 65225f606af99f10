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

    def forward(self, groups: list[Tensor]) -> list[Tensor]:
        """Attends within each bag: groups of bags of one size, each (V, T, H), give groups of the same shapes.

        The landmarks' matrices are as large in every group, so one iteration inverts those of all.
        """
        projected = [self._project(x_VTH) for x_VTH in groups]
        landmarks = {
            group: (self._landmarks(q_VATC), self._landmarks(k_VATC))
            for group, (q_VATC, k_VATC, _) in enumerate(projected)
            if q_VATC.shape[2] > self.landmarks
        }
        inverses = dict(zip(landmarks, landmark_inverses(list(landmarks.values())), strict=True))
        out = []
        for group, (x_VTH, (q_VATC, k_VATC, v_VATC)) in enumerate(zip(groups, projected, strict=True)):
            own_VATC = q_VATC[:, :, -x_VTH.shape[1] :]  # without the padding
            if group in landmarks:
                q_VALC, k_VALC = landmarks[group]
                # from right to left, so that no product is larger than tokens x landmarks
                summary_VALC = inverses[group] @ F.scaled_dot_product_attention(q_VALC, k_VATC, v_VATC, scale=1.0)
                out_VATC = (own_VATC @ k_VALC.transpose(-1, -2)).softmax(dim=-1) @ summary_VALC
            else:
                out_VATC = F.scaled_dot_product_attention(own_VATC, k_VATC, v_VATC, scale=1.0)
            out.append(out_VATC.transpose(1, 2).flatten(2))
        return out

    def _project(self, x_VTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the scaled queries, the keys and the values (V, A, T, C) of the padded tokens."""
        bags, tokens, width = x_VTH.shape
        qkv_VTF = self.to_qkv(F.pad(x_VTH, (0, 0, -tokens % self.landmarks, 0)))
        q, k, v = (
            part.view(bags, -1, self.heads, width // self.heads).transpose(1, 2) for part in qkv_VTF.chunk(3, -1)
        )
        return q * (width // self.heads) ** -0.5, k, v

    def _landmarks(self, x_VATC: Tensor) -> Tensor:
        """Averages consecutive tokens: (V, A, L, C)."""
        bags, heads, tokens, width = x_VATC.shape
        return x_VATC.view(bags, heads, self.landmarks, tokens // self.landmarks, width).mean(dim=3)


def landmark_inverses(landmarks: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Inverts the attention between the landmarks of queries and keys, (V, A, L, C) each, of every group at once."""
    if not landmarks:
        return []
    attention = [(q_VALC @ k_VALC.transpose(-1, -2)).softmax(dim=-1) for q_VALC, k_VALC in landmarks]
    return list(torch.split(pseudo_inverse(torch.cat(attention)), [len(x_VALL) for x_VALL in attention]))


def pseudo_inverse(x_VALL: Tensor) -> Tensor:
    """Approximates the Moore-Penrose inverse of attention matrices by a third-order iteration (equation 14).

    `Z <- Z (13 I - XZ (15 I - XZ (7 I - XZ))) / 4`, each bracket one product with what is added to it. Each bag's
    matrices have a common normalisation, the largest of their row sums and column sums.
    """
    columns_V = x_VALL.abs().sum(dim=-2).amax(dim=(1, 2))
    rows_V = x_VALL.abs().sum(dim=-1).amax(dim=(1, 2))
    z = (x_VALL.transpose(-1, -2) / (rows_V * columns_V)[:, None, None, None]).flatten(0, 1)
    x = x_VALL.flatten(0, 1)
    for _ in range(INVERSE_ITERATIONS):
        xz = x @ z
        inner = torch.baddbmm(xz, xz, xz, beta=7, alpha=-1)
        inner = torch.baddbmm(xz, xz, inner, beta=15, alpha=-1)
        z = torch.baddbmm(z, z, inner, beta=3.25, alpha=-0.25)
    return z.view_as(x_VALL)


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
    Landmarks are half the hidden width. Bags of one square share a pass.
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
        of_side: dict[int, list[int]] = {}
        for bag, patches in enumerate(batch.patches_per_bag):
            of_side.setdefault(math.isqrt(patches - 1) + 1, []).append(bag)
        bags = torch.split(h_PH, list(batch.patches_per_bag))
        encoded_VH = self._encode(
            [torch.stack([self._square(bags[b], side) for b in group]) for side, group in of_side.items()]
        )
        order = [bag for group in of_side.values() for bag in group]
        position_B = torch.tensor(order, device=encoded_VH.device).argsort()
        return SlideOutput(self.classifier(encoded_VH[position_B]), None)

    def _square(self, h_PH: Tensor, side: int) -> Tensor:
        """Fills a square with a bag's patches, behind the class token: (1 + side^2, H)."""
        return torch.cat([self.class_token[0], h_PH, h_PH[: side**2 - len(h_PH)]])

    def _encode(self, groups: list[Tensor]) -> Tensor:
        """Encodes groups of bags of one square, each (V, T, H): the normalised class tokens of all bags (B, H)."""
        attended = self.attention1([self.norm1(x_VTH) for x_VTH in groups])
        groups = [self.position(x_VTH + a_VTH) for x_VTH, a_VTH in zip(groups, attended, strict=True)]
        attended = self.attention2([self.norm2(x_VTH) for x_VTH in groups])
        tokens = [x_VTH[:, 0] + a_VTH[:, 0] for x_VTH, a_VTH in zip(groups, attended, strict=True)]
        encoded_BH: Tensor = self.norm(torch.cat(tokens))
        return encoded_BH

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the embedded patches."""
        return {"embedding": (batch.patches_per_bag, self.model_config.dropout)}
