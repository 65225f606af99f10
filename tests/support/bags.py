"""Feature files, bags and stores of a dozen slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from momkd_ray.bags.ingest import ingest
from momkd_ray.bags.store import BagStore, StoreFormat
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.formats.readers import read_bag

WIDTH = 6

FORMAT = StoreFormat("float16", 8, "auto")

EXACT = StoreFormat("float32", 8, "auto")


def grid(n: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n)))), 1) * 256


def write_h5(path: Path, n: int = 9, width: int = WIDTH, seed: int = 0, **changes: Any) -> Path:
    """A TRIDENT file; `changes` replace a dataset, or leave it out where None."""
    features = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    data = {"features": features, "coords": grid(n)} | changes
    with h5py.File(path, "w") as file:
        for name in data:
            if data[name] is not None:
                file[name] = data[name]
                file[name].attrs["patch_size_level0"] = 256
    return path


def make_bag(n: int = 12, dtype: str = "float16", seed: int = 0) -> Bag:
    features = np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(dtype)
    coords = grid(n).astype(np.int32)
    return Bag(f"slide-{seed}", features, coords, *knn_graph(coords, 4), {"encoder": "uni"})


def assert_same_bag(a: Bag, b: Bag) -> None:
    assert (a.slide_id, a.provenance) == (b.slide_id, b.provenance)
    for name in ("features", "coords", "edge_indptr", "edge_indices"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def features_in(path: str) -> np.ndarray:
    return read_bag(path, "slide", Recipe()).features


def with_value(value: float) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(9, WIDTH)).astype("f4")
    features[[4, 7], 2] = value
    return features


def listed(paths: list[Path], patients: list[str] | None = None) -> pd.DataFrame:
    """Slides as a cohort lists them, one a patient unless said otherwise."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return pd.DataFrame(
        {
            "slide_id": [path.stem for path in paths],
            "patient_id": patients or [f"patient of {path.stem}" for path in paths],
            "path": map(str, paths),
            "file": [f"{s.st_size}-{s.st_mtime_ns}" if s else "" for s in stats],
            "bytes": [s.st_size if s else 0 for s in stats],
        }
    )


def relisted(slides: pd.DataFrame) -> pd.DataFrame:
    """The same slides with the present stamps of their files."""
    return listed([Path(path) for path in slides["path"]], slides["patient_id"].tolist())


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("*.parquet")}


def stored(slides: pd.DataFrame, uri: str, form: StoreFormat = FORMAT) -> BagStore:
    return ingest(slides, uri, form, part_mb=1)[0]
