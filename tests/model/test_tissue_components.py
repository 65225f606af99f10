"""Tissue components: clusters are found where the features' variance hides them, and every bag is pooled by all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from momkd_ray.model.tissue_components import fit_components, pool_by_component


def hidden_clusters(
    seed: int, clusters: int = 4, patches: int = 3000, width: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of some kinds of tissue, which 4 of the features tell apart; the others vary ten times as much."""
    rng = np.random.default_rng(seed)
    kind_N = rng.integers(0, clusters, patches)
    x_ND = rng.standard_normal((patches, width))
    x_ND[:, :clusters] = 6 * np.eye(clusters)[kind_N] + 0.7 * rng.standard_normal((patches, clusters))
    x_ND[:, clusters:] *= 10
    return x_ND, kind_N


def nearest(x_ND: np.ndarray, components: int, seed: int) -> np.ndarray:
    fitted = fit_components(x_ND, components, seed)
    point_NJ = x_ND @ fitted.direction_DJ - fitted.offset_J
    return ((point_NJ[:, None] - fitted.centre_KJ) ** 2).sum(-1).argmin(1)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_found_in_any_linear_mixture_of_the_features(seed: int) -> None:
    x_ND, kind_N = hidden_clusters(seed)
    mixture_DD = np.random.default_rng(seed + 10).standard_normal((x_ND.shape[1], x_ND.shape[1]))
    assert adjusted_rand_score(kind_N, nearest(x_ND, 4, seed)) > 0.95
    assert adjusted_rand_score(kind_N, nearest(x_ND @ mixture_DD + 3, 4, seed)) > 0.95


def test_the_variance_within_clusters_is_one_in_their_space() -> None:
    x_ND, _ = hidden_clusters(0)
    fitted = fit_components(x_ND, 4, 0)
    point_NJ = x_ND @ fitted.direction_DJ - fitted.offset_J
    own_N = ((point_NJ[:, None] - fitted.centre_KJ) ** 2).sum(-1).argmin(1)
    within_J = (point_NJ - fitted.centre_KJ[own_N]).var(axis=0)
    assert np.all((within_J > 0.7) & (within_J < 1.3)), within_J


@pytest.mark.parametrize("patches", [16, 17, 40])
def test_few_patches_and_many_components_are_fitted(patches: int) -> None:
    x_ND = np.random.default_rng(patches).standard_normal((patches, 64))
    fitted = fit_components(x_ND, 16, 0)
    assert np.isfinite(fitted.direction_DJ).all() and len(fitted.centre_KJ) == 16


def test_equal_patches_are_fitted_without_a_fault() -> None:
    fitted = fit_components(np.ones((40, 5)), 4, 0)
    assert np.isfinite(fitted.direction_DJ).all()


def test_a_bag_is_pooled_as_if_it_were_alone() -> None:
    x_ND, _ = hidden_clusters(1)
    fitted = fit_components(x_ND, 4, 0)
    space = [torch.from_numpy(a).float() for a in (fitted.direction_DJ, fitted.offset_J, fitted.centre_KJ)]
    direction_DJ, offset_J, centre_KJ = space
    features_PD = torch.from_numpy(x_ND[:60]).float()
    point_PJ = features_PD @ direction_DJ - offset_J
    pooled_BKD, weight_PK = pool_by_component(features_PD, [1, 39, 20], point_PJ, centre_KJ, 4.0)
    alone_1KD, _ = pool_by_component(features_PD[1:40], [39], point_PJ[1:40], centre_KJ, 4.0)
    torch.testing.assert_close(pooled_BKD[1], alone_1KD[0])
    torch.testing.assert_close(pooled_BKD[0], features_PD[:1].expand(4, -1))
    for part in weight_PK.split([1, 39, 20]):
        torch.testing.assert_close(part.sum(0), torch.ones(4))
