"""Patch coordinates as integers: level-0 pixels, or nanometres for STAMP's micrometres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_ray.formats.arrays import Stored, read_all
from momkd_ray.input_faults import FileFaultError

_MICROMETRES = ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers")
# Early versions of STAMP wrote no unit: pixels of tiles of 224 pixels that were 256 um wide.
_EARLY_STAMP_TILE_PX, _EARLY_STAMP_TILE_UM = 224, 256


def in_level0_pixels(stored: Stored, path: str) -> NDArray[np.int32]:
    """Reads coordinates (P, 2) in whole level-0 pixels.

    Raises:
        FileFaultError: NaN, fractions, or numbers beyond the size of any slide.
    """
    coords_P2 = _finite(stored, path)
    if coords_P2.dtype.kind == "f" and (coords_P2 != np.floor(coords_P2)).any():
        raise FileFaultError(
            "misshapen", f"{path} holds fractions in 'coords', which must be whole level-0 pixels; extract it again"
        )
    return _int32(coords_P2, "level-0 pixels", path)


def in_nanometres(stored: Stored, attributes: Mapping[str, str], path: str) -> NDArray[np.int32]:
    """Reads STAMP's coordinates (P, 2): micrometres with fractions, or the pixels of its early versions.

    Raises:
        FileFaultError: NaN, an unknown unit, or numbers beyond the size of any slide.
    """
    coords_P2 = _finite(stored, path).astype(np.float64)
    if attributes.get("unit", "").lower() in _MICROMETRES or "tile_size_um" in attributes:
        scale = 1000.0
    elif round(_number(attributes.get("tile_size", "")) or _stride(coords_P2)) == _EARLY_STAMP_TILE_PX:
        scale = 1000.0 * _EARLY_STAMP_TILE_UM / _EARLY_STAMP_TILE_PX
    else:
        raise FileFaultError(
            "misshapen",
            f"{path} does not state the unit of 'coords' (no attribute unit=um, and no stride of "
            f"{_EARLY_STAMP_TILE_PX}); extract it again with a newer STAMP",
        )
    return _int32(np.rint(coords_P2 * scale), "micrometres on a slide", path)


def _finite(stored: Stored, path: str) -> NDArray[Any]:
    coords_P2 = read_all(stored)
    if coords_P2.dtype.kind == "f" and not np.isfinite(coords_P2).all():
        raise FileFaultError("not finite", f"{path} holds NaN or inf in 'coords'; extract it again")
    return coords_P2


def _int32(coords_P2: NDArray[Any], unit: str, path: str) -> NDArray[np.int32]:
    low, high, limits = int(coords_P2.min()), int(coords_P2.max()), np.iinfo(np.int32)
    if low < limits.min or high > limits.max or high - low > limits.max:
        raise FileFaultError(
            "misshapen", f"{path} holds coordinates from {low} to {high}, which cannot be {unit}; extract it again"
        )
    return coords_P2.astype(np.int32, copy=False)


def _number(text: str) -> float:
    """Parses a number; 0 if the text is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _stride(coords_P2: NDArray[np.float64]) -> float:
    """Returns the smallest distance between two different coordinates along an axis; 0 if all are the same."""
    steps = [np.diff(np.unique(axis_P)) for axis_P in coords_P2.T]
    return float(np.concatenate(steps).min(initial=np.inf)) if any(map(len, steps)) else 0.0
