"""Feature files as TRIDENT, CLAM, STAMP and the released MoMKD write them, for the tests that read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from h5py import h5s, h5t

from momkd_ray.formats.knn_graph import knn_graph

WIDTH = 6
NEIGHBORS = 8

# as HDF5 has them; bfloat16 as a float type of 16 bits, or as raw bits that an attribute explains
PRECISIONS = ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<bf16", ">bf16", "raw u2", "raw V2")
CHUNKINGS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "a chunk a patch": {"rows": 1},
    "chunks of 3": {"rows": 3},
    "chunks of 64": {"rows": 64},
    "narrow chunks": {"rows": 4, "columns": 4},
    "gzip": {"rows": 5, "compression": "gzip"},
    "shuffled": {"rows": 7, "shuffle": True, "fletcher32": True},
}


def grid(n: int) -> np.ndarray:
    """Places (n, 2) of patches of 256 pixels, row by row in a square."""
    return np.stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n)))), 1) * 256


def values(n: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Features (n, width) in float32 that float16 holds exactly."""
    return np.random.default_rng(seed).normal(size=(n, width)).astype("f2").astype("f4")


def edges(n: int, k: int = NEIGHBORS) -> np.ndarray:
    """The nearest neighbours on the grid as the released code stores them: (2, n k) int64."""
    indptr, indices = knn_graph(grid(n), k)
    return np.stack([np.repeat(np.arange(n), np.diff(indptr)), indices]).astype(np.int64)


def bfloat16_bits(features: np.ndarray) -> np.ndarray:
    return (features.view(np.uint32) >> 16).astype(np.uint16)


def bfloat16_values(features: np.ndarray) -> np.ndarray:
    """What of float32 values bfloat16 keeps when it cuts."""
    return (features.view(np.uint32) & 0xFFFF0000).view(np.float32)


def bfloat16_type(order: str) -> h5t.TypeFloatID:
    kind = (h5t.IEEE_F32LE if order == "<" else h5t.IEEE_F32BE).copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def layout_of(shape: tuple[int, ...], rows: int = 0, columns: int = 0, **filters: Any) -> dict[str, Any]:
    """h5py's options of a chunking; arrays without columns or values stay as they are."""
    if not rows or len(shape) < 2 or 0 in shape:
        return {}
    chunks = (*(1 for _ in shape[:-2]), rows, columns or shape[-1])
    return {"chunks": chunks, "maxshape": (None,) * len(shape), **filters}


def store(file: h5py.File, name: str, features: np.ndarray, precision: str, chunking: Mapping[str, Any]) -> None:
    """Write features at a precision."""
    options = layout_of(features.shape, **chunking)
    if "bf16" in precision:
        kind = bfloat16_type(precision[0])
        dataset = file.create_dataset(name, features.shape, h5py.Datatype(kind), **options)
        bits = bfloat16_bits(features).astype(f"{precision[0]}u2")
        dataset.id.write(h5s.ALL, h5s.ALL, bits, mtype=kind)
    elif precision.startswith("raw"):
        bits = bfloat16_bits(features)
        file.create_dataset(name, data=bits.view("V2") if precision.endswith("V2") else bits, **options)
        file[name].attrs["dtype"] = "torch.bfloat16"
    else:
        file.create_dataset(name, data=features.astype(precision), **options)


def write_hdf5(
    path: Path,
    layout: str,
    features: np.ndarray,
    precision: str = "<f4",
    chunking: str = "contiguous",
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A file of a layout; `changes` replace or add arrays, or leave them out where None."""
    n = features.shape[-2] if features.ndim > 1 else len(features)
    name = "feats" if layout == "stamp" else "features"
    places = grid(n).astype("f4") / 8 if layout == "stamp" else grid(n)
    arrays: dict[str, Any] = {"coords": None if layout == "released" else places, **(changes or {})}
    if layout == "released":
        arrays = {f"edge_index_k{NEIGHBORS}": edges(n), **arrays}
    with h5py.File(path, "w", **options) as file:
        if name not in arrays:
            store(file, name, features, precision, CHUNKINGS[chunking])
        for key, array in arrays.items():
            if array is not None:
                file.create_dataset(key, data=array, **layout_of(np.shape(array), **CHUNKINGS[chunking]))
        if layout == "trident":
            describe(file, name, name="slide", savetodir="out", encoder="uni_v2")
            describe(file, "coords", name="slide", patch_size=256, patch_size_level0=512, target_magnification=20)
        if layout == "clam":
            describe(file, "coords", patch_size=256, patch_level=0, downsample=[1.0, 1.0])
        if layout == "stamp":
            describe(file, "", extractor="uni2", unit="um", tile_size_um=32.0, tile_size_px=224, feat_type="tile")
    return path


def describe(file: h5py.File, name: str, /, **attributes: Any) -> None:
    """Write attributes, where there is what they describe."""
    if not name or name in file:
        (file[name] if name else file).attrs.update(attributes)


def write_pt(path: Path, layout: str, features: Any, changes: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """CLAM's tensor, TRIDENT's pickled array, or the released dictionary."""
    if layout == "released":
        features = torch.as_tensor(features)
        features = {"features": features, f"edge_index_k{NEIGHBORS}": torch.from_numpy(edges(features.shape[-2]))}
        features = {key: value for key, value in {**features, **(changes or {})}.items() if value is not None}
    elif layout == "clam":
        features = torch.as_tensor(features)
    torch.save(features, path, **options)
    return path
