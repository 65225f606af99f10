"""Feature files of slides (TRIDENT, CLAM, STAMP, the released MoMKD) to bags; every fault is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from numpy.typing import NDArray

from momkd_ray.formats import hdf5, npy_file, pt_file
from momkd_ray.formats.arrays import Contents, Precision, Stored, read_all, read_features
from momkd_ray.formats.bag import Bag, Format, Indices, Recipe
from momkd_ray.formats.coordinates import in_level0_pixels, in_nanometres
from momkd_ray.formats.knn_graph import csr_graph, knn_graph, no_graph
from momkd_ray.formats.source_file import find_file
from momkd_ray.input_faults import FileFaultError
from momkd_ray.storage.local_retry import with_local_retries

# Attributes that only one of the two tools writes; CLAM's feature files may have no attribute at all.
_TRIDENT_MARKS = frozenset(
    {"encoder", "savetodir", "patch_size_level0", "level0_magnification", "target_magnification", "level0_width"}
)
_CLAM_MARKS = frozenset({"patch_level", "downsample", "downsampled_level_dim"})
_COORDS_NAMES = ("coords", "coordinates", "coord", "locations")
_FEATURES_NAMES = ("feats", "patch_features", "patch_feats", "tile_features", "embeddings", "tile_embeddings")
_CONTAINERS = {".pt": pt_file, ".pth": pt_file, ".npy": npy_file, ".npz": npy_file}
_NAMES_SHOWN = 8  # arrays listed in the message about a file without features
_ENCODER_NAMES = ("encoder", "patch_encoder", "extractor", "feature_extractor", "encoder_name", "model_name")


@dataclass(frozen=True)
class _Layout:
    """The arrays of a bag, identified in a file but not read yet; their shapes are consistent."""

    format: str
    features: Stored
    coords: Stored | None
    edges: Stored | None
    attributes: Mapping[str, str]
    encoder: str | None

    @property
    def n_patches(self) -> int:
        return self.features.shape[-2]


def read_bag(
    path: str,
    slide_id: str,
    recipe: Recipe,
    expected_width: int | None = None,
    dtype: Precision | None = None,
) -> Bag:
    """Reads the bag of one feature file.

    Args:
        path: a local path or `s3://` URI; `.pt` files are PyTorch's, `.npy` and `.npz` NumPy's, all others HDF5.
        slide_id: identifier of the slide.
        recipe: accepted layout, and source of the graph.
        expected_width: D of the cohort's other slides.
        dtype: precision of the features; by default float16 stays float16 and all others become float32.

    Raises:
        FileFaultError: the file is missing, damaged, incomplete, of another layout or width, has no coordinates
            for the graph, or holds NaN, inf, values beyond `dtype`, or the same features throughout.
        RunError: its storage cannot be reached, or this machine, its disks or memory fail.
    """
    return with_local_retries("read", path, lambda: _read_bag(path, slide_id, recipe, expected_width, dtype))


def _read_bag(path: str, slide_id: str, recipe: Recipe, expected_width: int | None, dtype: Precision | None) -> Bag:
    with _contents(path) as contents:
        layout = _layout(contents, recipe, expected_width)
        features_PD = read_features(layout.features, path, dtype)
        coords_P2 = _coordinates(layout, path)
        edges_2M = None if layout.edges is None else read_all(layout.edges)
    if edges_2M is not None:
        indptr, indices = _csr(edges_2M, len(features_PD), path)
    elif coords_P2 is None or recipe.graph == "none":
        indptr, indices = no_graph(len(features_PD))
    else:
        indptr, indices = knn_graph(coords_P2, recipe.neighbors)
    return Bag(slide_id, features_PD, coords_P2, indptr, indices, _provenance(layout, path))


@contextmanager
def _contents(path: str) -> Iterator[Contents]:
    suffix = PurePosixPath(path.lower()).suffix
    container = _CONTAINERS.get(suffix, hdf5)
    with container.opened(find_file(path)) as contents:
        yield contents


def _coordinates(layout: _Layout, path: str) -> Indices | None:
    if layout.coords is None:
        return None
    if layout.format == "stamp":
        return in_nanometres(layout.coords, layout.attributes, path)
    return in_level0_pixels(layout.coords, path)


def _csr(edges_2M: NDArray[Any], n_patches: int, path: str) -> tuple[Indices, Indices]:
    try:
        return csr_graph(edges_2M, n_patches)
    except ValueError as error:
        raise FileFaultError("misshapen", f"{path}: the graph {error}; write it again") from error


def _provenance(layout: _Layout, path: str) -> dict[str, str]:
    optional = {} if layout.encoder is None else {"encoder": layout.encoder}
    if layout.coords is not None:
        optional["coords_unit"] = "nm" if layout.format == "stamp" else "level0_px"
    always = {"source": path, "format": layout.format, "dtype": layout.features.precision}
    return {**layout.attributes, **optional, **always}


def _layout(contents: Contents, recipe: Recipe, expected_width: int | None) -> _Layout:
    """Identifies a bag's arrays by their names, and validates their shapes and types."""
    path = contents.path
    file_format, name = _format(contents, recipe.format)
    file_attributes = contents.attributes("")
    if file_attributes.get("feat_type", "tile") not in ("tile", "None"):
        raise FileFaultError(
            "misshapen",
            f"{path} holds features of a whole {file_attributes['feat_type']} (feat_type), not of patches; give the "
            "file of tile features",
        )
    features = _array(contents, name, "f")
    n_patches, width = features.shape[-2:]
    if expected_width is not None and width != expected_width:
        raise FileFaultError(
            "mixed",
            f"{path} has features of width {width} where {expected_width} is expected; "
            "extract all slides with one encoder",
        )
    named = next((own for own in _COORDS_NAMES if own in contents.names), None)
    coords = _array(contents, named, "iuf") if named else None
    if n_patches == 1 and coords is not None and coords.shape[-2] > 1:
        why = f"'{features.name}' has the shape {features.shape}, beside {coords.shape[-2]} coordinates"
        raise _slide_vector(path, why)
    if coords is not None:
        _check_coords_shape(coords, n_patches, features.name, path)
    edges = _stored_graph(contents, recipe, n_patches, coords)
    attributes: dict[str, str] = {}
    for holder in ("", *([named] if named else []), name):  # of equal names, the features' value wins
        attributes |= contents.attributes(holder)
    encoder = _encoder(contents.attributes(name)) or _encoder(attributes)
    return _Layout(file_format, features, coords, edges, attributes, encoder)


