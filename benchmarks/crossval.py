"""Times a five-fold cross-validation against the same folds one after another, one bag at a time, in one process.

    python benchmarks/crossval.py [--slides 40] [--patches 4000] [--epochs 3] [--precision auto fp32]

The peer works as the released code does: it opens a slide's `.h5` for every step, computes in float32 on all cores with
PyTorch Geometric's GATv2Conv and torch's dropout, and trains fold after fold. Its graphs are ready in memory, and
k-means for its memory reads no more slides than it needs. Folds, validation sets, the order of slides and the
hyper-parameters are the same for both. The lower bound is the time of the slide encoder's matrix products alone in
these steps and predictions, divided evenly over all cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from generated_cohort import config_of, write_cohort
from published import published
from sklearn.metrics import roc_auc_score
from step import PlainEncoder, products
from table import interleaved, machine, print_table
from torch import Tensor, nn

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.sampling import plan_epoch
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import cross_validate_inputs
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.memory import spherical_kmeans
from momkd_ray.model.momkd import MoMKD
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import connect
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.prepare import open_cohort, open_run_inputs
from momkd_ray.seeds import derive_seed
from momkd_ray.train.step import dtype_of_products

WIDTH = 1536


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=40)
    arguments.add_argument("--patches", type=int, default=4000)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--precision", nargs="+", default=["auto", "fp32"])
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cohort"
        write_cohort(folder, options.slides, options.patches, WIDTH, signal=0.1)
        runs = [run_of_ours(folder, options.epochs, precision) for precision in options.precision]
        seconds, aucs = one_after_another(runs[0].inputs, folder)
    rows: list[list[Any]] = [["one process, one bag at a time, folds in turn", f"{seconds:.0f}", "1.0x", spread(aucs)]]
    for run, precision in zip(runs, options.precision, strict=True):
        rows += [
            [f"ours, {precision}: folds trained", f"{run.trained:.0f}", f"{seconds / run.trained:.1f}x", ""],
            [
                f"the same, with Ray's start ({run.started:.0f} s) and ingest ({run.ingested:.0f} s)",
                f"{run.total:.0f}",
                f"{seconds / run.total:.1f}x",
                spread(run.aucs),
            ],
            [
                "matrix products alone",
                f"{(floor := products_alone(run.inputs)):.0f}",
                f"at most {seconds / floor:.1f}x",
                "",
            ],
        ]
    print(machine())
    print_table(
        f"Five folds of {options.slides} slides of about {options.patches:,} x {WIDTH}, {options.epochs} epochs, "
        "the published model, one bag a step",
        ["", "s", "speed-up", "test AUC, mean +- sd"],
        rows,
    )


@dataclass(frozen=True)
class Run:
    """Seconds that the package's cross-validation took, and its AUCs."""

    inputs: RunInputs
    started: float
    ingested: float
    trained: float
    aucs: list[float]

    @property
    def total(self) -> float:
        return self.started + self.ingested + self.trained


def run_of_ours(folder: Path, epochs: int, precision: str) -> Run:
    recipe = published(train={"epochs": epochs, "patience": epochs, "lr": 1e-4, "precision": precision})
    place = str(folder / precision)
    config = Config.model_validate(config_of(folder, **recipe, run={"dir": place}, store={"uri": f"{place}/bags"}))
    began = time.perf_counter()
    with connect() as ray:
        up = time.perf_counter()
        cohort = open_cohort(config, ProgressReporter())
        inputs = open_run_inputs(config, cohort, make_folds(config, cohort), ProgressReporter())
        ingested = time.perf_counter()
        aucs = cross_validate_inputs(inputs, ProgressReporter(), own_cluster=ray.own)["metrics"]["auc"]["folds"]
        trained = time.perf_counter()
    return Run(inputs, up - began, ingested - up, trained - ingested, aucs)


def spread(aucs: list[float]) -> str:
    return f"{np.mean(aucs):.3f} +- {np.std(aucs, ddof=1):.3f}"


