"""Arrays of a feature file, independent of its container: read in slabs, validated, converted to one precision."""

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

SLAB_BYTES = 4 * 2**20  # validated and converted while it is in the processor's cache
_FLOAT16_INF = 0x7C00
_FLOAT16_SMALLEST_NORMAL = 0x0400  # bits of 6.1e-5; smaller values lose precision
_MAX_UNDERFLOW = 0.01  # share of the values that may become zero in float16


@dataclass(frozen=True)
class Stored:
    """An array in a file that has not been read yet.

    Attributes:
        name: its name in the file.
        shape: as stored; a (1, R, C) array has R rows and C columns.
        dtype: type of the stored values, in their byte order; bfloat16 as uint16.
        precision: name of the values' type: `float16`, `bfloat16`, `float32`, `int64`, ...
        read: `read(first, out)` fills `out` (n, C) of `dtype` with the rows from `first` on.
        rows_at_once: rows are read most efficiently in multiples of this.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    precision: str
    read: Callable[[int, NDArray[Any]], None]
    rows_at_once: int = 1

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The kind of the values as in NumPy: `f` floating-point, `i` or `u` integers, anything else otherwise."""
        return "f" if self.precision == "bfloat16" else self.dtype.kind

    def slabs(self, into: NDArray[Any] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yields the rows in slabs of some megabytes: the number of the first row, and (n, C) of `dtype`.

        Args:
            into: optional (R, C) array of `dtype` that is filled; without it, each slab overwrites the last.
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
    """The content of an open feature file.

    Attributes:
        path: the file.
        container: kind of its container; a single tensor or ndarray is called `features`.
        names: of the arrays in it.
        array: returns the array of a name.
        attributes: returns the attributes of an array, or of the file for ''.
    """

    path: str
    container: Container
    names: Sequence[str]
    array: Callable[[str], Stored]
    attributes: Callable[[str], Mapping[str, str]]


def read_all(stored: Stored) -> NDArray[Any]:
    """Reads all values (R, C), in this machine's byte order."""
    values = np.empty(stored.shape[-2:], stored.dtype)
    for _ in stored.slabs(into=values):
        pass
    return _widened(values) if stored.precision == "bfloat16" else values.astype(values.dtype.newbyteorder("="))


def read_features(stored: Stored, path: str, dtype: Precision | None = None) -> Features:
    """Reads and validates features (P, D), C-contiguous, with one slab of extra memory.

    Args:
        stored: floating-point, at least one value.
        path: the file, for messages.
        dtype: wanted precision; by default float16 stays float16 and all others become float32 (bfloat16 exactly).

    Raises:
        FileFaultError: NaN or inf, values that the precision cannot hold, patches without any value, or the same
            features in all patches.
    """
    kept: np.dtype[Any] = np.dtype(dtype or ("float16" if stored.precision == "float16" else "float32"))
    features_PD = np.empty(stored.shape[-2:], kept)
    in_place = stored.dtype == kept and stored.precision == kept.name
    checks = _FeatureChecks()
    for first, slab_RD in stored.slabs(into=features_PD if in_place else None):
        values_RD = _widened(slab_RD) if stored.precision == "bfloat16" else slab_RD
        checks.add_stored(first, values_RD)
        if not in_place:
            converted_RD = features_PD[first : first + len(slab_RD)]
            with np.errstate(over="ignore"):
                converted_RD[...] = values_RD
            checks.add_converted(values_RD, converted_RD)
    checks.raise_first(path, len(features_PD), kept.name)
    return features_PD


def _widened(bits_RD: NDArray[Any]) -> NDArray[np.float32]:
    """Converts the bits of bfloat16 values to float32."""
    return (bits_RD.astype(np.uint32) << 16).view(np.float32)


class _FeatureChecks:
    """Collects faults of features slab by slab."""

    def __init__(self) -> None:
        self._not_finite: list[NDArray[np.intp]] = []
        self._largest = 0.0  # of the values that overflow the wanted precision
        self._first_D: NDArray[Any] = np.empty(0)
        self._constant = True  # so far
        self._zero: list[NDArray[np.intp]] = []  # patches of zeros alone
        self._first_rounded_D: NDArray[Any] = np.empty(0)
        self._constant_rounded = True  # so far
        self._n_nonzero = self._n_underflowing = 0
        self._largest_half_bits = 0  # magnitude bits of the largest float16 value
        self._rounded = False

    def add_stored(self, first: int, values_RD: NDArray[Any]) -> None:
        """Checks a slab of stored values."""
        if not _all_finite(values_RD):
            self._not_finite.append(first + np.flatnonzero(~np.isfinite(values_RD).all(axis=1)))
        if first == 0:
            self._first_D = values_RD[0].copy()
        starts_with_zero = np.flatnonzero(values_RD[:, 0] == 0)  # few, so that few entire rows are compared
        zero = starts_with_zero[~values_RD[starts_with_zero].any(axis=1)]
        if len(zero):
            self._zero.append(first + zero)
        if self._constant:  # the second patch nearly always differs
            self._constant = bool((values_RD[:2] == self._first_D).all() and (values_RD == self._first_D).all())

    def add_converted(self, values_RD: NDArray[Any], converted_RD: NDArray[Any]) -> None:
        """Checks a slab after its conversion."""
        if not _all_finite(converted_RD) and not self._not_finite:
            self._largest = max(self._largest, float(np.abs(values_RD).max()))
        if not self._rounded:
            self._first_rounded_D = converted_RD[0].copy()
        if self._constant_rounded:
            self._constant_rounded = bool((converted_RD == self._first_rounded_D).all())
        self._rounded = True
        if converted_RD.dtype == np.float16:
            n_nonzero = int(np.count_nonzero(values_RD))
            self._n_nonzero += n_nonzero
            self._n_underflowing += n_nonzero - int(np.count_nonzero(converted_RD))
            self._largest_half_bits = max(self._largest_half_bits, int((converted_RD.view(np.uint16) & 0x7FFF).max()))

    def raise_first(self, path: str, n_patches: int, precision: str) -> None:
        """Raises the first fault, if there is any."""
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
        self._raise_unwritten(path, n_patches)
        self._raise_underflow(path)
        if self._rounded and self._constant_rounded and n_patches > 1:
            same = f"the same features in every patch, once rounded to {precision}"
            raise FileFaultError("constant", f"{path} holds {same}; extract it again or leave the slide out")

    def _raise_unwritten(self, path: str, n_patches: int) -> None:
        if not self._zero:
            return
        zero = np.concatenate(self._zero)
        at_end = bool((zero == np.arange(n_patches - len(zero), n_patches)).all())
        which = f"the last {len(zero)} of {n_patches} patches" if at_end else f"{len(zero)} of {n_patches} patches"
        first = "" if at_end else f", first in patch {zero[0]}"
        raise FileFaultError(
            "truncated",
            f"{path} holds only zeros in {which}{first}: they were never written, as when an extractor was killed; "
            "extract it again or leave the slide out",
        )

    def _raise_underflow(self, path: str) -> None:
        subnormal = self._n_nonzero > 0 and self._largest_half_bits < _FLOAT16_SMALLEST_NORMAL
        if subnormal or self._n_underflowing > _MAX_UNDERFLOW * self._n_nonzero:
            raise FileFaultError(
                "not finite",
                f"{path} holds values too small for float16 ({self._n_underflowing} of {self._n_nonzero} would become "
                "zero); set store.dtype to float32",
            )


def _all_finite(values_RD: NDArray[Any]) -> bool:
    if values_RD.dtype == np.float16:
        # ten times faster than np.isfinite, which converts each value
        return bool((values_RD.view(np.uint16) & 0x7FFF).max() < _FLOAT16_INF)
    return bool(np.isfinite(values_RD).all())
