"""Trains and reads on two nodes, raylets of this machine, from the slow S3: waiting for bags, against a prediction."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from published import published
from slow_s3 import Pace
from table import print_table

from momkd_ray.bags.bag_stream import RayDataBags, open_stream
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.shared_bags import BagSource
from momkd_ray.bags.store import BagStore
from momkd_ray.config.load import Config
from momkd_ray.crossval.fold import FoldTask, fold_task
from momkd_ray.run.inputs import RunInputs
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.fold_data import FoldData
from momkd_ray.train.worker import train_loop_per_worker

MB = 2**20
STORE_OVER_MEMORY = 5
"""The store's bytes as a multiple of a node's object store."""
NODE_CPUS = 4
"""Of a node, one of which its worker takes; all nodes share the CPUs of this machine."""
SECONDS_A_BAG = (0.0, 0.05, 0.15)
"""For which a step waits instead of computing, as the CPU does while a GPU computes."""
EPOCHS_READ = 3


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


def on_two_nodes(inputs: RunInputs, folder: Path, pace: Pace, only: str) -> None:
    """Prints what a fold waits for bags with a worker on each of two nodes; `only` picks a part, if it is not empty."""
    size = store_bytes(inputs.store)
    if only != "reading":
        with two_nodes(size // STORE_OVER_MEMORY):
            if only in ("", "nodes"):
                first_bags(inputs)
                free_nodes(inputs, folder)
            if only in ("", "training"):
                waiting_while_training(inputs, folder, pace)
    if only in ("", "reading"):
        with two_nodes(2 * size):
            waiting_while_reading(inputs, folder)


@contextmanager
def two_nodes(object_store: int) -> Iterator[None]:
    """Starts a head without CPUs and two nodes."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80 * MB, "include_dashboard": False},
    )
    for _ in range(2):
        cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=object_store)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def store_bytes(store: BagStore) -> int:
    return sum(map(store.nbytes, store.entries))


def source_of(store: BagStore, layer: str, reader: str, folder: Path) -> BagSource:
    source: BagStore | CachedBags = store
    if layer == "b":
        source = CachedBags(store, NodeCache(str(folder / "cache"), None))
    return RayDataBags(source, 2.0 * (NODE_CPUS - 1)) if reader == "ray_data" else source


def waiting_while_training(inputs: RunInputs, folder: Path, pace: Pace) -> None:
    """Trains a fold of the published and of the default network on each layer."""
    tree = inputs.config.model_dump(mode="json", exclude_unset=True)
    recipe = published(train=tree["train"])
    networks = {"published": Config.model_validate(tree | recipe), "default": inputs.config}
    rows = []
    for network, config in networks.items():
        for layer, reader in (("b", "ray_data"), ("b", "direct"), ("c", "ray_data"), ("c", "direct")):
            place = folder / f"{network}-{layer}-{reader}"
            before = pace.fetched()
            epochs = train(replace(inputs, config=config), place, source_of(inputs.store, layer, reader, place))
            times = (pace.fetched() - before) / store_bytes(inputs.store)
            rows += [
                [
                    network,
                    f"({layer})",
                    reader,
                    line["epoch"],
                    f"{line['seconds_train']:.1f}",
                    f"{line['seconds_input_wait'] / line['seconds_train']:.2%}",
                    f"{line['seconds_first_batch']:.3f}",
                    f"{times:.2f}" if line["epoch"] == 0 else "",
                ]
                for line in epochs.to_dict("records")
            ]
            print(rows[-len(epochs) :], flush=True)
    print_table(
        f"Training on two nodes, store of {store_bytes(inputs.store) / 1e6:.0f} MB, {STORE_OVER_MEMORY} times a node's "
        f"object store, bags of about {inputs.store.slides['n_patches'].mean():,.0f} patches",
        ["network", "layer", "reader", "epoch", "s", "waiting", "first batch s", "all bytes from S3, times the store"],
        rows,
    )


