"""Prometheus gauges of a running fold, one set per worker, exported by every Ray node."""

from __future__ import annotations

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

from momkd_ray.model.memory import MomentumMemory

REPORT_INTERVAL_S = 5.0  # Ray drops a gauge that was not set for 20 s, and an epoch may take longer
NEGLIGIBLE_MASS = 0.1  # of the mean mass of a class's components: one below it counts as unused


@dataclass(frozen=True)
class GaugeSpec:
    """The description of one gauge, and its tags besides run, fold and setting."""

    description: str
    tags: tuple[str, ...] = ()


# Ray prefixes each name with "ray_". Values that all workers share are reported by rank 0 and have no rank.
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
    """Reports the gauges of one worker on one fold; does nothing if Ray is not initialised.

    A step reports only values that the host already has, so that reporting never synchronises with a GPU.

    Args:
        run: the run directory.
        fold: number of the fold.
        setting: number of the search's setting; 0 without a search.
        rank: of the worker.
        classes: names of the classes in order.
    """

    def __init__(self, run: str, fold: int, setting: int, rank: int, classes: Sequence[str]) -> None:
        self.tags = {"run": run, "fold": str(fold), "setting": str(setting)}
        self.rank, self.classes = rank, classes
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._gauges: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._reporter: threading.Thread | None = None
        self._closed = threading.Event()
        self._new_epoch()

    def close(self) -> None:
        """Ends the repeated reports, for which Ray then drops the gauges after a while."""
        self._closed.set()

    def _new_epoch(self) -> None:
        self._began, self._waited = float("inf"), 0.0
        self._bags, self._patches = 0, 0

    def record_step(self, patches: Sequence[int], began: float, waited: float) -> None:
        """Records a step's throughput.

        Args:
            patches: of each of this worker's bags of the step.
            began: when the step began, by `time.monotonic`.
            waited: seconds that it waited.
        """
        self._began = min(self._began, began)
        self._waited += waited
        self._bags += len(patches)
        self._patches += sum(patches)
        seconds = time.monotonic() - self._began
        self._set("momkd_bags_per_second", self._bags / seconds, rank=str(self.rank))
        self._set("momkd_patches_per_second", self._patches / seconds, rank=str(self.rank))
        self._set("momkd_input_wait_share", self._waited / seconds, rank=str(self.rank))
        self._start_reporting()

    def record_epoch(self, metrics: Mapping[str, Any], memory: MomentumMemory | None, network: nn.Module) -> None:
        """Records the values of a validated epoch.

        Args:
            metrics: its line of `metrics.jsonl`.
            memory: the class memory; None for a model without one.
            network: the trained model, wrapped by DDP if there are several workers.
        """
        self._new_epoch()
        self._set("momkd_all_reduce_seconds", all_reduce_seconds(network), rank=str(self.rank))
        device = next(network.parameters()).device
        if device.type == "cuda":
            peak_bytes = float(torch.cuda.max_memory_allocated(device))
            self._set("momkd_gpu_memory_bytes", peak_bytes, rank=str(self.rank))
        if self.rank == 0:
            self._set_shared(metrics, memory)
        self._report()

    def _set_shared(self, metrics: Mapping[str, Any], memory: MomentumMemory | None) -> None:
        """Sets the values that are the same on every worker."""
        for name, value in metrics.items():
            if name.startswith("loss_"):
                self._set("momkd_loss", value, term=name.removeprefix("loss_"))
        self._set("momkd_auc", metrics.get("train_auc"), split="train")
        self._set("momkd_auc", metrics.get("val_auc"), split="validation")
        self._set("momkd_epoch", metrics["epoch"] + 1)
        self._set("momkd_learning_rate", metrics.get("lr"))
        for name, share in zip(self.classes, used_component_share(memory), strict=False):
            self._set("momkd_memory_use", share, **{"class": name})

    def _set(self, name: str, value: float | None, **tags: str) -> None:
        if value is not None:
            with self._lock:
                self._values[name, tuple(tags.items())] = float(value)

    def _start_reporting(self) -> None:
        if self._reporter is None and _ray_is_initialised():
            # by a weak reference: the thread also ends when the reporter is freed
            self._reporter = threading.Thread(
                target=_report_periodically, args=(weakref.ref(self), self._closed), name="gauges", daemon=True
            )
            self._reporter.start()

    def _report(self) -> None:
        if not _ray_is_initialised():
            return
        from ray.util.metrics import Gauge

        with self._lock:
            for (name, tags), value in self._values.items():
                if name not in self._gauges:
                    spec = GAUGES[name]
                    self._gauges[name] = Gauge(name, spec.description, (*self.tags, *spec.tags))
                self._gauges[name].set(value, ascii_tags(self.tags | dict(tags)))


def _report_periodically(ref: weakref.ref[GaugeReporter], closed: threading.Event) -> None:
    while not closed.is_set() and (reporter := ref()) is not None:
        reporter._report()
        del reporter
        closed.wait(REPORT_INTERVAL_S)


def _ray_is_initialised() -> bool:
    ray: Any = sys.modules.get("ray")  # a process that has not imported it is no Ray worker
    return ray is not None and bool(ray.is_initialized())


def used_component_share(memory: MomentumMemory | None) -> list[float]:
    """Computes for each class the share of components with non-negligible mass; empty for rules without masses."""
    if memory is None or memory.rule != "ema":
        return []
    mean_Y1 = memory.mass_YK.mean(dim=1, keepdim=True)
    shares: list[float] = (memory.mass_YK >= NEGLIGIBLE_MASS * mean_Y1).float().mean(dim=1).tolist()
    return shares


def all_reduce_seconds(network: nn.Module) -> float | None:
    """Returns the mean seconds of the gradients' exchange, which DDP measures in a sample of steps."""
    if not isinstance(network, DistributedDataParallel):
        return None
    measured: dict[str, Any] = network._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    nanoseconds = measured.get("avg_backward_comm_time")
    return nanoseconds / 1e9 if nanoseconds else None


def ascii_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Escapes characters beyond ASCII in the values of tags, such as class names and paths; Ray accepts no others."""
    return {name: value.encode("ascii", "backslashreplace").decode("ascii") for name, value in tags.items()}
