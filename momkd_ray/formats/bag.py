"""`Bag`: one slide in memory; `Recipe`: how a feature file becomes one. Imports no file reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int32]
Features = NDArray[Any]
Graph = Literal["auto", "knn", "none"]
Format = Literal["auto", "trident", "clam", "stamp", "released"]


@dataclass(frozen=True)
class Recipe:
    """How a feature file becomes a bag.

    Attributes:
        neighbors: k of the graph.
        graph: `auto` takes the file's own `edge_index_k<neighbors>` if it has one, else the nearest neighbours by
            coordinates; `knn` always these; `none` no edges, for features without coordinates.
        format: the only layout that is read; `auto` goes by what is in the file.
    """

    neighbors: int = 8
    graph: Graph = "auto"
    format: Format = "auto"


@dataclass(frozen=True)
class Bag:
    """One slide: its patch features, where the patches lie, and their graph.

    Attributes:
        features: (P, D) float16 or float32, C-contiguous.
        coords: (P, 2) int32 in `provenance["coords_unit"]`: `level0_px`, or `nm` for STAMP's micrometres. None where
            the file has none.
        edge_indptr: (P + 1,) int32, CSR by query patch.
        edge_indices: (M,) int32; row i lists the neighbours j of patch i (edge i -> j), nearest first, or as the
            file's own graph has them.
        provenance: the attributes of the feature file, and its `source`, `format`, `dtype` and, where it is told,
            `encoder`.
    """

    slide_id: str
    features: Features
    coords: Indices | None
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
