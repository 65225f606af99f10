"""Times bags on their way from the store to the training step of two workers: waiting, and the rate of reading.

python benchmarks/input.py [--slides 300] [--patches 1000] [--epochs 3]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from generated_cohort import config_of, write_cohort
from published import published
from table import machine, print_table

from momkd_ray import storage
from momkd_ray.bags.bag_rows import from_row, row_at
from momkd_ray.bags.bag_stream import RayDataBags, open_stream
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.shared_bags import BagSource, share_bags
from momkd_ray.bags.store import BagStore
from momkd_ray.batches.prefetch import prefetch
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config
from momkd_ray.crossval.fold import fold_task
from momkd_ray.formats.bag import Bag
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import connect
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.prepare import open_cohort, open_run_inputs
from momkd_ray.train.worker import train_loop_per_worker

WORKERS = 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=300)
    arguments.add_argument("--patches", type=int, default=1000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--epochs", type=int, default=3, help="of training; 0 measures the rate of reading only")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name, connect():
        folder = Path(name) / "cohort"
        write_cohort(folder, options.slides, options.patches, options.width)
        config = Config.model_validate(
            config_of(
                folder,
                cluster={"workers": WORKERS},
                **published(train={"epochs": max(1, options.epochs), "patience": 99, "bags_per_step": WORKERS}),
            )
        )
        cohort = open_cohort(config, ProgressReporter())
        inputs = open_run_inputs(config, cohort, make_folds(config, cohort), ProgressReporter())
        print(machine())
        rates(inputs.store)
        if options.epochs:
            training(inputs)


def rates(store: BagStore) -> None:
    """Reads every bag of the store once, by one consumer and by two at a time, page cache warm."""
    ids = store.slides.index.tolist()
    for slide_id in ids:
        store.read(slide_id)  # so that it is verified and in the page cache
    shared = share_bags(store, ids)
    folder = tempfile.mkdtemp()
    cached = CachedBags(store, DiskCache(folder, None))
    megabytes = int(store.slides["n_patches"].sum()) * store.width * 2 / 1e6
    rows = []
    for consumers in (1, WORKERS):
        ways: dict[str, Callable[[], list[tuple[float, float]]]] = {
            "ray.data, read_parquet().iter_batches()": lambda n=consumers: by_ray_data(store, n, once=False),
            "ray.data, the same after materialize()": lambda n=consumers: by_ray_data(store, n, once=True),
            "the store's row groups, prefetched": lambda n=consumers: by_stream(store, ids, n),
            "the store, by a Ray Data stream in the plan's order": lambda n=consumers: by_plan(store, ids, n),
            "the node's cache, prefetched": lambda n=consumers: by_stream(cached, ids, n),
            "shared in the object store, prefetched": lambda n=consumers: by_stream(shared, ids, n),
        }
        peer = 0.0
        for name, way in ways.items():
            timed = way()
            first = max(first for _, first in timed)
            overall = megabytes / max(seconds for seconds, _ in timed)
            steady = megabytes / max(seconds - first for seconds, first in timed)
            peer = peer or steady
            cells = (f"{first * 1e3:.0f}", f"{overall:.0f}", f"{steady:.0f}", f"{steady / peer:.1f}x")
            rows.append([consumers, name, *cells])
    print_table(
        f"Payload, {len(ids)} bags, {megabytes:.0f} MB at float16",
        ["consumers", "read by", "first bag, ms", "MB/s with it", "MB/s after it", "against iter_batches"],
        rows,
    )
    shutil.rmtree(folder)


def consume(bags: Iterator[Bag]) -> tuple[float, float]:
    """Returns the seconds until every bag has been read, and until the first."""
    began = time.perf_counter()
    first = 0.0
    for bag in bags:
        assert bag.features[-1, -1] == bag.features[-1, -1]
        first = first or time.perf_counter() - began
    return time.perf_counter() - began, first


def by_ray_data(store: BagStore, consumers: int, *, once: bool) -> list[tuple[float, float]]:
    import ray

    paths = [storage.join(store.uri, part) for part in sorted(set(store.slides["part"]))]
    dataset = ray.data.read_parquet(paths)
    if once:
        dataset = dataset.materialize()

    def bags(shard: Any) -> Iterator[Bag]:
        for block in shard.iter_batches(batch_size=1, batch_format="pyarrow"):
            yield from_row(row_at(block, 0))

    if consumers == 1:
        return [consume(bags(dataset))]
    take = ray.remote(num_cpus=0)(lambda shard: consume(bags(shard)))
    return list(ray.get([take.remote(shard) for shard in dataset.streaming_split(consumers, equal=False)]))


def by_stream(source: BagSource, ids: list[str], consumers: int) -> list[tuple[float, float]]:
    import ray

    def bags(mine: list[str]) -> Iterator[Bag]:
        return prefetch(mine, source.read, lambda _: 4 * 2**20, threads=2, limit=64 * 2**20)

    def all_but_the_first_pass(mine: list[str]) -> tuple[float, float]:
        consume(bags(mine))  # a process verifies each bag at its first read
        return consume(bags(mine))

    if consumers == 1:
        return [all_but_the_first_pass(ids)]
    take = ray.remote(num_cpus=0)(all_but_the_first_pass)
    return list(ray.get([take.remote(ids[rank::consumers]) for rank in range(consumers)]))


def by_plan(store: BagStore, ids: list[str], consumers: int) -> list[tuple[float, float]]:
    import ray

    def bags(mine: list[str]) -> Iterator[Bag]:
        items = [((0, i), slide_id) for i, slide_id in enumerate(mine)]
        stream = open_stream(RayDataBags(store), iter(items), "plan", limit=256 * 2**20, tasks=2)
        assert stream is not None
        for key, slide_id in items:
            yield stream.take(key, slide_id)
        stream.close()

    def twice(mine: list[str]) -> tuple[float, float]:
        consume(bags(mine))  # the processes of the read tasks start
        return consume(bags(mine))

    if consumers == 1:
        return [twice(ids)]
    take = ray.remote(num_cpus=0)(twice)
    return list(ray.get([take.remote(ids[rank::consumers]) for rank in range(consumers)]))


class TimedSource:
    """A bag source that measures the time until its first bag."""

    def __init__(self, source: BagSource) -> None:
        self.source, self.started, self.first = source, 0.0, 0.0

    def read(self, bag_id: str) -> Bag:
        bag = self.source.read(bag_id)
        self.first = self.first or time.monotonic() - self.started
        return bag


def timed_loop(loop: dict[str, Any]) -> dict[str, Any]:
    from ray import train

    source = TimedSource(loop["task"].source)
    source.started = time.monotonic()
    done = train_loop_per_worker(loop | {"task": replace(loop["task"], source=source), "report": train.report})
    return done | {"first_bag": source.first}


def training(inputs: RunInputs) -> None:
    """Trains a fold of the default model with two Ray Train workers, from the store and from the object store."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    rows = []
    ids = inputs.cohort.slides["slide_id"].tolist()
    for name, source in (
        ("the store's row groups", inputs.store),
        ("the object store", share_bags(inputs.store, ids)),
    ):
        place = storage.join(inputs.config.run.dir, name.split()[-1])
        task, _ = fold_task(replace(inputs, slides=source), 0, 0, {})
        result = TorchTrainer(
            timed_loop,
            train_loop_config={"task": replace(task, location=place)},
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="input", storage_path=place),
        ).fit()
        metrics = pd.read_json(f"{place}/metrics.jsonl", lines=True)
        for line in metrics.to_dict("records"):
            share = line["seconds_input_wait"] / line["seconds_train"]
            first = f"{result.return_value['first_bag']:.3f}" if line["epoch"] == 0 else ""
            rows.append(
                [
                    name,
                    line["epoch"],
                    f"{line['seconds_train']:.1f}",
                    f"{line['seconds_input_wait']:.3f}",
                    f"{share:.2%}",
                    first,
                    f"{line['seconds_first_batch']:.3f}",
                ]
            )
    patches = int(inputs.store.slides["n_patches"].mean())
    print_table(
        f"Training the default model, {WORKERS} workers, bags of about {patches:,} x {inputs.store.width}",
        [
            "read from",
            "epoch",
            "training s",
            "waiting s",
            "share",
            "first bag, s after the worker's start",
            "first batch, s",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
