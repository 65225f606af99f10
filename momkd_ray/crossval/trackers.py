"""Logs a run's folds to MLflow, if `watch.mlflow` is set."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray.tune.logger import LoggerCallback

from momkd_ray.config.load import Config
from momkd_ray.credentials import redact
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime import environment


def trackers(config: Config, progress: ProgressReporter, fingerprint: str) -> list[LoggerCallback]:
    """Returns Tune's MLflow logger, which logs an MLflow run per fold; an empty list if `watch.mlflow` is not set.

    Raises:
        InputError: MLflow cannot be reached at the tracking URI.
    """
    return [] if config.watch.mlflow is None else [_mlflow(config, progress, fingerprint)]


def _mlflow(config: Config, progress: ProgressReporter, fingerprint: str) -> LoggerCallback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    environment.set_defaults(environment.MLFLOW)
    # the configuration keeps the variable's name: it may hold a password
    uri = os.path.expandvars(config.watch.mlflow or "")
    if uri.startswith("$"):
        raise InputError(f"watch.mlflow is {uri}, but this environment variable is not set; set it to the tracking URI")
    logger = MLflowLoggerCallback(
        uri, experiment_name=config.run.dir, tags={"label": config.cohort.label, "fingerprint": fingerprint}
    )
    try:
        logger.setup()
    except Exception as error:
        raise InputError(redact(f"watch.mlflow {uri} cannot be used: {_first_sentence(error)}")) from None
    return Tracker("MLflow", logger, progress)


class Tracker(LoggerCallback):  # type: ignore[misc]  # Ray carries no types
    """A logger of Tune's that stops logging, and not the run, if its service fails.

    Args:
        service: its name, for the message.
        logger: Tune's own callback, set up.
        progress: receives the message.
    """

    def __init__(self, service: str, logger: Any, progress: ProgressReporter | None) -> None:
        self.service, self.logger, self.progress = service, logger, progress
        self.failed = False

    def setup(self, *arguments: Any, **settings: Any) -> None:
        """Does nothing: the logger is set up before anything is trained."""

    def log_trial_start(self, trial: Any) -> None:
        """Begins the record of a fold."""
        self._try(self.logger.log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Logs the metrics of an epoch."""
        self._try(self.logger.log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Ends the record of a fold."""
        self._try(self.logger.log_trial_end, trial, failed)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Waits for what is still to be sent."""
        self._try(self.logger.on_experiment_end, trials, **info)

    def _try(self, log: Callable[..., None], *arguments: Any, **named: Any) -> None:
        if self.failed:
            return
        try:
            log(*arguments, **named)
        except Exception as error:
            self.failed = True
            if self.progress is not None:
                self.progress.info(f"{self.service} failed, and the run continues without it: {_first_sentence(error)}")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restore, which is not used; a console cannot be pickled, and
        # the logger may know a password
        return self.__dict__ | {"progress": None, "logger": None}


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300]
