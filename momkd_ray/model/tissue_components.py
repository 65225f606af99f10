"""Tissue components: an unsupervised clustering of patches, and the pooling of a bag by it (docs/method.md §9).

The clustering minimises the determinant of the covariance within clusters (Friedman and Rubin, "On some invariant
criteria for grouping data", JASA 1967). It gives the same clusters for every invertible linear map of the features, so
that neither the scale of a feature nor a shared direction such as the stain decides it. Shapes: see `model/momkd.py`; J
is the number of discriminant directions, K - 1 or fewer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Doubles = npt.NDArray[np.float64]

PATCHES_A_DIRECTION = 10
"""Sampled patches that each principal direction must have, so that a covariance is not fitted to too few of them."""

SMALLEST_VARIANCE = 1e-4
"""Directions with less than this share of the largest variance are left out."""

RIDGE = 0.02
"""Added to the variance within clusters, whose total is 1, so that no direction counts without bound."""

START_DIRECTIONS = (4, 8, 30, None)
"""Numbers of principal directions in which k-means proposes clusters; None is all, each scaled to variance 1."""


@dataclass(frozen=True)
class TissueComponents:
    """Clusters of patches as points in the space of the directions that tell them apart.

    Attributes:
        direction_DJ: maps a patch's features to that space.
        offset_J: is subtracted after it.
        centre_KJ: the clusters' centres there; the variance within clusters is 1 in every direction.
    """

    direction_DJ: Doubles
    offset_J: Doubles
    centre_KJ: Doubles


def fit_components(
    x_ND: Doubles, components: int, seed: int, *, starts: int = 2, iterations: int = 40
) -> TissueComponents:
    """Clusters sampled patches by the smallest determinant of their covariance within clusters.

    k-means proposes clusters in several sets of principal directions. From each proposal patches move to the centre
    that is nearest by the covariance within the clusters, until nearly none moves; the result with the smallest
    determinant is kept.

    Args:
        x_ND: features of sampled patches.
        components: K, at most N.
        seed: of the proposals.
        starts: proposals of each set of directions.
        iterations: the largest number of rounds from a proposal.
    """
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0) + 1e-6
    z_ND = (x_ND - mean_D) / scale_D
    variance_J, axes_DJ = np.linalg.eigh(z_ND.T @ z_ND / len(z_ND))
    widest = max(2, len(z_ND) // PATCHES_A_DIRECTION)
    kept = np.flatnonzero(variance_J >= SMALLEST_VARIANCE * variance_J[-1])[::-1][:widest]
    variance_J, axes_DJ = np.maximum(variance_J[kept], 1e-12), axes_DJ[:, kept]
    principal_NJ = z_ND @ axes_DJ
    whitened_NJ = principal_NJ / np.sqrt(variance_J)
    best: tuple[float, Doubles, Doubles, Doubles] | None = None
    for cluster_N in _proposals(principal_NJ, whitened_NJ, components, seed, starts):
        found = _refine(whitened_NJ, cluster_N, components, iterations)
        if best is None or found[0] < best[0] - 1e-9:
            best = found
    assert best is not None
    _, centre_KJ, discriminant_JJ, within_J = best
    to_discriminant_JJ = discriminant_JJ / np.sqrt(within_J)
    direction_DJ = (axes_DJ / np.sqrt(variance_J)) @ to_discriminant_JJ / scale_D[:, None]
    return TissueComponents(direction_DJ, mean_D @ direction_DJ, centre_KJ @ to_discriminant_JJ)


def _proposals(
    principal_NJ: Doubles, whitened_NJ: Doubles, components: int, seed: int, starts: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yields clusters of k-means in several sets of directions."""
    from sklearn.cluster import KMeans  # takes a second to import, which prediction has no use for
    from sklearn.exceptions import ConvergenceWarning

    for number in START_DIRECTIONS:
        space_NJ = whitened_NJ if number is None else principal_NJ[:, :number]
        for start in range(starts):
            means = KMeans(components, n_init=1, max_iter=15, random_state=(seed + start) % 2**32)
            with warnings.catch_warnings():
                # fewer different patches than clusters leave some clusters empty, which does no harm here
                warnings.simplefilter("ignore", ConvergenceWarning)
                cluster_N = means.fit_predict(space_NJ).astype(np.int64)
            yield cluster_N


