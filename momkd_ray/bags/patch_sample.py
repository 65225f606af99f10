"""Reads single patches of a bag, without the rest of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from momkd_ray.bags.bag_stream import RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.shared_bags import BagSource, JointBags
from momkd_ray.bags.store import BagStore

REQUESTS = 16
"""Ranges that are read at a time: on S3 each takes as long as its first byte."""


def read_patches(source: BagSource, bag_id: str, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
    """Reads the features of some patches of a bag (R, D) in float32.

    From a store only these rows are read. Their hash cannot be checked; that of the bag is when it is trained on.

    Args:
        source: of the bags.
        bag_id: of the bag.
        rows_R: numbers of its patches, ascending.
    """
    base = source.slides if isinstance(source, JointBags) else source
    base = base.source if isinstance(base, RayDataBags) else base
    store = base.store if isinstance(base, CachedBags) else base
    if not isinstance(store, BagStore):
        return source.read(bag_id).features[rows_R].astype(np.float32)
    members = source.members[bag_id] if isinstance(source, JointBags) else (bag_id,)
    starts = np.cumsum([0, *(int(store.entry(slide_id)["n_patches"]) for slide_id in members)])
    parts = []
    for slide_id, begin, end in zip(members, starts[:-1], starts[1:], strict=True):
        own_R = rows_R[(rows_R >= begin) & (rows_R < end)] - begin
        cached = base.cached(slide_id) if isinstance(base, CachedBags) and len(own_R) else None
        parts.append(_from_store(store, slide_id, own_R) if cached is None else cached.features[own_R])
    return np.concatenate(parts).astype(np.float32)


def _from_store(store: BagStore, slide_id: str, rows_R: NDArray[np.int64]) -> NDArray[np.generic]:
    """Reads rows of a slide's features, those that are neighbours together."""
    runs = np.split(rows_R, np.flatnonzero(np.diff(rows_R) != 1) + 1) if len(rows_R) else []
    if len(runs) <= 1:
        read = [store.read_features(slide_id, int(run[0]), len(run)) for run in runs]
    else:
        with ThreadPoolExecutor(min(REQUESTS, len(runs))) as pool:
            read = list(pool.map(lambda run: store.read_features(slide_id, int(run[0]), len(run)), runs))
    return np.concatenate([store.read_features(slide_id, 0, 0), *read])
