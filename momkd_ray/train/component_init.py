"""Fits what the component network takes from its training bags before the first step (docs/method.md §9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from momkd_ray.errors import InputError
from momkd_ray.model.component_momkd import ComponentMoMKD
from momkd_ray.model.ridge import AnyRidgeFit, Doubles, fit_classes_ridge, fit_ridge
from momkd_ray.model.tissue_components import TissueComponents, fit_components
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import from_rank_0, merge_dicts
from momkd_ray.train.fold_data import FoldData
from momkd_ray.train.sampled_bags import sampled_bags

SMALLEST_SCALE = 0.05
"""The share of the overall standard deviation that is added to each column's: a constant one is not inflated."""


@torch.no_grad()
def initialise_components(model: ComponentMoMKD, data: FoldData) -> None:
    """Fits the tissue components, the scale of the pooled features, the ridge regression and the memory.

    Rank 0 computes on the CPU what all ranks then take, so that they agree to the last bit. The sample of patches
    depends on seed and slide alone.

    Args:
        model: is set.
        data: the fold's bags. Of a sample of them single patches are read, and then all of them once: the ridge
            regression is fitted to the pooled vectors of all.

    Raises:
        InputError: there are fewer training patches than components.
    """
    model.eval()
    collective = data.collective
    sample_ND = _sample_patches(data, model.memory_config.init_patches)
    if len(sample_ND) < model.memory_config.components:
        raise InputError(
            f"memory.components is {model.memory_config.components}, but fold {data.task.fold} has only "
            f"{len(sample_ND)} training patches; lower memory.components"
        )
    fitted: TissueComponents | None = None
    if collective.rank == 0:
        seed = derive_seed("components", data.config.train.seed, data.task.fold) % 2**31
        fitted = fit_components(sample_ND.astype(np.float64), model.memory_config.components, seed)
    model.set_components(from_rank_0(collective, fitted))
    pooled = {index: model.pool(batch.to(data.device))[0][0].cpu().numpy() for index, batch in data.single("train")}
    pooled = merge_dicts(collective.gather(pooled))
    pooled_NKD = np.stack([pooled[index] for index in range(len(data.by_role["train"].ids))])
    mean_KD, scale_KD = scale_of_pooled(pooled_NKD)
    model.set_scale(torch.from_numpy(mean_KD), torch.from_numpy(scale_KD))
    scaled_NKD = (pooled_NKD - mean_KD) / scale_KD
    ridge: Any = None
    if collective.rank == 0:
        target_N = np.array([data.target(index) for index in range(len(scaled_NKD))])
        x_NF = scaled_NKD.reshape(len(scaled_NKD), -1).astype(np.float64)
        ridge = _fit_ridge(x_NF, target_N, data.by_role["train"].patients)
    model.set_classifier(from_rank_0(collective, ridge))
    start_KS = _mean_projection(model, torch.from_numpy(scaled_NKD)) if collective.rank == 0 else None
    start_KS = from_rank_0(collective, start_KS).to(model.mean_KD.device)
    model.memory.initialise(start_KS.expand(len(model.memory.raw_YKS), -1, -1))


def _fit_ridge(x_NF: Doubles, target: Doubles, patients: Sequence[str]) -> AnyRidgeFit:
    """Fits the targets of two classes (N,) or of more (N, Y)."""
    if target.ndim == 1:
        return fit_ridge(x_NF, target, patients)
    return fit_classes_ridge(x_NF, target, patients)


def _sample_patches(data: FoldData, patches: int) -> np.ndarray:
    """Samples about `patches` patches in all (N, D) of at most 1,000 bags; the same on every rank."""
    train, seed = data.by_role["train"], data.config.train.seed
    chosen = sampled_bags(train.ids, range(len(train.ids)), seed)
    each = -(-patches // len(chosen))

    def rows_of(index: int) -> np.ndarray:
        rng = np.random.default_rng(derive_seed("component patches", seed, train.ids[index]))
        n_patches = train.patches[index]
        return np.sort(rng.choice(n_patches, min(n_patches, each), replace=False))

    samples = merge_dicts(data.collective.gather(dict(data.sampled_patches(chosen, rows_of))))
    return np.concatenate([samples[index] for index in chosen])


def scale_of_pooled(pooled_NKD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and scale of the pooled features over the bags (K, D)."""
    overall_D = pooled_NKD.std(axis=(0, 1))
    scale_KD = pooled_NKD.std(axis=0) + SMALLEST_SCALE * overall_D + 1e-6
    return pooled_NKD.mean(axis=0), scale_KD


def _mean_projection(model: ComponentMoMKD, scaled_NKD: Tensor) -> Tensor:
    """Returns the mean direction of each component's projection over the training bags (K, S), on the CPU."""
    device = model.mean_KD.device
    sums = [model.encode_components(part.to(device)).sum(0) for part in torch.split(scaled_NKD, 64)]
    return F.normalize(torch.stack(sums).sum(0), dim=-1).cpu()
