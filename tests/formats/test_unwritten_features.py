"""Patches that were never written, and values that float16 cannot hold, are never accepted silently."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.bags import WIDTH, write_h5

from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError


def features(n: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, WIDTH)).astype("f4")


@pytest.mark.parametrize("chunks", [None, (9, WIDTH)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_an_extractor_has_not_written_are_told(tmp_path: Path, chunks: object, dtype: str) -> None:
    path = write_h5(tmp_path / "s.h5", features=None)
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset("features", (9, WIDTH), "f4", chunks=chunks)
        dataset[:5] = features()[:5]
    with pytest.raises(FileFaultError, match=r"s\.h5 holds only zeros in the last 4 of 9 patches.*killed") as told:
        read_bag(str(path), "s", Recipe(), dtype=dtype)
    assert told.value.problem == "truncated"


def test_zero_rows_anywhere_are_told_and_zeros_among_values_are_not(tmp_path: Path) -> None:
    values = features()
    values[[2, 5]] = 0
    path = write_h5(tmp_path / "s.h5", features=values)
    with pytest.raises(FileFaultError, match="only zeros in 2 of 9 patches, first in patch 2"):
        read_bag(str(path), "s", Recipe())
    values[[2, 5], -1] = 1
    assert read_bag(str(write_h5(path, features=values)), "s", Recipe()).n_patches == 9
    torch.save(torch.from_numpy(features() * (np.arange(9) < 7)[:, None]), tmp_path / "s.pt")
    with pytest.raises(FileFaultError, match=r"s\.pt holds only zeros in the last 2 of 9"):
        read_bag(str(tmp_path / "s.pt"), "s", Recipe(graph="none"))


@pytest.mark.parametrize("scale", [1e-9, 1e-6])
def test_values_too_small_for_float16_are_refused_with_float32_as_the_cure(tmp_path: Path, scale: float) -> None:
    path = str(write_h5(tmp_path / "s.h5", features=features() * np.float32(scale)))
    with pytest.raises(FileFaultError, match=r"too small for float16 .*set store\.dtype to float32"):
        read_bag(path, "s", Recipe(), dtype="float16")
    np.testing.assert_array_equal(
        read_bag(path, "s", Recipe(), dtype="float32").features, features() * np.float32(scale)
    )


def test_few_tiny_values_among_others_round_to_zero(tmp_path: Path) -> None:
    values = features(100)
    values[7, 3] = 1e-12
    path = str(write_h5(tmp_path / "s.h5", n=100, features=values))
    assert read_bag(path, "s", Recipe(), dtype="float16").features[7, 3] == 0


def test_a_bag_that_rounding_makes_constant_is_told(tmp_path: Path) -> None:
    values = np.ones((9, WIDTH), "f4") * np.linspace(1, 2, WIDTH, dtype="f4") + features() * np.float32(1e-6)
    path = str(write_h5(tmp_path / "s.h5", features=values))
    with pytest.raises(FileFaultError, match="once rounded to float16"):
        read_bag(path, "s", Recipe(), dtype="float16")
    assert read_bag(path, "s", Recipe(), dtype="float32").n_patches == 9
