"""Initialises a fold's memory by k-means over patch projections of its training bags (docs/method.md §4)."""

from __future__ import annotations

import numpy as np
import torch

from momkd_ray.batches.tiles import make_tile
from momkd_ray.errors import InputError
from momkd_ray.model.memory import spherical_kmeans
from momkd_ray.model.momkd import CLASSES, MoMKD
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import merge_dicts
from momkd_ray.train.fold_data import FoldData


def initialise_memory(model: MoMKD, data: FoldData, dtype: torch.dtype) -> None:
    """Initialises the memory, identically on every rank and for any number of ranks.

    Args:
        model: its memory is set.
        data: the fold's bags.
        dtype: type of the matrix products.

    Raises:
        InputError: a class has fewer training patches than the memory has components.
    """
    train, config, seed = data.by_role["train"], data.config.memory, data.config.train.seed
    samples: dict[int, np.ndarray] = {}
    model.eval()
    for index, batch in data.single("train"):
        rng = np.random.default_rng(derive_seed("memory", seed, train.ids[index]))
        n_patches = batch.patches_per_bag[0]
        sample_size = min(n_patches, -(-config.init_patches // train.y.count(train.y[index])))
        sampled = np.sort(rng.choice(n_patches, sample_size, replace=False))
        tile = make_tile(batch.graph, 0, sampled).to(data.device)
        samples[index] = model.project(batch.features_PD.to(data.device, dtype), tile).cpu().numpy()
    samples = merge_dicts(data.collective.gather(samples))
    centroids = []
    for y in range(CLASSES):
        own = [samples[index] for index in range(len(train.ids)) if train.y[index] == y]
        sample_NS = np.concatenate(own)
        if len(sample_NS) < config.components:
            raise InputError(
                f"memory.components is {config.components}, but fold {data.task.fold} has only "
                f"{len(sample_NS)} training patches of class {y}; lower memory.components"
            )
        rng = np.random.default_rng(derive_seed("centroids", seed, y))
        kept = np.sort(rng.permutation(len(sample_NS))[: config.init_patches])
        first = torch.from_numpy(rng.permutation(len(kept))[: config.components])
        # on the CPU, whose order of summation is fixed: every rank must get the same centroids to the last bit
        centroids_KS, _ = spherical_kmeans(torch.from_numpy(sample_NS[kept]), first, config.init_iterations)
        centroids.append(centroids_KS)
    model.memory.initialise(torch.stack(centroids).to(data.device))
