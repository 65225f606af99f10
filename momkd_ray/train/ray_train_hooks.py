"""Extensions of Ray Train's controller: the cluster it is in, errors not retried, workers lost at their start."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import train
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import RunningState

from momkd_ray.errors import RunError, input_error_within, run_error_within
from momkd_ray.ray_runtime import environment


def tell_cluster_address() -> None:
    """Lets the processes that Ray Train starts know in which cluster they are.

    Ray Train 2.60 watches its controller by a request to the cluster's state service, whose address it looks for where
    a `ray start` on the same machine has left one. That may be of another cluster, or of one that has ended: then every
    end of a worker group waits for 12 s, and nobody removes the placement group of a controller that was killed.
    """
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    environment.override({"RAY_ADDRESS": ray.get_runtime_context().gcs_address})


class NoRetryOnKnownErrors(train.UserCallback):  # type: ignore[misc]  # Ray carries no types
    """Ends a fold on errors that would come again: it raises in the controller, which then starts no workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Re-raises an `InputError` or `RunError` of any worker."""
        for error in worker_exceptions.values():
            if reason := input_error_within(error) or run_error_within(error):
                raise reason


class LimitFailedStarts(ControllerCallback):  # type: ignore[misc]
    """Ends a fold whose workers are lost while they start, time after time, which Ray Train 2.60 would try forever.

    That the cluster has no room for them yet is no such failure, however long it lasts.

    Args:
        most: starts that may fail one after another; -1 for any number.
    """

    def __init__(self, most: int) -> None:
        self.most, self.failed = most, 0

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Counts failed starts; raises a `RunError` in the controller after too many."""
        if isinstance(current_state, RunningState):
            self.failed = 0
        error = getattr(current_state, "training_failed_error", None)
        failure = getattr(error, "controller_failure", None)
        if not isinstance(failure, WorkerGroupStartupFailedError):
            return
        self.failed += 1
        reason = str(failure.__cause__ or failure).strip().splitlines()[-1]
        logging.getLogger(__name__).warning("workers were lost while they started (%d): %s", self.failed, reason)
        if 0 <= self.most < self.failed:
            times = "once" if self.failed == 1 else f"{self.failed} times in a row"
            raise RunError(
                f"its workers were lost while they started, {times} ({reason}): see the logs of RayTrainWorker on the "
                "dashboard's page of actors, or raise cluster.max_failures"
            )


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Shuts the process group down; its workers may already be gone."""
        try:
            super().on_shutdown(worker_group, backend_config)
        except OutOfMemoryError:
            # Ray Train 2.60 treats this kind of a lost worker as a failure of the controller: it would end the fold and
            # keep the placement group, for which the next attempt then waits forever
            logging.getLogger(__name__).warning("a worker ran out of memory")


@dataclass
class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's DDP configuration, with a shutdown that tolerates workers lost to too little memory."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """The backend with the tolerant shutdown."""
        return _Backend
