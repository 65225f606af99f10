"""Dropout as a function of each bag's seed, the layer, the row and the column, so that neither the batch nor the
worker a bag falls to changes it, no generator is advanced, and a kernel finds any mask's entry anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# of the 32-bit integer hash `lowbias32` (Wellons, hash-prospector), and the step between columns (2^32 / golden ratio)
FACTOR1, FACTOR2, COLUMN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """A layer's dropout over N rows: entry (n, c) goes where mix(keys_N[n] + c COLUMN) < p 2^32.

    `keys_N` is int64 with values below 2^32.
    """

    keys_N: Tensor
    p: float

    @property
    def threshold(self) -> int:
        """Hashes below it are dropped."""
        return min(round(self.p * 2**32), _LOW)

    def of_rows(self, rows_R: Tensor) -> Dropout:
        """The dropout of some of its rows."""
        return Dropout(self.keys_N[rows_R], self.p)

    def keep(self, width: int) -> Tensor:
        """The mask (N, width) of 0 and 1 / (1 - p)."""
        column_C = torch.arange(width, device=self.keys_N.device) * COLUMN
        kept_NC = mixed((self.keys_N[:, None] + column_C) & _LOW) >= self.threshold
        return kept_NC * (1 / (1 - self.p))


Layers = Mapping[str, tuple[Sequence[int], float]]
"""The rows that each bag has in a layer, bag after bag, and the layer's p; its name tells a layer from others."""


def draw_dropout(pieces_L4: Tensor, layers: Layers) -> dict[str, Dropout]:
    """The dropout of one forward pass, on the pieces' device; of no layer whose p is 0.

    All layers' rows are hashed together: on a GPU a layer is too little work for the time that it takes to start.

    Args:
        pieces_L4: of the same layers, by `dropout_pieces`.
        layers: the rows of each.
    """
    wanted = {layer: (sum(rows_B), p) for layer, (rows_B, p) in layers.items() if p}
    rows = sum(rows for rows, _ in wanted.values())
    low_N, high_N, start_N = pieces_L4[:, :3].repeat_interleave(pieces_L4[:, 3], dim=0, output_size=rows).unbind(1)
    row_N = torch.arange(rows, device=pieces_L4.device) - start_N
    keys_N = mixed(mixed((low_N + row_N) & _LOW) ^ high_N)
    keys = torch.split(keys_N, [rows for rows, _ in wanted.values()])
    return {layer: Dropout(of_layer, p) for (layer, (_, p)), of_layer in zip(wanted.items(), keys, strict=True)}


def dropout_pieces(seeds: Sequence[int], layers: Layers) -> Tensor:
    """What dropout draws from, int64 (L, 4): of each bag in each layer two words, where its rows begin, and how many.

    Args:
        seeds: one a bag.
        layers: the rows of each, for all bags or the first of them.
    """
    pieces, start = [], 0
    for layer, (rows_B, p) in layers.items():
        for seed, rows in zip(seeds, rows_B if p else (), strict=False):
            digest = hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest()
            pieces.append((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"), start, rows))
            start += rows
    return torch.tensor(pieces, dtype=torch.int64).view(-1, 4)


def mixed(h_N: Tensor) -> Tensor:
    """The 32-bit hash of int64 values below 2^32; products wrap, which leaves their low 32 bits right."""
    h_N = h_N ^ (h_N >> 16)
    h_N = (h_N * FACTOR1) & _LOW
    h_N = h_N ^ (h_N >> 15)
    h_N = (h_N * FACTOR2) & _LOW
    return h_N ^ (h_N >> 16)


def apply_dropout(x_NF: Tensor, dropout: Dropout | None) -> Tensor:
    """`x_NF` after dropout."""
    return x_NF if dropout is None else x_NF * dropout.keep(x_NF.shape[1]).to(x_NF.dtype)
