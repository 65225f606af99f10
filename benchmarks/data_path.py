"""Times bags on their way from S3, disk and object store to two workers on two nodes, and counts what S3 is asked for.

python benchmarks/data_path.py [--slides 96] [--patches 4000] [--epochs 5]

The nodes are raylets of this machine, each with its own object store and cache folder; S3 is a server of this machine
behind a proxy that adds 15 ms to the first byte and passes 50 MB/s a connection.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import torch
from generated_cohort import config_of, write_cohort
from input import rates
from slow_s3 import Pace, slow_s3
from table import machine, print_table
from two_nodes import on_two_nodes, store_bytes

from momkd_ray import storage
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.shared_bags import BagSource
from momkd_ray.bags.store import BagStore
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config
from momkd_ray.crossval.fold import fold_task
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import connect
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.prepare import open_cohort, open_run_inputs

MB = 2**20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=96)
    arguments.add_argument("--patches", type=int, default=4000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument(
        "--only", choices=["rates", "nodes", "training", "reading", "bytes", "simulation"], default=""
    )
    options = arguments.parse_args()
    if options.only == "simulation":
        at_five_terabytes(options.patches * (2 * options.width + 36), min(NETWORK_BYTES_S, CONNECTIONS * 50e6))
        return
    with tempfile.TemporaryDirectory() as name, slow_s3(name) as pace:
        print(machine())
        folder = Path(name)
        with connect():
            inputs = inputs_of(folder / "large", options.slides, options.patches, options.width, options.epochs)
            small = inputs_of(folder / "small", 40, 500, options.width, 10)
            if options.only in ("", "rates"):
                rates(inputs.store)
        if options.only in ("", "bytes"):
            bytes_fetched(on_s3(small), folder, pace)
        if options.only in ("", "nodes", "training", "reading"):
            on_two_nodes(on_s3(inputs), folder, pace, options.only)


def inputs_of(folder: Path, slides: int, patches: int, width: int, epochs: int) -> RunInputs:
    """Ingests a generated cohort into a local store, a bag or a few to a part."""
    write_cohort(folder, slides, patches, width)
    sections: dict[str, Any] = {
        "cluster": {"workers": 2, "read_ahead_mb": 96},
        "train": {"epochs": epochs, "bags_per_step": 2, "refit": False},
    }
    tree = config_of(folder, **sections)
    tree["store"] = {"uri": str(folder / "bags"), "part_mb": 1}
    config = Config.model_validate(tree)
    cohort = open_cohort(config, ProgressReporter())
    return open_run_inputs(config, cohort, make_folds(config, cohort), ProgressReporter())


def on_s3(inputs: RunInputs) -> RunInputs:
    """Copies the store to the slow S3."""
    bucket = f"bags-{len(inputs.store.entries)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    for name in storage.list_names(inputs.store.uri):
        storage.write_bytes(f"s3://{bucket}/{name}", storage.read_bytes(storage.join(inputs.store.uri, name)))
    return replace(inputs, store=BagStore.open(f"s3://{bucket}"))


def bytes_fetched(inputs: RunInputs, folder: Path, pace: Pace) -> None:
    """Reads what five folds of ten epochs read, without the training, and counts the bytes that S3 sends."""
    from momkd_ray.train.collectives import SingleProcess
    from momkd_ray.train.fold_data import FoldData

    rows = []
    for name, cached in (("(c) in every epoch", False), ("(b) with the node's cache", True)):
        source: BagSource = inputs.store
        if cached:
            source = CachedBags(inputs.store, DiskCache(str(folder / "cache-bytes"), None))
        before, began = pace.fetched(), time.monotonic()
        folds = inputs.plan.folds if cached else list(inputs.plan.folds)[:1]
        for fold in folds:
            task, _ = fold_task(replace(inputs, slides=source), fold, 0, {})
            config = task.config.model_copy(update={"cluster": task.config.cluster.model_copy(update={"workers": 1})})
            data = FoldData(replace(task, config=config), SingleProcess(), torch.device("cpu"))
            for _ in data.single("train"):
                pass  # the initialisation
            for epoch in range(config.train.epochs):
                for _ in data.shares(data.plan(epoch), 0, epoch):
                    pass
                for _ in data.single("val", epoch=epoch):
                    pass
            for role in ("val", "test"):
                for _ in data.single(role):
                    pass
        times = (pace.fetched() - before) / store_bytes(inputs.store) * len(inputs.plan.folds) / len(folds)
        note = "" if cached else f", of {len(folds)} fold, times {len(inputs.plan.folds)}"
        rows.append([name + note, f"{times:.2f}", f"{time.monotonic() - began:.1f}"])
    print_table(
        f"Bytes from S3 in 5 folds of {inputs.config.train.epochs} epochs, one node, as a multiple of the store",
        ["layer", "times the store", "seconds"],
        rows,
    )


NETWORK_BYTES_S = 25e9 / 8
"""Stated: 25 Gbit/s a machine."""
DISK_BYTES_S = 2e9
"""Stated: an NVMe disk."""
CONNECTIONS = 32
NODE_MEMORY_BYTES = 2e12
"""Stated: a machine's object store; bags may take 30 % of it."""
GPU_BAGS_S = 385.0
"""Bags of 4,000 patches a second on one GPU a machine: 2.6 ms a step on an H200 (docs/benchmarks.md)."""


def epoch_seconds(store: float, nodes: int, layer: str, bag: float, bags_s: float, s3_bytes_s: float) -> float:
    """Returns the seconds of an epoch: reading and computing overlap, so the slower one counts."""
    own = store / nodes
    read = {"a": 0.0, "b": own / DISK_BYTES_S, "c": own / s3_bytes_s}[layer]
    return max(read, own / bag / bags_s)


def at_five_terabytes(bag: float, s3: float) -> None:
    """Computes epochs and cross-validations of a store of 5 TB from the stated rates."""
    table = []
    train_bytes, epochs = 5e12 * 0.68, 50
    for nodes in (1, 8, 64):
        for layer in "abc":
            if layer == "a" and train_bytes > 0.3 * NODE_MEMORY_BYTES:
                table.append([nodes, "(a)", "does not fit", "", ""])
                continue
            one = epoch_seconds(train_bytes, nodes, layer, bag, GPU_BAGS_S, s3)
            waiting = 1 - train_bytes / nodes / bag / GPU_BAGS_S / one
            first = epoch_seconds(train_bytes, nodes, "c", bag, GPU_BAGS_S, s3)
            init = 5e12 * 0.68 / nodes / s3
            # every node meets nearly all bags in a few epochs, so each fills its disk with the whole store once
            fill = 5e12 / s3 if layer == "b" else 0.0
            per_fold = init + first + (epochs - 1) * one
            total = 5 * per_fold + max(0.0, fill - 5 * first)
            read = {"b": 1.0 * nodes, "c": 5 * (epochs + 1) * 0.68}[layer]
            table.append([nodes, f"({layer})", f"{one / 60:.1f} ({waiting:.0%})", f"{total / 3600:.0f}", f"{read:.0f}"])
    print_table(
        f"5 TB, 5 folds of {epochs} epochs, one GPU a machine ({GPU_BAGS_S:.0f} bags/s), {s3 / 1e9:.1f} GB/s from S3, "
        f"{DISK_BYTES_S / 1e9:.0f} GB/s from disk: computed",
        ["machines", "layer", "an epoch, min (of it waiting)", "cross-validation, h", "bytes from S3, times the store"],
        table,
    )


if __name__ == "__main__":
    main()
