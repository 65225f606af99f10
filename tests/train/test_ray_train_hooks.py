"""What Ray Train's controller and its helpers are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.dashboard.utils import get_address_for_submission_client
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState
from ray.train.v2.api.exceptions import ControllerError
from support.runs import changed, inputs_of

from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import train_folds
from momkd_ray.errors import RunError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.train.ray_train_hooks import LimitFailedStarts, tell_cluster_address


def controller_class() -> Any:
    """As Ray Train's controller with the watch over it: an actor that starts an actor."""

    class Helper:
        def state_service(self) -> str:
            return get_address_for_submission_client(None)

    class Controller:
        def state_service(self) -> str:
            return str(ray.get(ray.remote(num_cpus=0)(Helper).remote().state_service.remote()))

    return Controller


def test_helpers_of_ray_train_ask_their_own_cluster_whatever_another_has_left_behind(
    ray_cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of a `ray start` that was killed
    monkeypatch.setenv("RAY_ADDRESS", "")
    tell_cluster_address()
    variables = get_env_vars_to_propagate() | {"RAY_TMPDIR": str(tmp_path)}
    controller = ray.remote(num_cpus=0, runtime_env={"env_vars": variables})(controller_class()).remote()
    assert ray.get(controller.state_service.remote(), timeout=60) == ray_cluster.dashboard


def test_only_starts_that_fail_one_after_another_are_counted() -> None:
    error = ControllerError(WorkerGroupStartupFailedError("at least one"))
    failed, room = ReschedulingState(error), ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    hook = LimitFailedStarts(2)
    for state in (failed, room, failed, RunningState(), failed, room, room, room, failed):
        hook.after_controller_state_update(None, state)
    with pytest.raises(RunError, match="3 times in a row"):
        hook.after_controller_state_update(None, failed)
    without_end = LimitFailedStarts(-1)
    for _ in range(100):
        without_end.after_controller_state_update(None, failed)
    with pytest.raises(RunError, match="once"):
        LimitFailedStarts(0).after_controller_state_update(None, failed)


@contextmanager
def killed_at_sight(title: str) -> Iterator[list[int]]:
    """Kills every process of a title as soon as it is there; lists them."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.pid not in killed and title in " ".join(process.cmdline()[:1]):
                        process.kill()
                        killed.append(process.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_fold_whose_workers_are_lost_whenever_they_start_ends_with_the_reason(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    config = changed(tiny_config, cluster__workers=2, cluster__max_failures=1, run__dir=str(tmp_path / "run"))
    inputs = inputs_of(config)
    with (
        killed_at_sight("ray::RayTrainWorker") as killed,
        pytest.raises(
            RunError, match=r"lost while they started, 2 times in a row \(.*\): .* raise cluster.max_failures"
        ),
    ):
        train_folds(inputs, [0], ProgressReporter(), own_cluster=True)
    assert len(killed) >= 2
