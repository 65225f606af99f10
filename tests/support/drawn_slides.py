"""Feature files of slides that heatmaps are drawn of, whose patches lie on a grid."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

PATCH = 64
WIDTH, HEIGHT = 640, 512


def write_slide(path: Path, n: int = 40, seed: int = 0, **attributes: object) -> Path:
    """A TRIDENT file of patches on a grid of 10 columns."""
    known = {"patch_size_level0": PATCH, "level0_width": WIDTH, "level0_height": HEIGHT} | attributes
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(seed).normal(size=(n, 12)).astype("f4")
        file["coords"] = np.stack([np.arange(n) % 10, np.arange(n) // 10], axis=1) * PATCH
        file["coords"].attrs.update({k: v for k, v in known.items() if v is not None})
    return path
