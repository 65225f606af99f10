"""The magnification and size of patches, from the attributes that extractors write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_MAGNIFICATION = ("target_magnification", "patch_magnification", "target_mag", "magnification", "mag")
_MPP = ("target_mpp", "patch_mpp", "tile_mpp", "mpp")
_SIZE = ("patch_size", "tile_size_px", "patch_size_target", "tile_size")
_MPP_AT_1X = 10.0  # micrometres a pixel: 0.5 at 20x
_TOLERANCE = 0.1  # of the magnification: scanners of 0.2425 and 0.2527 micrometres a pixel are both called 40x


@dataclass(frozen=True)
class PatchScale:
    """The scale of a slide's patches, as far as its file says.

    Attributes:
        magnification: such as 20.0 for 20x, about 0.5 micrometres a pixel; None if unknown.
        patch_px: side of a patch in pixels at that magnification; None if unknown.
    """

    magnification: float | None = None
    patch_px: int | None = None

    def agrees(self, other: PatchScale) -> bool:
        """Returns whether nothing that both know differs."""
        own, theirs = self.magnification, other.magnification
        if own and theirs and abs(math.log(own / theirs)) > _TOLERANCE:
            return False
        return None in (self.patch_px, other.patch_px) or self.patch_px == other.patch_px

    def text(self) -> str:
        """Describes it, such as `20x magnification in patches of 256 pixels`."""
        parts = [f"{self.magnification:.3g}x magnification" if self.magnification else ""]
        parts.append(f"patches of {self.patch_px} pixels" if self.patch_px else "")
        return " in ".join(part for part in parts if part)

    def __bool__(self) -> bool:
        """Returns whether anything is known."""
        return self.magnification is not None or self.patch_px is not None


def patch_scale(attributes: Mapping[str, str]) -> PatchScale:
    """Returns the scale of patches by the attributes of a feature file.

    >>> patch_scale({"target_magnification": "20", "patch_size": "256"})
    PatchScale(magnification=20.0, patch_px=256)
    >>> patch_scale({"tile_size_um": "256.0", "tile_size_px": "224"}).text()
    '8.75x magnification in patches of 224 pixels'
    """
    size = _first(attributes, _SIZE)
    magnification = _first(attributes, _MAGNIFICATION)
    mpp = _first(attributes, _MPP)
    level0, level0_size = _first(attributes, ("level0_magnification",)), _first(attributes, ("patch_size_level0",))
    width_um, width_px = _first(attributes, ("tile_size_um",)), _first(attributes, ("tile_size_px",))
    if magnification is None and mpp is not None:
        magnification = _MPP_AT_1X / mpp
    if magnification is None and None not in (level0, level0_size, size):
        magnification = (level0 or 0) * (size or 0) / (level0_size or 1)
    if magnification is None and width_um is not None and width_px is not None:
        magnification = _MPP_AT_1X * width_px / width_um
    whole = size is not None and size.is_integer() and size < 2**20
    return PatchScale(magnification and round(magnification, 4), int(size) if size and whole else None)


def _first(attributes: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        try:
            value = float(attributes.get(name, "").lower().removesuffix("x"))
        except ValueError:
            continue
        if math.isfinite(value) and value > 0:
            return value
    return None