def products_alone(inputs: RunInputs) -> float:
    """Seconds on all cores of the matrix products of training, validating each epoch and testing."""
    torch.set_num_threads(1)
    train = predicted = 0
    for fold in inputs.plan.folds:
        bags = inputs.fold_bags(fold).groupby("role")["patches"].sum()
        train += bags["train"] * inputs.config.train.epochs
        predicted += bags["val"] * inputs.config.train.epochs + bags["val"] + bags["test"]
    probe = 4000
    dtype = dtype_of_products(inputs.config.train.precision, torch.device("cpu"))
    ways = {
        True: products(probe, training=True, dtype=dtype),
        False: products(probe, training=False),
    }
    each = {way: interleaved({"products": run}, 3, time.process_time)["products"] for way, run in ways.items()}
    return float(train * each[True] + predicted * each[False]) / probe / (os.cpu_count() or 1)


class Slides:
    """Feature files, opened at every use, with graphs that are built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graphs: dict[str, Any] = {}

    def batch(self, slide_id: str, y: int, seed: int = 0) -> BagBatch:
        with h5py.File(self.folder / "features" / f"{slide_id}.h5") as file:
            features_PD, coords_P2 = file["features"][:], file["coords"][:].astype(np.int32)
        if slide_id not in self.graphs:
            self.graphs[slide_id] = knn_graph(coords_P2, 8)
        return collate([Bag(slide_id, features_PD, coords_P2, *self.graphs[slide_id], {})], [y], None, [seed])


def one_after_another(inputs: RunInputs, folder: Path) -> tuple[float, list[float]]:
    """Runs the peer; returns its seconds, graphs excluded, and each fold's test AUC at the best validation AUC."""
    torch.set_num_threads(os.cpu_count() or 1)
    slides = Slides(folder)
    for slide_id in inputs.cohort.slides["slide_id"]:
        slides.batch(slide_id, 0)
    began = time.perf_counter()
    aucs = [fold_of_peer(inputs, fold, slides) for fold in inputs.plan.folds]
    return time.perf_counter() - began, aucs


def fold_of_peer(inputs: RunInputs, fold: int, slides: Slides) -> float:
    config, bags = inputs.config, inputs.fold_bags(fold)
    roles = {role: bags[bags["role"] == role] for role in ("train", "val", "test")}
    torch.manual_seed(derive_seed("weights", config.train.seed, fold) % 2**63)
    model = MoMKD(config.model, config.memory, config.loss, width=WIDTH, genes=0)
    encoder = PlainEncoder(config.model)
    model.slide_encoder = encoder
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay)

    def load(slide_id: str, y: int, seed: int = 0) -> BagBatch:
        batch = slides.batch(slide_id, y, seed)
        edge_index = batch.graph.edge_index_2M
        encoder.edge_index_of = {slide_id: edge_index[:, edge_index[0] != edge_index[1]]}
        return batch

    def auc(role: str) -> float:
        model.eval()
        own = roles[role]
        p = [float(model.predict(load(s, y))[0][0, 1]) for s, y in zip(own["bag_id"], own["y"], strict=True)]
        return float(roc_auc_score(own["y"], p))

    ids, labels = roles["train"]["bag_id"].tolist(), roles["train"]["y"].tolist()
    centroids = [
        centroids_of(model, (load(s, y) for s, label in zip(ids, labels, strict=True) if label == y)) for y in (0, 1)
    ]
    model.memory.initialise(torch.stack(centroids))
    best, kept = -1.0, model.state_dict()
    for epoch in range(config.train.epochs):
        plan = plan_epoch(
            ids,
            np.array(labels),
            seed=derive_seed(config.train.seed, fold),
            epoch=epoch,
            bags_per_step=1,
            balanced=config.train.balanced,
        )
        model.train()
        for (draw,) in plan:
            batch = load(ids[draw.bag], labels[draw.bag], draw.seed)
            optimiser.zero_grad()
            output = model(batch)
            model.losses(output, batch)["total"].sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimiser.step()
            model.memory.update(*model.evidence(output, batch), 1)
        if (found := auc("val")) > best:
            best, kept = found, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return auc("test")


def centroids_of(model: MoMKD, batches: Iterator[BagBatch]) -> Tensor:
    """Initial memory of a class: k-means over the first patches of its slides."""
    config, samples, count = model.memory_config, [], 0
    model.eval()
    for batch in batches:
        with torch.no_grad():
            samples.append(model(batch).patches_PS[: config.init_patches - count])
        count += len(samples[-1])
        if count == config.init_patches:
            break
    sample_NS = torch.cat(samples)
    first = torch.randperm(len(sample_NS))[: config.components]
    return spherical_kmeans(sample_NS, first, config.init_iterations)[0]


if __name__ == "__main__":
    main()
