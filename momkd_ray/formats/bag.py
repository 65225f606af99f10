"""`Bag`, a slide's patch features in memory, and `Recipe`, how a feature file is read. Imports no file reader."""

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
    """The parameters by which a feature file is read into a bag.

    Attributes:
        neighbors: k of the patch graph.
        graph: `auto` takes the file's own `edge_index_k<neighbors>` if it has one, otherwise the nearest neighbours
            by coordinates; `knn` always these; `none` no edges, for features without coordinates.
        format: the accepted layout; `auto` detects it from the file's content.
    """

    neighbors: int = 8
    graph: Graph = "auto"
    format: Format = "auto"


@dataclass(frozen=True)
class Bag:
    """A bag: the patch features of one slide, their coordinates and their graph (docs/method.md §1).

    Attributes:
        slide_id: the slide, or the patient for a bag of several slides.
        features: (P, D) float16 or float32, C-contiguous.
        coords: (P, 2) int32 in the unit `provenance["coords_unit"]`: `level0_px`, or `nm` for STAMP's micrometres.
            None if the file has no coordinates.
        edge_indptr: (P + 1,) int32, CSR row pointer by query patch.
        edge_indices: (M,) int32; row i lists the neighbours j of patch i (edge i -> j), nearest first, or in the order
            of the file's own graph.
        provenance: attributes of the feature file, its `source`, `format`, `dtype` and, if known, `encoder`.
    """

    slide_id: str
    features: Features
    coords: Indices | None
    edge_indptr: Indices
    edge_indices: Indices
    provenance: dict[str, str]

    @property
    def n_patches(self) -> int:
        """P, the number of patches."""
        return int(self.features.shape[0])

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return int(self.features.shape[1])
