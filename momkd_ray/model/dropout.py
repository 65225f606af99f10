"""Dropout as a function of each bag's seed, the layer, the row and the column, so that neither the batch nor the
worker a bag falls to changes it, no generator is advanced, and a kernel finds any mask's entry anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
        return kept_NC * torch.tensor(1 / (1 - self.p), device=kept_NC.device)


class BagNoise:
    """The dropout of one forward pass over B bags, each with a seed of its own."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds, self.device = seeds, device

    def of(self, layer: str, rows_per_bag: Sequence[int], p: float) -> Dropout | None:
        """The dropout of a layer, which its name tells from others; its rows lie bag after bag. None at p = 0."""
        if p == 0:
            return None
        digests = [hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest() for seed in self.seeds]
        words_B2 = [(int.from_bytes(d[:4], "little"), int.from_bytes(d[4:], "little")) for d in digests]
        starts = [sum(rows_per_bag[:b]) for b in range(len(rows_per_bag))]
        per_bag_B3 = [(*words, start) for words, start in zip(words_B2, starts, strict=True)]
        per_bag = torch.tensor(per_bag_B3, dtype=torch.int64, device=self.device)
        rows_B = torch.tensor(rows_per_bag, device=self.device)
        low_N, high_N, start_N = per_bag.repeat_interleave(rows_B, dim=0, output_size=sum(rows_per_bag)).unbind(1)
        row_N = torch.arange(len(low_N), device=self.device) - start_N
        return Dropout(mixed(mixed((low_N + row_N) & _LOW) ^ high_N), p)


def mixed(h_N: Tensor) -> Tensor:
    """The 32-bit hash of int64 values below 2^32; products wrap, which leaves their low 32 bits right."""
    h_N = h_N ^ (h_N >> 16)
    h_N = (h_N * FACTOR1) & _LOW
    h_N = h_N ^ (h_N >> 15)
    h_N = (h_N * FACTOR2) & _LOW
    return h_N ^ (h_N >> 16)


def dropped(x_NF: Tensor, dropout: Dropout | None) -> Tensor:
    """`x_NF` after dropout."""
    return x_NF if dropout is None else x_NF * dropout.keep(x_NF.shape[1]).to(x_NF.dtype)
