"""Counter-based dropout: every mask entry is a hash of the bag's seed, the layer, the row and the column.

Neither the batch nor the worker that a bag is assigned to changes its masks, no random generator has a state, and a
kernel recomputes any entry of a mask instead of storing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# constants of the 32-bit integer hash `lowbias32` (Wellons, hash-prospector), and the step between columns, 2^32 /
# golden ratio
FACTOR1, FACTOR2, COLUMN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9
_LOW = 0xFFFFFFFF
_CACHED_ENTRIES = 2**15  # of two arrays of 32 bits, half a core's second-level cache


@dataclass(frozen=True)
class Dropout:
    """The dropout of one layer over N rows: entry (n, c) is dropped where hash32(keys_N[n] + c COLUMN) < p 2^32.

    Attributes:
        keys_N: int64 with values below 2^32.
        p: dropout probability.
    """

    keys_N: Tensor
    p: float

    @property
    def threshold(self) -> int:
        """The hash value below which an entry is dropped."""
        return min(round(self.p * 2**32), _LOW)

    def select_rows(self, rows_R: Tensor) -> Dropout:
        """Returns the dropout of some rows."""
        return Dropout(self.keys_N[rows_R], self.p)

    def keep(self, width: int) -> Tensor:
        """Returns the mask (N, width) with entries 0 and 1 / (1 - p)."""
        if self.keys_N.device.type == "cpu":
            return torch.from_numpy(_mask(self.keys_N.numpy().astype(np.uint32), width, self.threshold, self.p))
        column_C = torch.arange(width, device=self.keys_N.device) * COLUMN
        kept_NC = hash32((self.keys_N[:, None] + column_C) & _LOW) >= self.threshold
        return kept_NC * (1 / (1 - self.p))


def _mask(keys_N: NDArray[np.uint32], width: int, threshold: int, p: float) -> NDArray[np.float32]:
    """Computes `Dropout.keep` on the CPU: 32-bit products that overflow, in place, on rows that stay in the cache."""
    mask_NC = np.empty((len(keys_N), width), np.float32)
    column_C = np.arange(width, dtype=np.uint32) * np.uint32(COLUMN)
    rows = max(1, _CACHED_ENTRIES // max(1, width))
    hash_RC, shifted_RC = np.empty((2, min(rows, len(keys_N)), width), np.uint32)
    for start in range(0, len(keys_N), rows):
        own_R = keys_N[start : start + rows]
        h, shifted = hash_RC[: len(own_R)], shifted_RC[: len(own_R)]
        np.add(own_R[:, None], column_C, out=h)
        for shift, factor in ((16, FACTOR1), (15, FACTOR2), (16, None)):
            np.right_shift(h, np.uint32(shift), out=shifted)
            np.bitwise_xor(h, shifted, out=h)
            if factor is not None:
                np.multiply(h, np.uint32(factor), out=h)
        np.multiply(h >= np.uint32(threshold), np.float32(1 / (1 - p)), out=mask_NC[start : start + rows])
    return mask_NC


Layers = Mapping[str, tuple[Sequence[int], float]]
"""Layer name -> (number of rows of each bag, dropout probability); the name enters the hash."""


def draw_dropout(pieces_L4: Tensor, layers: Layers) -> dict[str, Dropout]:
    """Draws the dropout of every layer of one forward pass, except of layers with p = 0.

    The rows of all layers are hashed in one operation, as one launch per layer would dominate the time on a GPU.

    Args:
        pieces_L4: `dropout_pieces` of the same layers; the result lies on their device.
        layers: the rows of each layer.
    """
    wanted = {layer: (sum(rows_B), p) for layer, (rows_B, p) in layers.items() if p}
    rows = sum(rows for rows, _ in wanted.values())
    low_N, high_N, start_N = pieces_L4[:, :3].repeat_interleave(pieces_L4[:, 3], dim=0, output_size=rows).unbind(1)
    row_N = torch.arange(rows, device=pieces_L4.device) - start_N
    keys_N = hash32(hash32((low_N + row_N) & _LOW) ^ high_N)
    keys = torch.split(keys_N, [rows for rows, _ in wanted.values()])
    return {layer: Dropout(layer_keys, p) for (layer, (_, p)), layer_keys in zip(wanted.items(), keys, strict=True)}


def dropout_pieces(seeds: Sequence[int], layers: Layers) -> Tensor:
    """Computes the hash inputs of dropout, int64 (L, 4): for each bag in each layer two words, first row, row count.

    Args:
        seeds: one per bag.
        layers: the rows of each layer, for all bags or the first of them.
    """
    pieces, start = [], 0
    for layer, (rows_B, p) in layers.items():
        for seed, rows in zip(seeds, rows_B if p else (), strict=False):
            digest = hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest()
            pieces.append((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"), start, rows))
            start += rows
    return torch.tensor(pieces, dtype=torch.int64).view(-1, 4)


def hash32(h_N: Tensor) -> Tensor:
    """Hashes int64 values below 2^32 to 32 bits; products overflow, which leaves their low 32 bits correct."""
    h_N = h_N ^ (h_N >> 16)
    h_N = (h_N * FACTOR1) & _LOW
    h_N = h_N ^ (h_N >> 15)
    h_N = (h_N * FACTOR2) & _LOW
    return h_N ^ (h_N >> 16)


def apply_dropout(x_NF: Tensor, dropout: Dropout | None) -> Tensor:
    """Applies dropout to `x_NF`; None drops nothing."""
    return x_NF if dropout is None else x_NF * dropout.keep(x_NF.shape[1]).to(x_NF.dtype)
