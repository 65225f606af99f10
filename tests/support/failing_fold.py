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
import torch.distributed as dist

from momkd_ray import storage
from momkd_ray.formats.bag import Bag
from momkd_ray.ray_runtime import environment
from momkd_ray.run.layout import FoldDirectory
from momkd_ray.train.fit import fit
from momkd_ray.train.task import FoldTask
from support.fold_tasks import GeneratedBags, fold_task

STEPS_AN_EPOCH = 4
EXCESSIVE_BYTES = 6 * 2**30


def steps_done(location: str) -> int:
    """Returns the number of steps that the newest checkpoint covers."""
    names = [name for name in storage.list_names(FoldDirectory(location).checkpoints) if name.endswith(".pt")]
    positions = [name.split("-") for name in names if not name.startswith(".")]
    return max((int(epoch) * STEPS_AN_EPOCH + int(step) for epoch, step, _ in positions), default=0)


@dataclass(frozen=True)
class FailingBags:
    """Bags whose reading causes failures, each once, after a number of steps, with a marker file.

    `exception`, `killed` and `memory` happen in the worker that reads; for the other kinds, which a worker cannot
    cause, the marker file asks the test to.
    """

    marks: str  # folder of the marker files
    location: str  # the fold's folder
    failures: tuple[tuple[int, str], ...]  # (steps done, kind)
    seconds: float  # that reading a bag takes

    def read(self, slide_id: str) -> Bag:
        time.sleep(self.seconds)
        done = steps_done(self.location)
        for steps, kind in self.failures:
            if done >= steps and self._first(kind):
                if kind == "exception":
                    raise ValueError("a failure on purpose")
                if kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "memory":
                    too_much = np.ones(EXCESSIVE_BYTES, np.uint8)
                    time.sleep(60)  # Ray's memory monitor ends this process before
                    raise MemoryError(f"{too_much.nbytes} bytes were granted")
        self._wait_for_more()
        return GeneratedBags().read(slide_id)

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


def failing_task(plan: dict[str, Any]) -> FoldTask:
    """Builds the fold of a plan: marker folder, location, workers, epochs, failures, seconds per bag."""
    task = fold_task(Path("unused"), dropout=0.4, epochs=plan["epochs"], patience=plan["epochs"])
    cluster = {"workers": plan["workers"], "checkpoint_steps": 1, "max_failures": 5, "resize_interval_s": 2}
    tree = task.config.model_dump() | {"cluster": cluster}
    return replace(
        task,
        config=type(task.config).model_validate(tree),
        location=plan["location"],
        source=FailingBags(plan["marks"], plan["location"], tuple(map(tuple, plan["failures"])), plan["seconds"]),
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
