"""Pyramidal slides as OpenSlide reads them, with a picture in which every patch can be told from its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile


def write_pyramid(path: Path, width: int, height: int, patch: int, mpp: float = 0.25) -> Path:
    """A tiled TIFF of three levels; the patch in column i and row j has the colour `patch_colour(i, j)`."""
    columns, rows = -(-width // patch), -(-height // patch)
    colours = np.array([[patch_colour(i, j) for i in range(columns)] for j in range(rows)], np.uint8)
    image = colours.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]
    per_cm = (10_000 / mpp, 10_000 / mpp)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}}
    with tifffile.TiffWriter(path) as file:
        for level in range(3):
            shrunk = image[:: 4**level, :: 4**level]
            unit = {"resolution": tuple(r / 4**level for r in per_cm), "resolutionunit": "CENTIMETER"}
            file.write(shrunk, subfiletype=1 if level else 0, **options, **unit)
    return path


def patch_colour(column: int, row: int) -> tuple[int, int, int]:
    return (column * 37 + 40) % 200, (row * 53 + 40) % 200, (column + row) % 2 * 60 + 120
