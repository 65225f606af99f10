"""Magnification and patch size are read from what extractors write, and only real differences count."""

from __future__ import annotations

import pytest

from momkd_ray.formats.patch_scale import PatchScale, patch_scale


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"target_magnification": "20", "patch_size": "256"}, PatchScale(20, 256)),
        ({"target_magnification": "20x"}, PatchScale(20, None)),
        ({"target_mpp": "0.5", "patch_size": "512"}, PatchScale(20, 512)),
        ({"level0_magnification": "40", "patch_size_level0": "512", "patch_size": "256"}, PatchScale(20, 256)),
        ({"tile_size_um": "256", "tile_size_px": "224"}, PatchScale(8.75, 224)),
        ({"patch_size": "256", "patch_level": "1"}, PatchScale(None, 256)),
        ({"target_magnification": "None", "patch_size": "nan"}, PatchScale()),
        ({}, PatchScale()),
    ],
)
def test_the_scale_of_what_a_tool_writes(attributes: dict[str, str], expected: PatchScale) -> None:
    assert patch_scale(attributes) == expected


def test_scales_that_differ() -> None:
    known = PatchScale(20, 256)
    for other in (PatchScale(20.6, 256), PatchScale(None, 256), PatchScale(20, None), PatchScale()):
        assert known.agrees(other)
        assert other.agrees(known)
    for other in (PatchScale(10, 256), PatchScale(20, 512), PatchScale(40, None)):
        assert not known.agrees(other)
        assert not other.agrees(known)
