"""The patch graph of a slide: k nearest neighbours by coordinates (docs/method.md §1: k = 8), or given edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Enough that on a grid, where 4 or 8 positions have the same distance, one query suffices for nearly every row.
_MORE_CANDIDATES = 8


def knn_graph(coords_P2: NDArray[np.integer], k: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Builds the graph of the min(k, P - 1) nearest other patches of every patch, as CSR by query patch.

    On a grid many distances are equal. Ties are broken by the neighbour's coordinates (x, then y), and by index only
    between patches at the same position, so the graph does not depend on the order of the patches.

    Args:
        coords_P2: (P, 2) integers, which may repeat; extent below 2^31 along each axis.
        k: neighbours per patch, the patch itself excluded.

    Returns:
        `indptr` (P + 1,) and `indices` (P * min(k, P - 1),), int32; each row sorted nearest first.
    """
    n_patches = len(coords_P2)
    k = min(k, n_patches - 1)
    if k < 1:
        return no_graph(n_patches)
    order_P = np.lexsort((coords_P2[:, 1], coords_P2[:, 0]))
    sorted_P2 = coords_P2[order_P].astype(np.int64)
    is_new_P = np.r_[True, (sorted_P2[1:] != sorted_P2[:-1]).any(axis=1)]
    position_P = np.cumsum(is_new_P) - 1
    positions_U2, count_U = sorted_P2[is_new_P], np.bincount(position_P)
    nearest_UN = _nearest_positions(positions_U2, min(k + 1, len(positions_U2)))
    ranks_PK = _without_self(_first_members(nearest_UN, count_U, k + 1)[position_P])
    indices_PK = np.empty((n_patches, k), np.int32)
    indices_PK[order_P] = order_P[ranks_PK]
    return np.arange(n_patches + 1, dtype=np.int32) * np.int32(k), indices_PK.ravel()


def no_graph(n_patches: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns `indptr` (P + 1,) and `indices` (0,) of a graph without edges."""
    return np.zeros(n_patches + 1, np.int32), np.zeros(0, np.int32)


def csr_graph(edges_2M: NDArray[np.generic], n_patches: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Converts edges to CSR by query patch; duplicates and self-loops are kept.

    Args:
        edges_2M: row 0 the query patches, row 1 their neighbours; integers of any type.
        n_patches: P.

    Returns:
        `indptr` (P + 1,) and `indices` (M,), int32; each row in the order of the edges.

    Raises:
        ValueError: an edge names a patch outside 0 to P - 1.
    """
    with np.errstate(invalid="ignore"):
        integer_2M = edges_2M.astype(np.int64)
    invalid_2M = (edges_2M != integer_2M) | (integer_2M < 0) | (integer_2M >= n_patches)
    if invalid_2M.any():
        raise ValueError(f"names patch {edges_2M[invalid_2M][0]} where there are 0 to {n_patches - 1}")
    query_M, neighbor_M = integer_2M
    indptr = np.zeros(n_patches + 1, np.int32)
    np.cumsum(np.bincount(query_M, minlength=n_patches), out=indptr[1:])
    return indptr, neighbor_M[np.argsort(query_M, kind="stable")].astype(np.int32)


def _nearest_positions(positions_U2: Ints, n: int) -> Ints:
    """Finds the n nearest of U distinct, sorted positions to each, itself first: (U, n) by (distance, position)."""
    from scipy.spatial import cKDTree  # takes half a second to import, which reading without a graph has no use for

    tree = cKDTree(positions_U2)
    nearest_UN = np.empty((len(positions_U2), n), np.int64)
    open_R = np.arange(len(positions_U2))
    n_candidates = n + _MORE_CANDIDATES
    while len(open_R):
        n_candidates = min(n_candidates, len(positions_U2))
        _, candidates_RC = tree.query(positions_U2[open_R], k=np.arange(1, n_candidates + 1))
        offsets_RC2 = positions_U2[candidates_RC] - positions_U2[open_R, None]
        squared_RC = (offsets_RC2**2).sum(axis=2)
        by_distance_RC = np.lexsort((candidates_RC, squared_RC), axis=1)
        nearest_UN[open_R] = np.take_along_axis(candidates_RC, by_distance_RC[:, :n], axis=1)
        squared_RC = np.take_along_axis(squared_RC, by_distance_RC, axis=1)
        # positions at the distance of the n-th may lie outside the candidates; the margin is for the tree's rounding
        tied_R = squared_RC[:, n - 1] >= squared_RC[:, -1] * (1 - 1e-12)
        open_R = open_R[tied_R & (n_candidates < len(positions_U2))]
        n_candidates *= 2
    return nearest_UN


def _first_members(nearest_UN: Ints, count_U: Ints, n: int) -> Ints:
    """Expands positions into the patches that lie there, cut to the first n: (U, n) ranks of patches."""
    count_UN = count_U[nearest_UN]
    before_UN = np.cumsum(count_UN, axis=1) - count_UN
    taken = np.clip(n - before_UN, 0, count_UN).ravel()
    first_rank_U = np.cumsum(count_U) - count_U
    within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
    ranks: Ints = np.repeat(first_rank_U[nearest_UN].ravel(), taken) + within
    return ranks.reshape(len(nearest_UN), n)


def _without_self(ranks_PN: Ints) -> Ints:
    """Removes the patch itself from each row, or the last entry if the patch is not in the row."""
    others_PN = ranks_PN != np.arange(len(ranks_PN))[:, None]
    others_PN[:, -1] &= ~others_PN.all(axis=1)
    others: Ints = ranks_PN[others_PN]
    return others.reshape(len(ranks_PN), -1)
