"""Times bags on their way from S3, disk and object store to two workers on two nodes, and counts what S3 is asked for.

python benchmarks/data_path.py [--slides 32] [--patches 4000] [--epochs 2]

The nodes are raylets of this machine, each with its own object store and cache folder; S3 is a server of this machine
behind a proxy that adds 15 ms to the first byte and passes 50 MB/s a connection.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import torch
from generated_cohort import config_of, write_cohort
from input import rates
from slow_s3 import Pace, slow_s3
from table import machine, print_table

from momkd_ray import storage
from momkd_ray.bags.bag_stream import RayDataBags, open_stream
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
from momkd_ray.train.worker import train_loop_per_worker

MB = 2**20
OBJECT_STORE = 80 * MB


class NodeCache(DiskCache):
    """A cache in a folder of the raylet's own, as it would be on a machine of its own."""

    def __init__(self, folder: str, gb: float | None) -> None:
        super().__init__(folder, gb)
        self.root = folder

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.root, "gb": self.gb}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import ray

        root = state["folder"]
        self.__init__(root, state["gb"])  # type: ignore[misc]
        self.folder = os.path.join(root, ray.get_runtime_context().get_node_id()[:8])


@dataclass(frozen=True)
class Trained:
    """The waiting of one training run."""

    layer: str
    reader: str
    epochs: pd.DataFrame
    fetched: float
    seconds: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=32)
    arguments.add_argument("--patches", type=int, default=4000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--only", choices=["rates", "nodes", "bytes", "simulation"], default="")
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
        if options.only in ("", "nodes"):
            trained = on_two_nodes(on_s3(inputs), folder, pace)
            simulate(inputs.store, trained)


def inputs_of(folder: Path, slides: int, patches: int, width: int, epochs: int) -> RunInputs:
    """Ingests a generated cohort into a local store, a bag or a few to a part."""
    write_cohort(folder, slides, patches, width)
    sections: dict[str, Any] = {
        "cluster": {"workers": 2, "read_ahead_mb": 48},
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


def store_bytes(store: BagStore) -> int:
    return sum(map(store.nbytes, store.entries))


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


def on_two_nodes(inputs: RunInputs, folder: Path, pace: Pace) -> list[Trained]:
    """Trains a fold of the default model with a worker on each of two nodes."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False},
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    rows, done = [], []
    try:
        first_bags(inputs)
        free_nodes(inputs, folder)
        for layer, reader in (("b", "ray_data"), ("b", "direct"), ("c", "ray_data"), ("c", "direct")):
            done.append(train(inputs, folder / f"{layer}-{reader}", layer, reader, pace))
            print(done[-1].epochs.filter(regex="seconds|^epoch").to_string(), flush=True)
            rows += [
                [
                    f"({layer})",
                    reader,
                    line["epoch"],
                    f"{line['seconds_train']:.1f}",
                    f"{line['seconds_input_wait'] / line['seconds_train']:.2%}",
                    f"{line['seconds_first_batch']:.3f}",
                    f"{done[-1].fetched / store_bytes(inputs.store):.2f}" if line["epoch"] == 0 else "",
                ]
                for line in done[-1].epochs.to_dict("records")
            ]
    finally:
        ray.shutdown()
        cluster.shutdown()
    size, patches = store_bytes(inputs.store), int(inputs.store.slides["n_patches"].mean())
    print_table(
        f"Two nodes of one CPU, store of {size / 1e6:.0f} MB, {size / OBJECT_STORE:.1f} times a node's object store, "
        f"bags of about {patches:,} patches, default model",
        ["layer", "reader", "epoch", "training s", "waiting", "first batch s", "all bytes from S3, times the store"],
        rows,
    )
    return done


def source_of(store: BagStore, layer: str, reader: str, folder: Path) -> BagSource:
    source: BagStore | CachedBags = store
    if layer == "b":
        source = CachedBags(store, NodeCache(str(folder / "cache"), None))
    return RayDataBags(source) if reader == "ray_data" else source


def train(inputs: RunInputs, folder: Path, layer: str, reader: str, pace: Pace) -> Trained:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    source = source_of(inputs.store, layer, reader, folder)
    task, _ = fold_task(replace(inputs, slides=source), 0, 0, {})
    before, began = pace.fetched(), time.monotonic()
    TorchTrainer(
        reporting_loop,
        train_loop_config={"task": replace(task, location=str(folder / "fold"))},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="data-path", storage_path=str(folder)),
    ).fit()
    epochs = pd.read_json(folder / "fold" / "metrics.jsonl", lines=True)
    return Trained(layer, reader, epochs, pace.fetched() - before, time.monotonic() - began)


def reporting_loop(loop: dict[str, Any]) -> dict[str, Any] | None:
    from ray import train

    return train_loop_per_worker(loop | {"report": train.report})


def first_bags(inputs: RunInputs) -> None:
    """Times the first bag in a process that has read nothing, on a node."""
    import ray

    def first(store: BagStore, reader: str, ids: list[str]) -> float:
        began = time.monotonic()
        source: BagSource = RayDataBags(store) if reader == "ray_data" else store
        items = iter([((0, i), slide_id) for i, slide_id in enumerate(ids)])
        stream = open_stream(source, items, "first", limit=48 * MB, tasks=2)
        bag = source.read(ids[0]) if stream is None else stream.take((0, 0), ids[0])
        assert bag.n_patches
        if stream is not None:
            stream.close()
        return time.monotonic() - began

    ids = sorted(inputs.store.entries)[:8]
    ask = ray.remote(num_cpus=1)(first)
    readers = ("ray_data", "ray_data", "direct", "direct")
    rows = [[reader, f"{ray.get(ask.remote(inputs.store, reader, ids)):.2f}"] for reader in readers]
    print_table("(c) S3: first bag (the first of each reader in fresh processes)", ["reader", "s"], rows)


class WatchedStore(BagStore):
    """A store that notes on which node each bag is read."""

    notes = ""

    def subset(self, slide_ids: Any) -> BagStore:
        part = super().subset(slide_ids)
        part.__class__, part.notes = WatchedStore, self.notes  # type: ignore[attr-defined]
        return part

    def read_row(self, slide_id: str, *, verify: bool = False) -> Any:
        import ray

        Path(self.notes, f"{ray.get_runtime_context().get_node_id()}-{uuid.uuid4().hex}").touch()
        return super().read_row(slide_id, verify=verify)


def free_nodes(inputs: RunInputs, folder: Path) -> None:
    """Counts the bags that are read on a node with free CPUs, while a worker takes all those of its own."""
    import ray

    store = BagStore.open(inputs.store.uri)
    store.__class__, store.notes = WatchedStore, str(folder / "reads")  # type: ignore[attr-defined]
    os.makedirs(folder / "reads")

    def consume(store: BagStore, ids: list[str]) -> tuple[str, int]:
        items = [((0, i), slide_id) for i, slide_id in enumerate(ids)]
        stream = open_stream(RayDataBags(store, spare_cpus=1.0), iter(items), "mixed", limit=48 * MB, tasks=2)
        assert stream is not None
        time.sleep(5)  # until the processes of the read tasks stand
        for key, slide_id in items:
            stream.take(key, slide_id)
        return ray.get_runtime_context().get_node_id(), stream.delivered

    ids = sorted(store.entries)
    node, delivered = ray.get(ray.remote(num_cpus=1)(consume).remote(store, ids))
    names = os.listdir(folder / "reads")
    elsewhere = sum(not name.startswith(node) for name in names)
    print_table(
        "A worker that takes all CPUs of its node, and a node with one free CPU",
        ["bags", "by Ray Data", "read on the other node"],
        [[len(ids), delivered, f"{elsewhere} of {len(names)}"]],
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


def simulate(store: BagStore, trained: list[Trained]) -> None:
    """Predicts epochs at 5 TB, and first those that were measured, from the rate of steps alone."""
    bag = store_bytes(store) / len(store.entries)
    s3 = min(NETWORK_BYTES_S, CONNECTIONS * 50e6)
    last = [run.epochs.iloc[-1] for run in trained]
    seconds = [float(line["seconds_train"]) for line in last]
    computing_s = [float(line["seconds_train"] - line["seconds_input_wait"]) for line in last]
    computing = float(np.median(computing_s))
    rows = [
        [f"({run.layer}) {run.reader}", f"{own / all_s:.1%}", f"{all_s:.1f}"]
        for run, own, all_s in zip(trained, computing_s, seconds, strict=True)
    ]
    n_train = store_bytes(store) * 0.68
    predicted = max(n_train / 2 / s3, computing)
    print_table(
        f"Model against measurement: an epoch is predicted to take {predicted:.1f} s on every layer (reading "
        f"{n_train / 2 / s3:.1f} s, computing {computing:.1f} s)",
        ["layer", "share of computing", "measured s"],
        rows,
    )
    at_five_terabytes(bag, s3)


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