def train(inputs: RunInputs, folder: Path, source: BagSource) -> pd.DataFrame:
    """Returns the lines of metrics of a fold's epochs."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    task, _ = fold_task(replace(inputs, slides=source), 0, 0, {})
    TorchTrainer(
        reporting_loop,
        train_loop_config={"task": replace(task, location=str(folder / "fold"))},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="data-path", storage_path=str(folder)),
    ).fit()
    return pd.read_json(folder / "fold" / "metrics.jsonl", lines=True)


def reporting_loop(loop: dict[str, Any]) -> dict[str, Any] | None:
    from ray import train

    return train_loop_per_worker(loop | {"report": train.report})


class Rank(SingleProcess):
    """A rank that exchanges nothing with the others."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


def read_epochs(task: FoldTask, rank: int, world: int, seconds_a_bag: float) -> list[tuple[float, float]]:
    """Returns seconds and waiting of each epoch of a worker whose steps take no CPU."""
    data = FoldData(task, Rank(rank, world), torch.device("cpu"))
    times = []
    for epoch in range(EPOCHS_READ):
        began, waited = time.monotonic(), 0.0
        for share in data.shares(data.plan(epoch), 0, epoch):
            for draws, _ in zip(share.passes, share.batches(), strict=True):
                time.sleep(seconds_a_bag * len(draws))
            waited += share.waited_s
        times.append((time.monotonic() - began, waited))
        for _ in data.single("val", epoch=epoch):
            pass
    data.close()
    return times


def waiting_while_reading(inputs: RunInputs, folder: Path) -> None:
    """Reads epochs with steps of a stated time on one and two nodes, and predicts their time by the simulation's rule.

    An epoch takes the longer of reading and computing. The rate of reading is measured with steps of no time, on the
    same number of nodes; the prediction is of the other epochs.
    """
    import ray

    config = inputs.config.model_copy(update={"train": inputs.config.train.model_copy(update={"epochs": EPOCHS_READ})})
    ask = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(read_epochs)
    rows = []
    for layer, reader in (("c", "direct"), ("c", "ray_data"), ("b", "direct"), ("b", "ray_data")):
        for world in (1, 2):
            alone = 0.0
            for pause in SECONDS_A_BAG:
                place = folder / f"read-{layer}-{reader}-{world}-{pause}"
                source = source_of(inputs.store, layer, reader, place)
                task, _ = fold_task(replace(inputs, slides=source, config=config), 0, 0, {})
                times = ray.get([ask.remote(task, rank, world, pause) for rank in range(world)])
                first, last = (max(worker[i][0] for worker in times) for i in (0, -1))
                waits = [max(worker[i][1] / worker[i][0] for worker in times) for i in (0, -1)]
                bags = -(-int((task.bags["role"] == "train").sum()) // world)
                if pause == 0.0:
                    alone = last
                predicted = "" if pause == 0.0 else f"{max(alone, bags * pause):.1f}"
                rows.append(
                    [
                        f"({layer})",
                        reader,
                        world,
                        f"{pause * 1000:.0f}",
                        f"{first:.1f}",
                        f"{waits[0]:.1%}",
                        f"{last:.1f}",
                        f"{waits[1]:.1%}",
                        predicted,
                    ]
                )
                print(rows[-1], flush=True)
    print_table(
        f"Steps that take no CPU: the first and the last of {EPOCHS_READ} epochs, and the last as it is predicted",
        ["layer", "reader", "nodes", "ms a bag", "first s", "waiting", "last s", "waiting", "predicted s"],
        rows,
    )


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
        stream = open_stream(
            RayDataBags(store, spare_cpus=float(NODE_CPUS)), iter(items), "mixed", limit=48 * MB, tasks=2
        )
        assert stream is not None
        time.sleep(5)  # until the processes of the read tasks stand
        for key, slide_id in items:
            stream.take(key, slide_id)
        return ray.get_runtime_context().get_node_id(), stream.delivered

    ids = sorted(store.entries)
    node, delivered = ray.get(ray.remote(num_cpus=NODE_CPUS)(consume).remote(store, ids))
    names = os.listdir(folder / "reads")
    elsewhere = sum(not name.startswith(node) for name in names)
    print_table(
        "A worker that takes all CPUs of its node, and a node whose CPUs are free",
        ["bags", "by Ray Data", "read on the other node"],
        [[len(ids), delivered, f"{elsewhere} of {len(names)}"]],
    )
