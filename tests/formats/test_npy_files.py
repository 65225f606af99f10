"""Features in plain `.npy` and `.npz` files, and what of them is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from support.feature_files import grid, values

from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(9, 6), (1, 9, 6)])
def test_an_array_is_a_bag_without_coordinates(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "s.npy", values(9).reshape(shape).astype(dtype))
    bag = read_bag(str(tmp_path / "s.npy"), "s", Recipe(graph="none"))
    np.testing.assert_array_equal(bag.features.astype("f4"), values(9))
    assert bag.coords is None
    with pytest.raises(FileFaultError, match=r"set features\.graph to none"):
        read_bag(str(tmp_path / "s.npy"), "s", Recipe())


@pytest.mark.parametrize("name", ["features", "feats", "embeddings"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_named_arrays_have_coordinates_and_texts(tmp_path: Path, name: str, save: object) -> None:
    save(tmp_path / "s.npz", **{name: values(20), "coords": grid(20), "encoder": np.array("uni_v2")})  # type: ignore[operator]
    bag = read_bag(str(tmp_path / "s.npz"), "s", Recipe())
    np.testing.assert_array_equal(bag.features, values(20))
    assert bag.coords is not None and len(bag.edge_indices) and bag.provenance["encoder"] == "uni_v2"


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([{"a": 1}], dtype=object), "could run code"),
        (np.array([["a", "b"]]), "not numbers"),
        (values(1)[0], "one vector for the whole slide"),
        (np.zeros((0, 6), "f4"), "no patches"),
        (np.full((3, 6), np.nan, "f4"), "NaN"),
    ],
)
def test_what_is_no_bag_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "s.npy", array, allow_pickle=True)
    with pytest.raises(FileFaultError, match=said):
        read_bag(str(tmp_path / "s.npy"), "s", Recipe(graph="none"))


@pytest.mark.parametrize("name", ["s.npy", "s.npz"])
def test_damage_is_one_sentence_or_a_bag(tmp_path: Path, name: str) -> None:
    path, rng, said = tmp_path / name, random.Random(name), []
    np.save(path, values(9)) if name == "s.npy" else np.savez_compressed(path, features=values(9), coords=grid(9))
    whole = path.read_bytes()
    for _ in range(100):
        at, length = rng.randrange(len(whole)), rng.choice([1, 4, 40])
        cut, noise = whole[:at], whole[:at] + rng.randbytes(length) + whole[at + length :]
        path.write_bytes(rng.choice([cut, noise, whole[:at] + whole[at + length :]]))
        try:
            read_bag(str(path), "s", Recipe(graph="none"))
        except FileFaultError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all("\n" not in sentence and str(path) in sentence for sentence in said)
