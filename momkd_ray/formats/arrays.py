"""The arrays of a feature file, whichever container they lie in: read a slab at a time, checked, at one precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from momkd_ray.input_faults import FileFaultError

Features = NDArray[np.float16] | NDArray[np.float32]
Precision = Literal["float16", "float32"]
Container = Literal["hdf5", "tensor", "ndarray", "dict"]

SLAB_BYTES = 4 * 2**20  # what is checked and converted lies in the processor's cache
_FLOAT16_INF = 0x7C00


@dataclass(frozen=True)
class Stored:
    """An array in a file, not yet read.

    Attributes:
        name: what the file calls it.
        shape: as stored; the rows and columns of a (1, R, C) array are R and C.
        dtype: of the values as stored, in their byte order; bfloat16 as the 16 bits of each.
        precision: the name of the values' type: `float16`, `bfloat16`, `float32`, `int64`, ...
        read: fills (n, C) of `dtype` with the n rows from the one of that number on.
        rows_at_once: rows are best read in multiples of this.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    precision: str
    read: Callable[[int, NDArray[Any]], None]
    rows_at_once: int = 1

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """`f` for floating-point, `i` or `u` for whole numbers, others for anything else."""
        return "f" if self.precision == "bfloat16" else self.dtype.kind

    def slabs(self, into: NDArray[Any] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows in slabs of some megabytes: the first row's number, and (n, C) of `dtype`.

        Args:
            into: (R, C) of `dtype` that is filled; without it, each slab overwrites the last.
        """
        n_rows, n_columns = self.shape[-2:]
        fit = SLAB_BYTES // max(n_columns * self.dtype.itemsize, 1)
        step = max(fit // self.rows_at_once, 1) * self.rows_at_once
        scratch = np.empty((min(step, n_rows), n_columns), self.dtype) if into is None else into
        for first in range(0, n_rows, step):
            n = min(step, n_rows - first)
            slab = scratch[:n] if into is None else scratch[first : first + n]
            self.read(first, slab)
            yield first, slab


@dataclass(frozen=True)
class Contents:
    """What a feature file holds.

    Attributes:
        path: the file.
        container: what it lies in; of a lone tensor or ndarray the name is `features`.
        names: of what is in it.
        array: the array of a name.
        attributes: what is written beside the array of a name, or for '' beside the file.
    """

    path: str
    container: Container
    names: Sequence[str]
    array: Callable[[str], Stored]
    attributes: Callable[[str], Mapping[str, str]]


def whole(stored: Stored) -> NDArray[Any]:
    """All values (R, C) in this machine's byte order."""
    values = np.empty(stored.shape[-2:], stored.dtype)
    for _ in stored.slabs(into=values):
        pass
    return _widened(values) if stored.precision == "bfloat16" else values.astype(values.dtype.newbyteorder("="))


def features_of(stored: Stored, path: str, dtype: Precision | None = None) -> Features:
    """The features (P, D), C-contiguous, checked; beside the result only one slab is held.

    Args:
        stored: floating-point, at least one value.
        path: the file, for what is said of it.
        dtype: the precision wanted; without it float16 stays and all others become float32 (bfloat16 exactly).

    Raises:
        FileFaultError: NaN or inf, values beyond the precision, or the same features in all patches.
    """
    kept: np.dtype[Any] = np.dtype(dtype or ("float16" if stored.precision == "float16" else "float32"))
    features_PD = np.empty(stored.shape[-2:], kept)
    in_place = stored.dtype == kept and stored.precision == kept.name
    seen = _Seen()
    for first, slab_RD in stored.slabs(into=features_PD if in_place else None):
        values_RD = _widened(slab_RD) if stored.precision == "bfloat16" else slab_RD
        seen.values(first, values_RD)
        if not in_place:
            kept_RD = features_PD[first : first + len(slab_RD)]
            with np.errstate(over="ignore"):
                kept_RD[...] = values_RD
            seen.kept(values_RD, kept_RD)
    seen.judge(path, len(features_PD), kept.name)
    return features_PD


def _widened(bits_RD: NDArray[Any]) -> NDArray[np.float32]:
    """The float32 values of which bfloat16 has the upper 16 bits."""
    return (bits_RD.astype(np.uint32) << 16).view(np.float32)


class _Seen:
    """What is wrong with the features that have gone by."""

    def __init__(self) -> None:
        self._not_finite: list[NDArray[np.intp]] = []
        self._largest = 0.0  # of the values beyond the precision they are kept at
        self._first_D: NDArray[Any] = np.empty(0)
        self._constant = True  # so far

    def values(self, first: int, values_RD: NDArray[Any]) -> None:
        """Look at values as stored."""
        if not _all_finite(values_RD):
            self._not_finite.append(first + np.flatnonzero(~np.isfinite(values_RD).all(axis=1)))
        if first == 0:
            self._first_D = values_RD[0].copy()
        if self._constant:  # the second patch nearly always tells
            self._constant = bool((values_RD[:2] == self._first_D).all() and (values_RD == self._first_D).all())

    def kept(self, values_RD: NDArray[Any], kept_RD: NDArray[Any]) -> None:
        """Look at what became of them."""
        if not _all_finite(kept_RD) and not self._not_finite:
            self._largest = max(self._largest, float(np.abs(values_RD).max()))

    def judge(self, path: str, n_patches: int, precision: str) -> None:
        """Raise what is wrong, if anything is."""
        if self._not_finite:
            bad = np.concatenate(self._not_finite)
            raise FileFaultError(
                "not finite",
                f"{path} holds NaN or inf in {len(bad)} of {n_patches} patches, first in patch {bad[0]}; "
                "extract it again or leave the slide out",
            )
        if self._largest:
            remedy = "set store.dtype to float32" if precision == "float16" else "extract it again"
            raise FileFaultError(
                "not finite", f"{path} holds the value {self._largest:g}, too large for {precision}; {remedy}"
            )
        one_value = self._constant and len(self._first_D) > 1 and bool((self._first_D == self._first_D[0]).all())
        if one_value or (self._constant and n_patches > 1):
            same = f"the value {self._first_D[0]:g} throughout" if one_value else "the same features in every patch"
            raise FileFaultError("constant", f"{path} holds {same}; extract it again or leave the slide out")


def _all_finite(values_RD: NDArray[Any]) -> bool:
    if values_RD.dtype == np.float16:
        # ten times faster than isfinite, which widens each value
        return bool((values_RD.view(np.uint16) & 0x7FFF).max() < _FLOAT16_INF)
    return bool(np.isfinite(values_RD).all())
