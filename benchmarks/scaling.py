"""Times the training step on 1 and 2 workers, the memory's all-reduce and checkpoints; simulates more workers.

    python benchmarks/scaling.py [--patches 4000] [--steps 8] [--rounds 7]

Two independent processes side by side show how much two cores can do that share caches and memory; the difference
from there to two workers is the cost of communication. Every round runs the variants in turn, so that a busy machine
slows all of them; "against one" is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from published import published
from table import machine, print_table

from momkd_ray.batches.sharding import balance
from momkd_ray.config.load import Config
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.train.collectives import Collective, ProcessGroup, SingleProcess
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import FoldTraining

WIDTH, GENES, BAGS_PER_STEP = 1536, 768, 2
# the simulated network: AWS's figure for g6.12xlarge, and a usual round trip within a placement group
NETWORK_BYTES_S, LATENCY_S = 40e9 / 8, 50e-6
BUCKET_BYTES = 25 * 2**20  # DDP's default; the last bucket cannot overlap with the backward pass
BACKWARD_SHARE = 2 / 3  # of a step, by its matrix products
PATCHES_SPREAD = 0.5  # sigma of log patches a slide, as in TCGA-BRCA


class SameBags:
    """A bag source whose bags are all the same one."""

    def __init__(self, patches: int) -> None:
        side = int(np.ceil(patches**0.5))
        coords = np.stack(np.divmod(np.arange(patches), side), axis=1).astype(np.int32) * 512
        self.graph = knn_graph(coords, 8)
        self.coords = coords
        self.features = np.random.default_rng(0).standard_normal((patches, WIDTH)).astype(np.float16)

    def read(self, bag_id: str) -> Bag:
        return Bag(bag_id, self.features, self.coords, *self.graph, {})


def task_of(patches: int, folder: str, bags_per_step: int = BAGS_PER_STEP) -> FoldTask:
    config = Config.model_validate(
        {
            "cohort": {"clinical": "c.csv", "label": "PR"},
            "features": {"dir": "features"},
            **published(train={"bags_per_step": bags_per_step}),
        }
    )
    ids = [f"slide-{i:03d}" for i in range(64)]
    bags = pd.DataFrame({"bag_id": ids, "slides": ids, "patient_id": ids, "y": [i % 2 for i in range(64)]})
    bags["role"] = ["train"] * 60 + ["val"] * 2 + ["test"] * 2
    bags["patches"] = patches
    omics = {name: np.random.default_rng(i).standard_normal(GENES).astype(np.float32) for i, name in enumerate(ids)}
    return FoldTask(config, 0, bags, omics, GENES, WIDTH, SameBags(patches), folder, "benchmark")


@dataclass
class Timed:
    """A collective that measures the time of its sums."""

    inner: Collective
    seconds: float = 0.0

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def world(self) -> int:
        return self.inner.world

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        self.inner.sum(x)
        self.seconds += time.perf_counter() - began
        return x

    def gather(self, value: Any) -> list[Any]:
        return self.inner.gather(value)


def stepping(training: FoldTraining) -> Iterator[float]:
    """Yields the seconds of each step, epoch after epoch."""
    epoch = 0
    while True:
        for share in training.data.shares(training.data.plan(epoch), 0, epoch):
            began = time.perf_counter()
            training.stepper.step(share.batches if share.draws else [], share.global_bags, filler=share.batches[0])
            yield time.perf_counter() - began
        epoch += 1


def worker(rank: int, world: int, independent: bool, patches: int, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = course(Timed(ProcessGroup() if world > 1 else SingleProcess()), independent, patches, steps, folder)
    if rank == 0:
        torch.save(found, f"{folder}/timed.pt")
    if world > 1:  # after DDP has gone, which could otherwise wait for the group for ever
        dist.destroy_process_group()


def course(together: Timed, independent: bool, patches: int, steps: int, folder: str) -> dict[str, float]:
    """Seconds a step; independent workers have bags of their own and exchange nothing."""
    if independent:
        task = task_of(patches, f"{folder}/fold-{together.rank}", BAGS_PER_STEP // together.world)
        training = FoldTraining(task, SingleProcess())
    else:
        training = FoldTraining(task_of(patches, f"{folder}/fold"), together)
    taken = stepping(training)
    for _ in range(2):
        next(taken)
    together.gather(None)
    together.seconds = 0.0
    step = statistics.median(next(taken) for _ in range(steps))
    in_steps = together.seconds / steps
    memory_floats = sum(value.numel() for value in training.model.memory.buffers())
    alone = []
    for _ in range(50):  # the ranks have just met, so none waits for a slower one
        together.gather(None)
        began = time.perf_counter()
        together.sum(torch.zeros(memory_floats))
        alone.append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in training.model.parameters())
    return {"step": step, "sync": in_steps, "sync_alone": statistics.median(alone), "bytes": 4 * parameters}


def timed(world: int, independent: bool, patches: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (world, independent, patches, steps, folder), nprocs=world)
        found: dict[str, float] = torch.load(f"{folder}/timed.pt")
        return found


def saving(rank: int, patches: int, steps: int, folder: str) -> None:
    """Times steps with a checkpoint after each against steps without."""
    torch.set_num_threads(1)
    training = FoldTraining(task_of(patches, f"{folder}/fold"), SingleProcess())
    course = stepping(training)
    progress = training.begin()
    progress.best_weights = {name: value.clone() for name, value in training.model.state_dict().items()}
    for _ in range(2):
        next(course)
    plain, with_one, stalls = [], [], []
    for _ in range(steps):
        plain.append(next(course))
        began = time.perf_counter()
        progress.step += 1
        training.save(progress)
        stalls.append(time.perf_counter() - began)
        with_one.append(next(course) + stalls[-1])
        training.checkpoints.wait()
    size = max(path.stat().st_size for path in Path(folder, "fold", "checkpoints").glob("*.pt"))
    torch.save([statistics.median(x) for x in (plain, with_one, stalls)] + [size], f"{folder}/saving.pt")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--patches", type=int, default=4000)
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    print(machine())
    ways = {"1": (1, False), "2": (2, False), "2 independent, which exchange nothing": (2, True)}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            runs[name].append(timed(*way, options.patches, options.steps))
    middle = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in runs.items()
    }
    rows = []
    for name, one in middle.items():
        cells = [name, f"{one['step']:.3f}", f"{BAGS_PER_STEP / one['step']:.2f}"]
        against = [alone["step"] / other["step"] for alone, other in zip(runs["1"], runs[name], strict=True)]
        cells.append(f"{statistics.median(against):.2f}x ({min(against):.2f} to {max(against):.2f})")
        shares = [f"{one[key] * 1e3:.2f} ms ({one[key] / one['step']:.2%})" for key in ("sync", "sync_alone")]
        rows.append([*cells, *(shares if name == "2" else ["", ""])])
    print_table(
        f"{BAGS_PER_STEP} bags of {options.patches:,} patches a step, the default model, one thread a worker, gloo",
        [
            "workers",
            "s a step",
            "bags/s",
            "against one",
            "memory sync in a step",
            "the same without waiting for the other",
        ],
        rows,
    )
    checkpoints(options.patches, options.steps)
    simulate(options.patches, middle["1"]["step"] / BAGS_PER_STEP, middle["1"]["bytes"])


def checkpoints(patches: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(saving, (patches, steps, folder), nprocs=1)
        plain, with_one, stall, size = torch.load(f"{folder}/saving.pt")
    every = Config.model_fields["cluster"].default.checkpoint_steps
    between = every * plain
    print_table(
        f"A checkpoint of {size / 1e6:.0f} MB, to a local disk",
        ["training pauses", "the step during its writing is longer by", f"share, one every {every} steps"],
        [
            [
                f"{stall * 1e3:.0f} ms",
                f"{(with_one - stall - plain) * 1e3:.0f} ms",
                f"{(with_one - plain) / between:.3%}",
            ]
        ],
    )


def simulate(patches: int, seconds_a_bag: float, gradient_bytes: float) -> None:
    """Simulates more workers from measured seconds a patch, a stated network and the package's balancing of bags."""
    rng = np.random.default_rng(0)
    a_worker = 4  # bags a step
    rows = []
    for workers in (1, 2, 4, 8, 16, 32, 64):
        ring = 2 * (workers - 1) / workers * gradient_bytes / NETWORK_BYTES_S + 2 * (workers - 1) * LATENCY_S
        last = ring * min(1.0, BUCKET_BYTES / gradient_bytes)
        ideal = spent = 0.0
        for _ in range(200):
            sizes = (patches * rng.lognormal(-(PATCHES_SPREAD**2) / 2, PATCHES_SPREAD, a_worker * workers)).astype(int)
            shares = balance(sizes.tolist(), workers)
            slowest = max(int(sizes[share].sum()) for share in shares) / patches * seconds_a_bag
            hidden = min(ring - last, BACKWARD_SHARE * slowest)
            memory = 2 * (workers - 1) * LATENCY_S  # a few kilobytes: latency only
            spent += slowest + ring - hidden + memory
            ideal += sizes.sum() / workers / patches * seconds_a_bag
        rows.append([workers, f"{200 * a_worker * workers / spent:.1f}", f"{ideal / spent:.0%}"])
    print_table(
        f"SIMULATION: {a_worker} bags a worker and step of {patches:,} patches (log-normal, sigma {PATCHES_SPREAD}), "
        f"{seconds_a_bag:.3f} s a bag as measured, ring all-reduce of {gradient_bytes / 1e6:.0f} MB at "
        f"{NETWORK_BYTES_S * 8 / 1e9:.0f} Gbit/s and {LATENCY_S * 1e6:.0f} us",
        ["workers", "bags/s", "efficiency"],
        rows,
    )


if __name__ == "__main__":
    main()
