"""Small peers and batches for their tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.model_names import MODELS
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.interface import MILModel, TrainingSummary
from momkd_ray.model.registry import build_model

PEERS = [name for name in MODELS if name != "momkd"]
WITHOUT_OMICS = [name for name in PEERS if name not in ("omics_only", "late_fusion", "soft_labels", "batch_alignment")]
WIDTH, GENES = 12, 6


def peer(
    name: str,
    *,
    hidden: int = 16,
    dropout: float = 0.0,
    width: int = WIDTH,
    seed: int = 0,
    classes: int = 2,
    pooling: str = "attention",
) -> MILModel:
    torch.manual_seed(seed)
    sizes = {"omics_hidden": 10, "omics_embedding": 10, "omics_dropout": dropout, "shared": 8}
    config = ModelConfig(name=name, hidden=hidden, dropout=dropout, pooling=pooling, **sizes)  # type: ignore[arg-type]
    return build_model(config, MemoryConfig(components=4), LossConfig(), width=width, genes=GENES, classes=classes)


def bag(patches: int, label: int, seed: int, width: int = WIDTH) -> Bag:
    """A bag of which a quarter of the patches, at least one, shows the label."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((patches, width), dtype=np.float32)
    features[: max(1, patches // 4), 0] += 4 * label
    coords = np.stack(np.divmod(np.arange(patches), max(1, int(patches**0.5))), 1).astype(np.int32)
    return Bag(f"s{seed}", features, coords, *knn_graph(coords, 4), {})


def batch_of(
    sizes: Sequence[int], *, first_seed: int = 0, width: int = WIDTH, omics: bool = True, classes: int = 2
) -> BagBatch:
    """Bags of these sizes and alternating labels; every third has no omics."""
    labels = [i % classes for i in range(len(sizes))]
    seeds = range(first_seed, first_seed + len(sizes))
    rows = [
        np.random.default_rng(seed).standard_normal(GENES).astype(np.float32) + label if omics and i % 3 else None
        for i, (seed, label) in enumerate(zip(seeds, labels, strict=True))
    ]
    bags = [bag(n, y, seed, width) for n, y, seed in zip(sizes, labels, seeds, strict=True)]
    return collate(bags, labels=labels, omics=rows, seeds=list(seeds))


def summary_of(batch: BagBatch) -> TrainingSummary:
    """The summary of a batch that is all there is to train on."""
    assert batch.labels_B is not None
    means = [x.mean(0).numpy() for x in torch.split(batch.features_PD, list(batch.patches_per_bag))]
    omics = np.zeros((0, GENES), np.float32) if batch.omics_RG is None else batch.omics_RG.numpy()
    rows = [] if batch.omics_bag_R is None else batch.omics_bag_R
    return TrainingSummary(np.stack(means), omics, batch.labels_B[rows].numpy(), 0)