def _format(contents: Contents, wanted: Format) -> tuple[str, str]:
    """Detects the layout of a file; returns it with the name of the features' array."""
    candidates = dict(_formats(contents))
    if not candidates:
        if embedding := next((name for name in contents.names if "slide" in name.lower()), None):
            raise _slide_vector(contents.path, f"it has '{embedding}' and no features of patches")
        present = ", ".join(map(repr, contents.names[:_NAMES_SHOWN])) or "nothing"
        present += " and others" if len(contents.names) > _NAMES_SHOWN else ""
        raise FileFaultError(
            "unreadable",
            f"{contents.path} has no 'features' (TRIDENT, CLAM, released) and no 'feats' (STAMP), it holds {present}; "
            "extract it again with one of these",
        )
    if wanted == "auto":
        return next(iter(candidates.items()))
    if wanted not in candidates:
        raise FileFaultError(
            "misshapen",
            f"{contents.path} is of the layout {' or '.join(candidates)}, not {wanted}; set features.format to auto",
        )
    return wanted, candidates[wanted]


def _formats(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yields the layouts that a file may have, the likeliest first, with the name of the features' array."""
    if "features" in contents.names:
        if contents.container == "dict" or any(_neighbors_of(name) for name in contents.names):
            yield "released", "features"
        elif contents.container == "hdf5":
            marks = set(contents.attributes("features"))
            if "coords" in contents.names:
                marks |= set(contents.attributes("coords"))
            if not marks & _TRIDENT_MARKS:
                yield "clam", "features"
            if marks & _TRIDENT_MARKS or not marks & _CLAM_MARKS:
                yield "trident", "features"
        else:
            likely, other = ("trident", "clam") if contents.container == "ndarray" else ("clam", "trident")
            yield likely, "features"
            yield other, "features"
    if contents.container == "hdf5":
        for name in ("feats", "patch_embeddings"):
            if name in contents.names:
                yield "stamp", name
                return
    if "features" not in contents.names:
        names = [name for name in (*_FEATURES_NAMES, "patch_embeddings") if name in contents.names]
        if len(names) == 1:
            yield "released" if contents.container == "dict" else "trident", names[0]


def _neighbors_of(name: str) -> int | None:
    """Parses k from the name of a graph's array."""
    match = re.fullmatch(r"edge_index_k(\d+)", name)
    return int(match[1]) if match else None


def _array(contents: Contents, name: str, kinds: str) -> Stored:
    """Returns an array of numbers with the shape (R, C) or (1, R, C), whose type is one of `kinds`."""
    stored = contents.array(name)
    shape = stored.shape[1:] if len(stored.shape) == 3 and stored.shape[0] == 1 else stored.shape
    if kinds == "f" and shape and 0 in shape:
        raise FileFaultError(
            "empty",
            f"{contents.path} holds no patches ('{name}' has the shape {stored.shape}); check the slide's tissue "
            "segmentation or leave the slide out",
        )
    if stored.kind not in kinds:
        wanted = "floating-point numbers" if kinds == "f" else "whole numbers"
        raise FileFaultError(
            "misshapen", f"{contents.path}: '{name}' is of type {stored.precision}, not {wanted}; extract it again"
        )
    if kinds == "f" and len(shape) == 1:
        raise _slide_vector(contents.path, f"'{name}' has the shape {stored.shape}")
    if len(shape) != 2:
        raise FileFaultError(
            "misshapen",
            f"{contents.path}: '{name}' has the shape {stored.shape}, not two dimensions; extract it again",
        )
    return stored


def _slide_vector(path: str, why: str) -> FileFaultError:
    return FileFaultError(
        "misshapen",
        f"{path} holds one vector for the whole slide ({why}), a slide embedding, where patches need one each: give "
        "the folder of patch features",
    )


def _check_coords_shape(coords: Stored, n_patches: int, features: str, path: str) -> None:
    n_coords, n_axes = coords.shape[-2:]
    if n_axes != 2:
        raise FileFaultError(
            "misshapen", f"{path}: 'coords' has {n_axes} columns where x and y are needed; extract it again"
        )
    if n_coords != n_patches:
        raise FileFaultError(
            "misshapen",
            f"{path} holds {n_patches} patches in '{features}' but {n_coords} in 'coords'; extract it again",
        )


def _stored_graph(contents: Contents, recipe: Recipe, n_patches: int, coords: Stored | None) -> Stored | None:
    """Returns the file's own graph if it is to be used; refuses a file from which no needed graph can be made."""
    if recipe.graph == "none":
        return None
    name = f"edge_index_k{recipe.neighbors}"
    if recipe.graph == "auto" and name in contents.names:
        edges = _array(contents, name, "iuf")
        if edges.shape[-2] != 2:
            raise FileFaultError(
                "misshapen", f"{contents.path}: '{name}' has the shape {edges.shape}, not (2, edges); write it again"
            )
        # a graph without edges over several patches was written for too few patches for k: it is built again
        if edges.shape[-1] or n_patches == 1:
            return edges
    if coords is not None:
        return None
    own = sorted(k for k in map(_neighbors_of, contents.names) if k)
    if own and recipe.graph == "knn":
        remedy = "set features.graph to auto for the file's own graph, or to none"
    elif own and recipe.neighbors not in own:
        remedy = f"set store.neighbors to {own[0]}, for which it has a graph, or features.graph to none"
    else:
        remedy = "give a file with coordinates, or set features.graph to none to train without a graph"
    raise FileFaultError("misshapen", f"{contents.path} has no 'coords' to find the neighbours of patches by; {remedy}")


def _encoder(attributes: Mapping[str, str]) -> str | None:
    named = (attributes.get(name, "").strip() for name in _ENCODER_NAMES)
    return next((text for text in named if text not in ("", "None")), None)