def _refine(
    x_NJ: Doubles, cluster_N: npt.NDArray[np.int64], components: int, iterations: int
) -> tuple[float, Doubles, Doubles, Doubles]:
    """Moves points to the centre that is nearest by the covariance within clusters.

    The covariance of all points is the identity, so that the one within clusters differs from it in the directions of
    the centres alone, and only these are computed.

    Returns:
        The logarithm of the determinant, the centres, the orthonormal discriminant directions, and the variance within
        clusters along each of them.
    """
    from scipy.sparse import csr_array  # takes half a second to import, which prediction has no use for

    for _ in range(iterations):
        count_K = np.bincount(cluster_N, minlength=components)
        by_cluster_N, ends_K = np.argsort(cluster_N, kind="stable"), np.cumsum(count_K)
        members_KN = csr_array((np.ones(len(x_NJ)), by_cluster_N, np.append(0, ends_K)), shape=(components, len(x_NJ)))
        sum_KJ = members_KN @ x_NJ
        centre_KJ = sum_KJ / np.maximum(count_K, 1)[:, None]
        weighted_KJ = centre_KJ * np.sqrt(count_K / len(x_NJ))[:, None]
        _, singular_J, rows_JJ = np.linalg.svd(weighted_KJ, full_matrices=False)
        directions_JJ = rows_JJ[: components - 1].T if components > 1 else rows_JJ[:1].T
        within_J = np.clip(1 - singular_J[: directions_JJ.shape[1]] ** 2, 0, None) + RIDGE
        p_NJ, c_KJ = x_NJ @ directions_JJ / np.sqrt(within_J), centre_KJ @ directions_JJ / np.sqrt(within_J)
        distance_NK = (c_KJ**2).sum(1) - 2 * p_NJ @ c_KJ.T
        distance_NK[:, count_K == 0] = np.inf
        moved_N = distance_NK.argmin(1)
        unmoved = float((moved_N == cluster_N).mean())
        cluster_N = moved_N
        if unmoved > 0.9995:
            break
    return float(np.log(within_J).sum()), centre_KJ, directions_JJ, within_J


def pool_by_component(
    features_PD: Tensor, patches_per_bag: Sequence[int], point_PJ: Tensor, centre_KJ: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Pools each bag once for every component: the mean of its patches, weighted by nearness to the component.

    Patch p of a bag has the weight a_pk = softmax over the bag's patches of -d_pk / (2 temperature), with d the squared
    distance of its point to centre k in the space of the components. A component that no patch is near takes the
    nearest ones, so that none is empty.

    Returns:
        The pooled features (B, K, D), and the weights (P, K), which sum to 1 over each bag.
    """
    sizes = list(patches_per_bag)
    weights = [score_QK.softmax(0) for score_QK in torch.split(nearness(point_PJ, centre_KJ, temperature), sizes)]
    pooled = [a_QK.T @ x_QD for a_QK, x_QD in zip(weights, torch.split(features_PD, sizes), strict=True)]
    return torch.stack(pooled), torch.cat(weights)


def nearness(point_PJ: Tensor, centre_KJ: Tensor, temperature: float) -> Tensor:
    """Returns the logarithm (P, K) of each patch's weight for each component, before it is normalised over the bag."""
    distance_PK = point_PJ.square().sum(1, keepdim=True) - 2 * point_PJ @ centre_KJ.T + centre_KJ.square().sum(1)
    return -distance_PK / (2 * temperature)
