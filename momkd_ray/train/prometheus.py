"""What a running fold tells Prometheus: gauges that every Ray node exports, one set a worker."""

from __future__ import annotations

import re
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from momkd_ray.batches.collate import BagBatch
from momkd_ray.model.memory import MomentumMemory

EVERY_S = 5.0  # Ray forgets a gauge that was not set for 20 s, and an epoch may take longer
NEGLIGIBLE = 0.1  # of an even share of its class's mass: a component below it takes no part


@dataclass(frozen=True)
class GaugeSpec:
    """One gauge: what it means, and its tags beside run, fold and setting."""

    meaning: str
    tags: tuple[str, ...] = ()


# Ray puts "ray_" before each name. What all workers share comes from rank 0 alone and has no rank.
GAUGES = {
    "momkd_loss": GaugeSpec("Mean of a loss term over the last epoch's bags.", ("term",)),
    "momkd_auc": GaugeSpec("AUC of the last epoch: of the training draws, or of the validation patients.", ("split",)),
    "momkd_epoch": GaugeSpec("Epochs done."),
    "momkd_learning_rate": GaugeSpec("Learning rate of the last epoch."),
    "momkd_memory_use": GaugeSpec("Share of a class's memory components whose mass is not negligible.", ("class",)),
    "momkd_bags_per_second": GaugeSpec("Bags trained on a second, over the epoch so far.", ("rank",)),
    "momkd_patches_per_second": GaugeSpec("Patches trained on a second, over the epoch so far.", ("rank",)),
    "momkd_input_wait_share": GaugeSpec(
        "Share of the training time spent waiting for bags, over the epoch.", ("rank",)
    ),
    "momkd_all_reduce_seconds": GaugeSpec("Mean time a step's gradients take to be exchanged.", ("rank",)),
    "momkd_gpu_memory_bytes": GaugeSpec("Most GPU memory that tensors held at once.", ("rank",)),
}


class GaugeReporter:
    """Keeps the gauges of one worker on one fold up to date; does nothing where Ray is not up.

    Steps hand over only what the host knows already, so that watching never waits for a GPU.
    """

    def __init__(self, run: str, location: str, fold: int, rank: int, classes: Sequence[str]) -> None:
        """Args: the run directory, the fold's folder in it, fold, rank, and the names of the classes in order."""
        setting = re.search(r"setting=(\d+)", location.removeprefix(run))
        self.tags = {"run": run, "fold": str(fold), "setting": setting[1] if setting else "0"}
        self.rank, self.classes = rank, classes
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._gauges: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._teller: threading.Thread | None = None
        self._new_epoch()

    def _new_epoch(self) -> None:
        self._began, self._waited = float("inf"), 0.0
        self._bags, self._patches = 0, 0

    def step(self, batches: Sequence[BagBatch], began: float, waited: float) -> None:
        """A step was taken.

        Args:
            batches: this worker's bags of the step.
            began: when it began to wait for them, by `time.monotonic`.
            waited: the seconds it waited.
        """
        self._began = min(self._began, began)
        self._waited += waited
        self._bags += sum(len(batch) for batch in batches)
        self._patches += sum(sum(batch.patches_per_bag) for batch in batches)
        seconds = time.monotonic() - self._began
        self._keep("momkd_bags_per_second", self._bags / seconds, rank=str(self.rank))
        self._keep("momkd_patches_per_second", self._patches / seconds, rank=str(self.rank))
        self._keep("momkd_input_wait_share", self._waited / seconds, rank=str(self.rank))
        self._start_telling()

    def epoch(self, metrics: Mapping[str, Any], memory: MomentumMemory, network: nn.Module) -> None:
        """An epoch was validated.

        Args:
            metrics: its line of `metrics.jsonl`.
            memory: the class memory.
            network: the model as it is trained, within DDP where there are several workers.
        """
        self._new_epoch()
        self._keep("momkd_all_reduce_seconds", all_reduce_seconds(network), rank=str(self.rank))
        device = memory.components.device
        if device.type == "cuda":
            held = float(torch.cuda.max_memory_allocated(device))
            self._keep("momkd_gpu_memory_bytes", held, rank=str(self.rank))
        if self.rank == 0:
            self._keep_shared(metrics, memory)
        self._tell()

    def _keep_shared(self, metrics: Mapping[str, Any], memory: MomentumMemory) -> None:
        """What is the same on every worker."""
        for name, value in metrics.items():
            if name.startswith("loss_"):
                self._keep("momkd_loss", value, term=name.removeprefix("loss_"))
        self._keep("momkd_auc", metrics.get("train_auc"), split="train")
        self._keep("momkd_auc", metrics.get("val_auc"), split="validation")
        self._keep("momkd_epoch", metrics["epoch"] + 1)
        self._keep("momkd_learning_rate", metrics.get("lr"))
        for name, share in zip(self.classes, memory_use(memory), strict=False):
            self._keep("momkd_memory_use", share, **{"class": name})

    def _keep(self, name: str, value: float | None, **tags: str) -> None:
        if value is not None:
            with self._lock:
                self._values[name, tuple(tags.items())] = float(value)

    def _start_telling(self) -> None:
        if self._teller is None and _ray_is_up():
            # the thread must not keep alive what it watches: it ends with it
            self._teller = threading.Thread(target=_tell_on, args=(weakref.ref(self),), name="watch", daemon=True)
            self._teller.start()

    def _tell(self) -> None:
        if not _ray_is_up():
            return
        from ray.util.metrics import Gauge

        with self._lock:
            for (name, tags), value in self._values.items():
                if name not in self._gauges:
                    told = GAUGES[name]
                    self._gauges[name] = Gauge(name, told.meaning, (*self.tags, *told.tags))
                self._gauges[name].set(value, self.tags | dict(tags))


def _tell_on(ref: weakref.ref[GaugeReporter]) -> None:
    while (watch := ref()) is not None:
        watch._tell()
        del watch
        time.sleep(EVERY_S)


def _ray_is_up() -> bool:
    ray: Any = sys.modules.get("ray")  # a process that has not imported it is no worker of Ray's
    return ray is not None and bool(ray.is_initialized())


def memory_use(memory: MomentumMemory) -> list[float]:
    """For each class the share of its components that hold a part of its mass; empty where a rule keeps no mass."""
    if memory.rule != "ema":
        return []
    even_Y1 = memory.mass_YK.mean(dim=1, keepdim=True)
    shares: list[float] = (memory.mass_YK >= NEGLIGIBLE * even_Y1).float().mean(dim=1).tolist()
    return shares


def all_reduce_seconds(network: nn.Module) -> float | None:
    """The mean time that the gradients' exchange takes, which DDP measures itself in one step of many."""
    if not isinstance(network, DistributedDataParallel):
        return None
    measured: dict[str, Any] = network._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    nanoseconds = measured.get("avg_backward_comm_time")
    return nanoseconds / 1e9 if nanoseconds else None
