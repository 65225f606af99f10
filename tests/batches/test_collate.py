"""Collation: what a batch copies, and what it shares with its bags."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from momkd_ray.batches import tiles
from momkd_ray.batches.collate import collate
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import no_graph

PATCHES, WIDTH = 6, 4


def bag_of(features: np.ndarray) -> Bag:
    return Bag("a", features, None, *no_graph(len(features)), {})


def read_only(features: np.ndarray) -> np.ndarray:
    features.flags.writeable = False
    return features


def test_the_features_of_one_bag_in_memory_are_not_copied() -> None:
    features = np.random.default_rng(0).standard_normal((PATCHES, WIDTH), dtype=np.float32)
    batch = collate([bag_of(features)])
    assert batch.features_PD.data_ptr() == features.ctypes.data
    two = collate([bag_of(features), bag_of(features)])
    torch.testing.assert_close(two.features_PD, batch.features_PD.repeat(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("change", [read_only, lambda x: x.astype(np.float16)])
def test_features_of_the_store_and_of_other_precisions_are_copied(change: object) -> None:
    assert callable(change)
    features = change(np.arange(PATCHES * WIDTH, dtype=np.float32).reshape(PATCHES, WIDTH))
    batch = collate([bag_of(features)])
    assert batch.features_PD.dtype == torch.float32
    assert batch.features_PD.data_ptr() != features.ctypes.data
    np.testing.assert_array_equal(batch.features_PD.numpy(), features)


def test_tiles_are_cut_only_for_models_that_read_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiles.MAX_UNTILED_PATCHES, "cpu", PATCHES - 1)
    bag = bag_of(np.zeros((PATCHES, WIDTH), np.float32))
    assert collate([bag]).tiles
    assert not collate([bag], graph=False).tiles
