"""Logs a run's folds to MLflow, if `watch.mlflow` is set."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback

from momkd_ray.config.load import Config
from momkd_ray.credentials import redact
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime import environment


def trackers(config: Config, progress: ProgressReporter, fingerprint: str) -> list[MLflowLoggerCallback]:
    """Returns Tune's MLflow logger, which logs an MLflow run per fold; an empty list if `watch.mlflow` is not set.

    Raises:
        InputError: MLflow cannot be reached at the tracking URI.
    """
    if config.watch.mlflow is None:
        return []
    environment.set_defaults(environment.MLFLOW)
    uri = os.path.expandvars(config.watch.mlflow)  # the configuration keeps the variable's name: it may hold a password
    if uri.startswith("$"):
        raise InputError(f"watch.mlflow is {uri}, but this environment variable is not set; set it to the tracking URI")
    tracker = _Tracker(
        uri,
        experiment_name=config.run.dir,
        tags={"label": config.cohort.label, "fingerprint": fingerprint},
    )
    tracker.progress = progress
    try:
        tracker.setup()
    except Exception as error:
        raise InputError(redact(f"watch.mlflow {uri} cannot be used: {_first_sentence(error)}")) from None
    return [tracker]


class _Tracker(MLflowLoggerCallback):  # type: ignore[misc]  # Ray carries no types
    """Tune's MLflow logger, which stops logging, and not the run, if MLflow fails."""

    progress: ProgressReporter | None = None
    failed = False

    def log_trial_start(self, trial: Any) -> None:
        """Begins the MLflow run of a fold."""
        self._try(super().log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Logs the metrics of an epoch."""
        self._try(super().log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Ends the MLflow run of a fold."""
        self._try(super().log_trial_end, trial, failed)

    def _try(self, log: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            log(*arguments)
        except Exception as error:
            self.failed = True
            if self.progress is not None:
                self.progress.info(f"MLflow failed, and the run continues without it: {_first_sentence(error)}")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restore, which is not used; a console cannot be pickled, and
        # the tracking URI may contain a password
        return self.__dict__ | {"progress": None, "tracking_uri": None}


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300]
