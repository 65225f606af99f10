"""The graph of the nearest patches is exact and does not depend on their order."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from support.bags import (
    grid,
)

from momkd_ray.formats.knn_graph import knn_graph


def rows_of(coords: np.ndarray, k: int) -> np.ndarray:
    indptr, indices = knn_graph(coords, k)
    assert indptr.dtype == indices.dtype == np.int32
    degree = min(k, len(coords) - 1)
    np.testing.assert_array_equal(indptr, np.arange(len(coords) + 1) * degree)
    return indices.reshape(len(coords), degree)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=60), st.integers(1, 9))
def test_graph_is_the_brute_force_one(points: list[tuple[int, int]], k: int) -> None:
    """Also with repeated places: nearest first, ties by x, then y, then index."""
    coords = np.array(points)
    squared = ((coords[:, None] - coords[None]) ** 2).sum(-1)
    expected = [
        sorted((j for j in range(len(coords)) if j != i), key=lambda j: (squared[i, j], *points[j], j))[:k]
        for i in range(len(coords))
    ]
    assert rows_of(coords, k).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=60), st.randoms())
def test_graph_does_not_depend_on_patch_order(points: set[tuple[int, int]], random: Any) -> None:
    coords = np.array(sorted(points)) * 256
    order = np.array(random.sample(range(len(coords)), len(coords)))
    np.testing.assert_array_equal(order[rows_of(coords[order], 8)], rows_of(coords, 8)[order])


def test_graph_distances_agree_with_scikit_learn() -> None:
    coords = np.random.default_rng(3).permutation(grid(3000))[:2000]
    rows = rows_of(coords, 8)
    found = np.sqrt(((coords[rows] - coords[:, None]) ** 2).sum(-1))
    expected, _ = NearestNeighbors(n_neighbors=8).fit(coords).kneighbors()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_graph_is_exact_where_many_tie_and_squares_exceed_double_precision() -> None:
    circle = [(x, y) for x in range(-33, 34) for y in range(-33, 34) if x * x + y * y == 1105]
    assert rows_of(np.array([*circle, (0, 0)]), 3)[-1].tolist() == [0, 1, 2]
    coords = np.array([[0, 0], [2**30, -2], [2**30, 0], [2**30, -1]])
    assert rows_of(coords, 3)[0].tolist() == [2, 3, 1]
