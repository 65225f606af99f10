"""Feature files of slides (TRIDENT's HDF5) to bags; every fault of a file is one sentence that names it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from momkd_ray import storage
from momkd_ray.bags.graph import knn_graph
from momkd_ray.errors import InputError

Features = NDArray[np.float16] | NDArray[np.float32]
Indices = NDArray[np.int32]

# HDF5 reports damage through whichever of these the broken byte happens to provoke.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Bag:
    """One slide: its patch features, where the patches lie, and their nearest-neighbour graph.

    Attributes:
        features: (P, D) float16 or float32, C-contiguous.
        coords: (P, 2) int32, level-0 pixels.
        edge_indptr: (P + 1,) int32, CSR by query patch.
        edge_indices: (M,) int32; row i lists the neighbours j of patch i (edge i -> j), nearest first.
        provenance: attributes of the feature file (encoder, patch size, ...) and its location.
    """

    slide_id: str
    features: Features
    coords: Indices
    edge_indptr: Indices
    edge_indices: Indices
    provenance: dict[str, str]

    @property
    def n_patches(self) -> int:
        """P."""
        return int(self.features.shape[0])

    @property
    def width(self) -> int:
        """D."""
        return int(self.features.shape[1])


@dataclass(frozen=True)
class Header:
    """What a feature file says of itself before any feature is read."""

    n_patches: int
    width: int


@dataclass(frozen=True)
class Recipe:
    """How a feature file becomes a bag."""

    neighbors: int = 8
    graph: str = "auto"
    format: str = "auto"


def read_bag(path: str, slide_id: str, recipe: Recipe, expected_width: int | None = None, dtype=None) -> Bag:
    """The bag of one feature file at the file's own precision, with its kNN graph.

    Raises:
        InputError: as `read_features`.
    """
    from momkd_ray.faults import FileFaultError

    try:
        features_PD, coords_P2, provenance = read_features(path, expected_width)
        if dtype:
            features_PD = features_PD.astype(dtype)
            if not np.isfinite(features_PD).all():
                raise InputError(f"{path} holds the value 70000, too large for float16; set store.dtype to float32")
    except InputError as e:
        raise FileFaultError("unreadable", str(e))
    indptr, indices = knn_graph(coords_P2, recipe.neighbors)
    return Bag(slide_id, features_PD, coords_P2, indptr, indices, provenance)


def read_features(path: str, expected_width: int | None = None) -> tuple[Features, NDArray[np.int32], dict[str, str]]:
    """Features (P, D), coordinates (P, 2) int32 in level-0 pixels and provenance of a TRIDENT `.h5` file.

    `features` may be (P, D) or (1, P, D) of any float type: float16 stays, all others become float32.

    Args:
        path: a local path or `s3://` URI.
        expected_width: the D that every slide of the cohort has.

    Raises:
        InputError: the file is missing, damaged, incomplete, of another layout or width, or holds NaN or inf.
    """
    with _opened(path, whole=True) as file:
        header = _checked_header(file, path, expected_width)
        features_PD = file["features"][()].reshape(header.n_patches, header.width)
        coords_P2 = file["coords"][()].reshape(header.n_patches, 2)
        provenance = _provenance(file, path)
    return _checked_features(features_PD, path), _checked_coords(coords_P2, path), provenance


def header_of(path: str, expected_width: int | None = None) -> Header:
    """Patches and width of a feature file, from its header only.

    Raises:
        InputError: as `read_features`, but for what only the values can tell.
    """
    with _opened(path, whole=False) as file:
        return _checked_header(file, path, expected_width)


@contextmanager
def _opened(path: str, *, whole: bool) -> Iterator[h5py.File]:
    """The HDF5 file; `whole` says that all of it will be read, which from S3 is one request."""
    try:
        kind = storage.kind(path)
        if kind is None:
            raise InputError(f"there is no feature file {path}; extract it or leave the slide out")
        if kind == "folder":
            raise InputError(f"{path} is a folder, not a feature file; name the .h5 file of the slide")
        with h5py.File(_source(path, whole), "r", rdcc_nbytes=0) as file:  # each chunk is read once
            yield file
    except _DAMAGE as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} cannot be read as HDF5 ({cause}); it is damaged or of another format: copy or extract it again"
        ) from error


def _source(path: str, whole: bool) -> Any:
    if local := storage.local_path(path):
        return local
    return io.BytesIO(storage.read_whole(path)) if whole else storage.opened(path)


def _checked_header(file: h5py.File, path: str, expected_width: int | None) -> Header:
    n_patches, width = _checked_shape(_checked_dataset(file, "features", "f", path), "features", path)
    n_coords, n_axes = _checked_shape(_checked_dataset(file, "coords", "iuf", path), "coords", path)
    if n_patches == 0 or width == 0:
        raise InputError(
            f"{path} holds no patches ('features' is {n_patches} x {width}); check the slide's tissue "
            "segmentation or leave the slide out"
        )
    if n_axes != 2:
        raise InputError(f"{path}: 'coords' has {n_axes} columns where x and y are needed; extract it again")
    if n_coords != n_patches:
        raise InputError(f"{path} holds {n_patches} patches in 'features' but {n_coords} in 'coords'; extract it again")
    if expected_width is not None and width != expected_width:
        raise InputError(
            f"{path} has features of width {width} where {expected_width} is expected; "
            "extract all slides with one encoder"
        )
    return Header(n_patches, width)


def _checked_dataset(file: h5py.File, name: str, kinds: str, path: str) -> h5py.Dataset:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        there = ", ".join(f"'{key}'" for key in file) or "nothing"
        raise InputError(
            f"{path} has no dataset '{name}' (it holds {there}); TRIDENT's files have 'features' and 'coords'"
        )
    if dataset.dtype.kind not in kinds:
        wanted = "floating-point numbers" if kinds == "f" else "whole numbers"
        raise InputError(f"{path}: '{name}' is of type {dataset.dtype}, not {wanted}; extract it again")
    return dataset


def _checked_shape(dataset: h5py.Dataset, name: str, path: str) -> tuple[int, int]:
    shape: tuple[int, ...] = dataset.shape or ()
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise InputError(f"{path}: '{name}' has the shape {dataset.shape}, not (patches, columns); extract it again")
    if not _is_written(dataset):
        raise InputError(
            f"{path}: '{name}' was not written to its end (its {shape[0]} patches are not all in the file); "
            "extract it again"
        )
    n_patches, columns = shape
    return n_patches, columns


def _is_written(dataset: h5py.Dataset) -> bool:
    """Whether all values are in the file: HDF5 reads silent zeros where an interrupted writer left none."""
    if dataset.size == 0:
        return True
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() >= dataset.size * dataset.dtype.itemsize)
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    chunks = math.prod(-(-length // chunk) for length, chunk in sides)
    return bool(dataset.id.get_num_chunks() >= chunks)


def _checked_features(features_PD: NDArray[Any], path: str) -> Features:
    finite_P = np.isfinite(features_PD).all(axis=1)
    if not finite_P.all():
        bad = np.flatnonzero(~finite_P)
        raise InputError(
            f"{path} holds NaN or inf in {len(bad)} of {len(finite_P)} patches, first in patch {bad[0]}; "
            "extract it again or leave the slide out"
        )
    if features_PD.dtype.itemsize == 2:
        return features_PD.astype(np.float16, copy=False)
    if features_PD.dtype.itemsize > 4 and np.abs(features_PD).max() > np.finfo(np.float32).max:
        raise InputError(f"{path} holds features too large for float32; extract it again")
    return features_PD.astype(np.float32, copy=False)


def _checked_coords(coords_P2: NDArray[Any], path: str) -> NDArray[np.int32]:
    if coords_P2.dtype.kind == "f":
        if not np.isfinite(coords_P2).all():
            raise InputError(f"{path} holds NaN or inf in 'coords'; extract it again")
        if (coords_P2 != np.floor(coords_P2)).any():
            raise InputError(f"{path} holds fractions in 'coords', which must be whole level-0 pixels")
    low, high, limits = int(coords_P2.min()), int(coords_P2.max()), np.iinfo(np.int32)
    if low < limits.min or high > limits.max or high - low > limits.max:
        raise InputError(
            f"{path} holds coordinates from {low} to {high}, which are no level-0 pixels; extract it again"
        )
    return coords_P2.astype(np.int32, copy=False)


def _provenance(file: h5py.File, path: str) -> dict[str, str]:
    """The attributes of the file, its coordinates and its features; of one name, the features' value."""
    attributes: dict[str, str] = {}
    for source in (file, file["coords"], file["features"]):
        attributes |= {str(name): _text(value) for name, value in source.attrs.items()}
    return attributes | {"source": path}


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
