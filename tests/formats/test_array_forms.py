"""Features and coordinates are read in the forms that arrays have; embeddings of whole slides are told from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support.feature_files import grid, values

from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError

N = 12
FEATURES, COORDS = values(N), grid(N)


def write(path: Path, arrays: Any) -> str:
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
    else:
        torch.save(arrays, path)
    return str(path)


def tensors(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


FORMS: dict[str, tuple[str, Any]] = {
    "(P, 1, 2)": ("a.h5", {"features": FEATURES, "coords": COORDS[:, None]}),
    "(1, P, 2)": ("a.h5", {"features": FEATURES[None], "coords": COORDS[None]}),
    "(P, 1, D)": ("a.h5", {"features": FEATURES[:, None], "coords": COORDS}),
    "coordinates": ("a.h5", {"features": FEATURES, "coordinates": COORDS}),
    "embeddings": ("a.h5", {"embeddings": FEATURES, "coords": COORDS}),
    "dictionary": ("a.pt", tensors(features=FEATURES, coords=COORDS)),
    "feats": ("a.pt", tensors(feats=FEATURES, coords=COORDS)),
    "dictionary of (P, 1, 2)": ("a.pth", tensors(feats=FEATURES, coords=COORDS[:, None])),
    "a pair": ("a.pt", tuple(tensors(features=FEATURES, coords=COORDS).values())),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bag(tmp_path: Path, form: str) -> None:
    name, arrays = FORMS[form]
    bag = read_bag(write(tmp_path / name, arrays), "a", Recipe())
    plain = read_bag(write(tmp_path / "b.h5", {"features": FEATURES, "coords": COORDS}), "b", Recipe())
    assert np.array_equal(bag.features, FEATURES)
    assert bag.coords is not None
    assert np.array_equal(bag.coords, COORDS)
    assert np.array_equal(bag.edge_indices, plain.edge_indices)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("a.h5", {"features": FEATURES[0], "coords": COORDS}),
        ("a.h5", {"features": FEATURES[0]}),
        ("a.h5", {"features": FEATURES[:1], "coords": COORDS}),
        ("a.h5", {"slide_features": FEATURES[:1]}),
        ("a.pt", torch.from_numpy(FEATURES[0])),
        ("a.pt", tensors(slide_embedding=FEATURES[:1])),
    ],
)
def test_embeddings_of_slides_are_called_so(tmp_path: Path, name: str, arrays: Any) -> None:
    with pytest.raises(FileFaultError, match=r"one vector for the whole slide .* a slide embedding"):
        read_bag(write(tmp_path / name, arrays), "a", Recipe(graph="none"))
