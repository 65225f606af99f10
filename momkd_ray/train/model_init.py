"""Initialises what is computed from a fold's training bags before the first step, such as the memory."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from momkd_ray.batches.tiles import make_tile
from momkd_ray.errors import InputError
from momkd_ray.model.component_momkd import ComponentMoMKD
from momkd_ray.model.interface import MILModel, TrainingSummary
from momkd_ray.model.memory import spherical_kmeans
from momkd_ray.model.momkd import MoMKD
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import merge_dicts
from momkd_ray.train.component_init import initialise_components
from momkd_ray.train.fold_data import FoldData
from momkd_ray.train.sampled_bags import sampled_bags


def initialise_model(model: MILModel, data: FoldData, dtype: torch.dtype) -> None:
    """Initialises the memory of a model that has one, and lets the model prepare itself from the training bags.

    Args:
        model: on the worker's device.
        data: the fold's bags.
        dtype: type of the matrix products.

    Raises:
        InputError: a class has fewer training patches than the memory has components.
    """
    if isinstance(model, MoMKD):
        initialise_memory(model, data, dtype)
    if isinstance(model, ComponentMoMKD):
        initialise_components(model, data)
    model.prepare(_summarise(data, with_means=model.needs_bag_means))


def _summarise(data: FoldData, *, with_means: bool) -> TrainingSummary:
    """Collects the training patients' omics and, if wanted, the mean patch feature of every training bag."""
    bags, omics = data.by_role["train"], data.task.omics
    y_of = dict(zip(bags.patients, bags.y, strict=True))
    patients = sorted(set(y_of) & set(omics))
    means_ND = np.zeros((0, data.task.width), np.float32)
    if with_means:
        own = {index: batch.features_PD.float().mean(0).cpu().numpy() for index, batch in data.single("train")}
        means = merge_dicts(data.collective.gather(own))
        means_ND = np.stack([means[index] for index in range(len(bags.ids))])
    omics_NG = np.stack([omics[patient] for patient in patients]) if patients else np.zeros((0, 0), np.float32)
    labels_N = np.array([y_of[patient] for patient in patients], np.int64)
    seed = derive_seed("prepare", data.config.train.seed, data.task.fold) % 2**63
    return TrainingSummary(means_ND, omics_NG, labels_N, seed)


def initialise_memory(model: MoMKD, data: FoldData, dtype: torch.dtype) -> None:
    """Initialises the memory by k-means over patch projections of the training bags (docs/method.md §4).

    Of each class at most 1,000 bags are read. The result is identical on every rank and for any number of ranks.

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
    of_class = [[index for index, label in enumerate(train.y) if label == y] for y in range(model.classes)]
    chosen = [sampled_bags(train.ids, indices, seed) for indices in of_class]
    for index, batch in data.single("train", indices=sorted(chain.from_iterable(chosen))):
        rng = np.random.default_rng(derive_seed("memory", seed, train.ids[index]))
        n_patches = batch.patches_per_bag[0]
        sample_size = min(n_patches, -(-config.init_patches // len(chosen[train.y[index]])))
        sampled = np.sort(rng.choice(n_patches, sample_size, replace=False))
        tile = make_tile(batch.graph, 0, sampled).to(data.device)
        samples[index] = model.project(batch.features_PD.to(data.device, dtype), tile).cpu().numpy()
    samples = merge_dicts(data.collective.gather(samples))
    centroids = []
    for y in range(model.classes):
        sample_NS = np.concatenate([samples[index] for index in chosen[y]])
        if len(sample_NS) < config.components:
            raise InputError(
                f"memory.components is {config.components}, but fold {data.task.fold} has only "
                f"{len(sample_NS)} training patches of class {y}; set memory.components to {len(sample_NS)} or fewer"
            )
        rng = np.random.default_rng(derive_seed("centroids", seed, y))
        kept = np.sort(rng.permutation(len(sample_NS))[: config.init_patches])
        first = torch.from_numpy(rng.permutation(len(kept))[: config.components])
        # on the CPU, whose order of summation is fixed: every rank must get the same centroids to the last bit
        centroids_KS, _ = spherical_kmeans(torch.from_numpy(sample_NS[kept]), first, config.init_iterations)
        centroids.append(centroids_KS)
    model.memory.initialise(torch.stack(centroids).to(data.device))
