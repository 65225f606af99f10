"""Where a fold's memory starts: k-means over patch projections of its training bags (method 4)."""

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


def initialise_memory(model: MoMKD, bags: FoldData, dtype: torch.dtype) -> None:
    """Initialise the memory, the same on every rank and for any number of them.

    Args:
        model: whose memory it is.
        bags: the fold's.
        dtype: what to multiply in.

    Raises:
        InputError: a class has fewer training patches than the memory has components.
    """
    train, config, seed = bags.by_role["train"], bags.config.memory, bags.config.train.seed
    samples: dict[int, np.ndarray] = {}
    model.eval()
    for place, batch in bags.each("train"):
        rng = np.random.default_rng(derive_seed("memory", seed, train.ids[place]))
        n_patches = batch.patches_per_bag[0]
        wanted = min(n_patches, -(-config.init_patches // train.y.count(train.y[place])))
        chosen = make_tile(batch.graph, 0, np.sort(rng.choice(n_patches, wanted, replace=False))).to(bags.device)
        samples[place] = model.project(batch.features_PD.to(bags.device, dtype), chosen).cpu().numpy()
    samples = merge_dicts(bags.collective.gather(samples))
    centroids = []
    for y in range(CLASSES):
        own = [samples[place] for place in range(len(train.ids)) if train.y[place] == y]
        sample_NS = np.concatenate(own)
        if len(sample_NS) < config.components:
            raise InputError(
                f"memory.components is {config.components}, but fold {bags.task.fold} has only "
                f"{len(sample_NS)} training patches of class {y}; lower memory.components"
            )
        rng = np.random.default_rng(derive_seed("centroids", seed, y))
        kept = np.sort(rng.permutation(len(sample_NS))[: config.init_patches])
        first = torch.from_numpy(rng.permutation(len(kept))[: config.components])
        # on the CPU, where sums come in one order: every rank must find the same centroids to the last bit
        centroids_KS, _ = spherical_kmeans(torch.from_numpy(sample_NS[kept]), first, config.init_iterations)
        centroids.append(centroids_KS)
    model.memory.initialise(torch.stack(centroids).to(bags.device))
