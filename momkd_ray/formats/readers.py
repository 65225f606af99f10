"""Feature files of slides (TRIDENT, CLAM, STAMP, the released MoMKD) to bags; every fault is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from momkd_ray.formats import hdf5
from momkd_ray.formats import pt_file as torchfile
from momkd_ray.formats.arrays import Contents, Precision, Stored, features_of, whole
from momkd_ray.formats.bag import Bag, Format, Indices, Recipe
from momkd_ray.formats.coordinates import in_level0_pixels, in_nanometres
from momkd_ray.formats.knn_graph import csr_graph, knn_graph, no_graph
from momkd_ray.formats.source_file import located
from momkd_ray.input_faults import FileFaultError

# What only one of the two writes beside the same datasets; CLAM's own features carry no attribute at all.
_TRIDENT_MARKS = frozenset(
    {"encoder", "savetodir", "patch_size_level0", "level0_magnification", "target_magnification", "level0_width"}
)
_CLAM_MARKS = frozenset({"patch_level", "downsample", "downsampled_level_dim"})
_NAMES_TOLD = 8  # of what is in a file where the features are not
_ENCODER_NAMES = ("encoder", "patch_encoder", "extractor", "feature_extractor", "encoder_name", "model_name")


@dataclass(frozen=True)
class _Layout:
    """The arrays of a bag, found in a file and not yet read; their shapes fit each other."""

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
    """The bag of one feature file.

    Args:
        path: a local path or `s3://` URI; `.pt` files are PyTorch's, all others HDF5.
        slide_id: the slide.
        recipe: which layouts are read, and where the graph comes from.
        expected_width: the D that every slide of the cohort has.
        dtype: the precision of the features; without it float16 stays and all others become float32.

    Raises:
        FileFaultError: the file is missing, damaged, incomplete, of another layout or width, has no coordinates
            for the graph, or holds NaN, inf, values beyond `dtype`, or the same features throughout.
        RunError: its store cannot be reached.
    """
    with _contents(path) as contents:
        layout = _layout(contents, recipe, expected_width)
        features_PD = features_of(layout.features, path, dtype)
        coords_P2 = _coordinates(layout, path)
        edges_2M = None if layout.edges is None else whole(layout.edges)
    if edges_2M is not None:
        indptr, indices = _csr(edges_2M, len(features_PD), path)
    elif coords_P2 is None or recipe.graph == "none":
        indptr, indices = no_graph(len(features_PD))
    else:
        indptr, indices = knn_graph(coords_P2, recipe.neighbors)
    return Bag(slide_id, features_PD, coords_P2, indptr, indices, _provenance(layout, path))


@contextmanager
def _contents(path: str) -> Iterator[Contents]:
    container = torchfile if path.lower().endswith(".pt") else hdf5
    with container.opened(located(path)) as contents:
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
    told = {} if layout.encoder is None else {"encoder": layout.encoder}
    if layout.coords is not None:
        told["coords_unit"] = "nm" if layout.format == "stamp" else "level0_px"
    found = {"source": path, "format": layout.format, "dtype": layout.features.precision}
    return {**layout.attributes, **told, **found}


def _layout(contents: Contents, recipe: Recipe, expected_width: int | None) -> _Layout:
    """Find a bag's arrays by their names, and check all that their shapes and types tell."""
    path = contents.path
    found, name = _format(contents, recipe.format)
    beside = contents.attributes("")
    if beside.get("feat_type", "tile") not in ("tile", "None"):
        raise FileFaultError(
            "misshapen",
            f"{path} holds features of a whole {beside['feat_type']} (feat_type), not of patches; give the tiles' file",
        )
    features = _array(contents, name, "f")
    n_patches, width = features.shape[-2:]
    if expected_width is not None and width != expected_width:
        raise FileFaultError(
            "mixed",
            f"{path} has features of width {width} where {expected_width} is expected; "
            "extract all slides with one encoder",
        )
    coords = _array(contents, "coords", "iuf") if "coords" in contents.names else None
    if coords is not None:
        _check_coords_shape(coords, n_patches, features.name, path)
    edges = _stored_graph(contents, recipe, n_patches, coords)
    attributes: dict[str, str] = {}
    for holder in ("", *(["coords"] if coords else []), name):  # of one name, the features' value stays
        attributes |= contents.attributes(holder)
    encoder = _encoder(contents.attributes(name)) or _encoder(attributes)
    return _Layout(found, features, coords, edges, attributes, encoder)


def _format(contents: Contents, wanted: Format) -> tuple[str, str]:
    """The layout of a file, and what it calls the features."""
    found = dict(_formats(contents))
    if not found:
        there = ", ".join(map(repr, contents.names[:_NAMES_TOLD])) or "nothing"
        there += " and others" if len(contents.names) > _NAMES_TOLD else ""
        raise FileFaultError(
            "unreadable",
            f"{contents.path} has no 'features' (TRIDENT, CLAM, released) and no 'feats' (STAMP), it holds {there}; "
            "extract it again with one of these",
        )
    if wanted == "auto":
        return next(iter(found.items()))
    if wanted not in found:
        raise FileFaultError(
            "misshapen",
            f"{contents.path} is of the layout {' or '.join(found)}, not {wanted}; set features.format to auto",
        )
    return wanted, found[wanted]


def _formats(contents: Contents) -> Iterator[tuple[str, str]]:
    """The layouts that a file may be of, the likeliest first, and what each calls the features."""
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


def _neighbors_of(name: str) -> int | None:
    """k, of the name of a graph."""
    match = re.fullmatch(r"edge_index_k(\d+)", name)
    return int(match[1]) if match else None


def _array(contents: Contents, name: str, kinds: str) -> Stored:
    """An array of numbers (R, C) or (1, R, C)."""
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
    if len(shape) != 2:
        raise FileFaultError(
            "misshapen",
            f"{contents.path}: '{name}' has the shape {stored.shape}, not two dimensions; extract it again",
        )
    return stored


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
    """The file's own graph, where that is to be used; refuse a file that offers no graph where one is needed."""
    if recipe.graph == "none":
        return None
    name = f"edge_index_k{recipe.neighbors}"
    if recipe.graph == "auto" and name in contents.names:
        edges = _array(contents, name, "iuf")
        if edges.shape[-2] != 2:
            raise FileFaultError(
                "misshapen", f"{contents.path}: '{name}' has the shape {edges.shape}, not (2, edges); write it again"
            )
        # without an edge between several patches, whoever wrote it had too few of them for k
        if edges.shape[-1] or n_patches == 1:
            return edges
    if coords is not None:
        return None
    own = sorted(k for k in map(_neighbors_of, contents.names) if k)
    if own and recipe.graph == "knn":
        way = "set features.graph to auto for the file's own graph, or to none"
    elif own and recipe.neighbors not in own:
        way = f"set store.neighbors to {own[0]}, for which it has a graph, or features.graph to none"
    else:
        way = "give a file with coordinates, or set features.graph to none to go without a graph"
    raise FileFaultError("misshapen", f"{contents.path} has no 'coords' to find the neighbours of patches by; {way}")


def _encoder(attributes: Mapping[str, str]) -> str | None:
    named = (attributes.get(name, "").strip() for name in _ENCODER_NAMES)
    return next((text for text in named if text not in ("", "None")), None)
