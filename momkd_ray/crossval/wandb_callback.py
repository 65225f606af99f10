"""Logs a run's folds to Weights & Biases, if `watch.wandb` is set."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import ray
import wandb
from pydantic import ValidationError
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor
from ray.air.util.node import _force_on_current_node

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.credentials import redact
from momkd_ray.crossval.guarded_logger import GuardedLogger, first_sentence
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime import environment

MODES = ("online", "offline", "disabled")
UPLOAD_TIMEOUT_S = 60
"""How long a run's end waits for uploads; a record that is not uploaded by then may be cut off on the disk too."""


def wandb_trackers(config: Config, progress: ProgressReporter, fingerprint: str) -> list[WandbLoggerCallback]:
    """Returns Tune's logger for Weights & Biases, which logs a run per fold; an empty list if WANDB_MODE is disabled.

    Raises:
        InputError: the service cannot be used with this project, key, host or folder.
    """
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode == "disabled":
        return []
    if mode not in MODES:
        raise InputError(f"WANDB_MODE is {mode}; set it to one of {', '.join(MODES)}, or unset it")
    folder = _folder(config.run.dir, mode)
    _check(str(config.watch.wandb), mode)
    tracker = _Tracker(
        project=config.watch.wandb,
        group=os.path.basename(config.run.dir.rstrip("/")),
        upload_timeout=UPLOAD_TIMEOUT_S,
        tags=[config.cohort.label[:64], fingerprint[:64]],
        mode=mode,
        dir=folder,
        save_code=False,
        settings={"silent": True, "console": "off"},
    )
    tracker.progress = progress
    return [tracker]


def _folder(run: str, mode: str) -> str:
    """Returns the local folder of the client's files.

    It is not below `tune` in the run directory: Tune writes that as a copy of a folder of its own, for the last time
    before the loggers end, so that the copies of the last records would be missing or cut off.
    """
    folder = os.environ.get("WANDB_DIR") or storage.local_path(run)
    if folder is None and mode == "offline":
        raise InputError(f"watch.wandb cannot keep offline records in {run}: set WANDB_DIR to a folder of this machine")
    folder = os.path.abspath(folder or tempfile.gettempdir())
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {folder} for watch.wandb cannot be made ({error.strerror}); set WANDB_DIR"
        ) from None
    return folder


def _check(project: str, mode: str) -> None:
    """Refuses a project's name that is not one and, online, a service that cannot be reached with the key."""
    cure = "set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own), or WANDB_MODE=offline to upload later"
    try:
        with environment.temporarily({"WANDB_SILENT": "true"}):
            _check_name(project)
            if mode == "online" and not wandb.login(verify=True, prompt=False):
                raise InputError(f"watch.wandb {project} cannot be used: there is no API key; {cure}")
    except InputError:
        raise
    except ValidationError as error:  # of a variable
        wrong = error.errors()[0]
        raise InputError(f"WANDB_{str(wrong['loc'][0]).upper()} cannot be used: {wrong['msg']}") from None
    except Exception as error:
        reason = first_sentence(error).rstrip(".")
        raise InputError(redact(f"watch.wandb {project} cannot be used: {reason}; {cure}")) from None
    finally:
        wandb.teardown()  # its process is needed no more: each fold's logger starts one of its own


def _check_name(project: str) -> None:
    try:
        wandb.Settings(project=project)
    except wandb.errors.UsageError as error:
        raise InputError(f"watch.wandb cannot be used: {first_sentence(error)}") from None


class _LoggingActor(_WandbLoggingActor):  # type: ignore[misc]  # Ray carries no types
    """Ray's process that logs a fold, with the command's variables and in the client's folder.

    Ray would start it in a folder that Tune makes only later, and would write the API key into its own logs, as a part
    of the process's runtime environment.
    """

    def __init__(self, logdir: str, *args: Any, variables: dict[str, str], **kwargs: Any) -> None:
        environment.override(variables)
        super().__init__(kwargs["dir"], *args, **kwargs)


class _Tracker(GuardedLogger, WandbLoggerCallback):  # type: ignore[misc]  # Ray carries no types
    """Tune's logger for Weights & Biases, which stops logging, and not the run, if the service fails."""

    service = "Weights & Biases"
    noted = False
    _remote_logger_class: Any = None

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the project and the key have been checked."""

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Waits until the records are written and uploaded, for `UPLOAD_TIMEOUT_S` at most."""
        try:
            for trial in list(self._trial_queues):
                self._signal_logging_actor_stop(trial)  # of an interrupted run, whose folds have not ended
            super().on_experiment_end(trials, **info)
        except Exception as error:
            self._note(error)

    def _start_logging_actor(self, trial: Any, exclude_results: list[str], **settings: Any) -> None:
        if self._remote_logger_class is None:
            self._remote_logger_class = ray.remote(
                num_cpus=0, max_restarts=-1, max_task_retries=-1, **_force_on_current_node()
            )(_LoggingActor)
        variables = {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k != "WANDB_SERVICE"}
        super()._start_logging_actor(trial, exclude_results, variables=variables, **settings)

    def _cleanup_logging_actor(self, trial: Any) -> None:
        try:
            ray.get(self._trial_logging_futures[trial], timeout=0)
        except Exception as error:
            if isinstance(error, ray.exceptions.GetTimeoutError):
                error = TimeoutError(f"the record of {trial} was not uploaded within {UPLOAD_TIMEOUT_S} s")
            elif isinstance(error, ray.exceptions.RayTaskError):
                error = error.cause
            if not self.noted:
                self.noted = True
                self._note(error)
        super()._cleanup_logging_actor(trial)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restore, which is not used; a console cannot be pickled
        return self.__dict__ | {"progress": None}
