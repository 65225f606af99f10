"""A driver that trains a fold by Ray Train within a Tune trial, as `crossval` does, on bags that cause failures."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch.distributed as dist

from momkd_ray import storage
from momkd_ray.bags.bag_stream import RayDataBags
from momkd_ray.bags.cached_bags import CachedBags
from momkd_ray.bags.disk_cache import DiskCache
from momkd_ray.bags.shared_bags import BagSource
from momkd_ray.bags.store import BagStore
from momkd_ray.ray_runtime import environment
from momkd_ray.run.layout import FoldDirectory
from momkd_ray.train.fit import fit
from momkd_ray.train.task import FoldTask
from support.fold_tasks import GeneratedBags, fold_task

STEPS_AN_EPOCH = 4
CHUNK_BYTES = 2**28


def steps_done(location: str) -> int:
    """Returns the number of steps that the newest checkpoint covers."""
    names = [name for name in storage.list_names(FoldDirectory(location).checkpoints) if name.endswith(".pt")]
    positions = [name.split("-") for name in names if not name.startswith(".")]
    return max((int(epoch) * STEPS_AN_EPOCH + int(step) for epoch, step, _ in positions), default=0)


@dataclass(frozen=True)
class Failures:
    """Failures in the making of a batch, each once, after a number of steps, with a marker file.

    `exception`, `killed` and `memory` happen in the worker; for the other kinds, which a worker cannot cause, the
    marker file asks the test to.
    """

    marks: str  # folder of the marker files
    location: str  # the fold's folder
    failures: tuple[tuple[int, str], ...]  # (steps done, kind)
    seconds: float  # that the making of a batch takes for each bag

    def come(self) -> None:
        time.sleep(self.seconds)
        done = steps_done(self.location)
        for steps, kind in self.failures:
            if done >= steps and self._first(kind):
                if kind == "exception":
                    raise ValueError("a failure on purpose")
                if kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "memory":
                    self._take_memory()
        self._wait_for_more()

    def _take_memory(self) -> None:
        """Takes ever more memory, slowly enough for Ray's memory monitor to end this process before all is taken."""
        taken = []
        for _ in range(psutil.virtual_memory().available * 9 // 10 // CHUNK_BYTES):
            taken.append(np.ones(CHUNK_BYTES, np.uint8))
            time.sleep(0.1)
        raise MemoryError(f"{len(taken) * CHUNK_BYTES} bytes were granted")

    def _wait_for_more(self) -> None:
        """Waits while the test asks for more workers and this one is still the only one."""
        until = time.monotonic() + 120
        while (Path(self.marks) / "more").exists() and time.monotonic() < until:
            if not dist.is_initialized() or dist.get_world_size() > 1:
                return
            time.sleep(0.2)

    def _first(self, kind: str) -> bool:
        try:
            (Path(self.marks) / kind).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class FailingOmics(dict[str, Any]):
    """Omics that a batch cannot be made with, whatever its bags come from."""

    def __init__(self, omics: dict[str, Any], failures: Failures) -> None:
        super().__init__(omics)
        self.failures = failures

    def get(self, patient: str, default: Any = None) -> Any:
        self.failures.come()
        return super().get(patient, default)

    def __reduce__(self) -> tuple[Any, ...]:
        return FailingOmics, (dict(self), self.failures)


def source_of(plan: dict[str, Any]) -> BagSource:
    """The bags in the layer that the plan names."""
    if not plan.get("layer"):
        return GeneratedBags()
    store = BagStore.open(plan["store"])
    cached = CachedBags(store, DiskCache(str(Path(plan["marks"]).parent / "cache"), None))
    return RayDataBags(cached if plan["layer"] == "cached" else store)


def failing_task(plan: dict[str, Any]) -> FoldTask:
    """Builds the fold of a plan: marker folder, location, workers, epochs, failures, seconds per bag."""
    task = fold_task(Path("unused"), dropout=0.4, epochs=plan["epochs"], patience=plan["epochs"])
    cluster = {"workers": plan["workers"], "checkpoint_steps": 1, "max_failures": 5, "resize_interval_s": 2}
    tree = task.config.model_dump() | {"cluster": cluster}
    config = type(task.config).model_validate(tree)
    # one batch is made ahead: with room for more, those of all epochs would be made before the first failure
    little = config.cluster.model_copy(update={"read_ahead_mb": 2**-10})
    failures = Failures(plan["marks"], plan["location"], tuple(map(tuple, plan["failures"])), plan["seconds"])
    return replace(
        task,
        config=config.model_copy(update={"cluster": little}),
        location=plan["location"],
        source=source_of(plan),
        omics=FailingOmics(task.omics, failures),
    )


def main(plan: dict[str, Any]) -> None:
    import ray
    from ray import tune

    environment.override(environment.TRAIN)
    ray.init(address=plan["address"], log_to_driver=False, logging_level="WARNING")

    class Recorder(tune.Callback):  # type: ignore[misc]  # Ray carries no types
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            report = {key: result.get(key) for key in ("epoch", "workers", "notes")}
            with open(Path(plan["marks"]) / "reports.jsonl", "a") as file:
                file.write(json.dumps(report) + "\n")

    def trial(params: dict[str, Any]) -> None:
        tune.report(fit(failing_task(plan)))

    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 0, "node:__internal_head__": 0.01}),
        run_config=tune.RunConfig(
            storage_path=str(Path(plan["marks"]) / "tune"),
            verbose=0,
            callbacks=[Recorder()],
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    ).fit()
    if results.errors:
        sys.exit(str(results.errors[0]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
