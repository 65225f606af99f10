"""Shared and joint bags are those of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.bags import (
    EXACT,
    assert_same_bag,
    features_in,
    make_bag,
    relisted,
    stored,
    write_h5,
)

from momkd_ray.bags.shared_bags import JointBags, SharedBags, join_bags, share_bags
from momkd_ray.batches.collate import collate
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag
from momkd_ray.ray_runtime.cluster import Connection


def test_shared_bags_are_never_an_older_version_of_a_slide(
    tmp_path: Path, slides: pd.DataFrame, ray_cluster: Connection
) -> None:
    uri = str(tmp_path / "store")
    stored(slides, uri, EXACT)
    write_h5(Path(slides["path"].iloc[4]), n=13, seed=200)
    store = stored(relisted(slides), uri, EXACT)
    shared = share_bags(store, ["s04", "s05"])
    assert isinstance(shared, SharedBags)
    np.testing.assert_array_equal(shared.read("s04").features, features_in(slides["path"].iloc[4]))
    with pytest.raises(InputError, match="s06"):
        shared.read("s06")


def test_a_joint_bag_is_its_slides_side_by_side() -> None:
    bags = [make_bag(n, seed=n) for n in (1, 12, 5)]

    class Made:
        def read(self, bag_id: str) -> Bag:
            return next(bag for bag in bags if bag.slide_id == bag_id)

    joint = JointBags(Made(), {"P": ("slide-12", "slide-5", "slide-1")}).read("P")
    apart = collate([bags[1], bags[2], bags[0]])
    together = collate([joint])
    assert torch.equal(together.features_PD, apart.features_PD)
    assert together.patches_per_bag == (18,)
    assert torch.equal(together.graph.edge_index_2M, apart.graph.edge_index_2M)
    assert_same_bag(join_bags("slide-5", [bags[2]]), bags[2])
