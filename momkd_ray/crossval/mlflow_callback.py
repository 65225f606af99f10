"""A run's folds in MLflow, where the configuration asks for it."""

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
    """Tune's MLflow logger, an MLflow run a fold; none where `watch.mlflow` is not set.

    Raises:
        InputError: MLflow cannot be reached there.
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
    """Stops tracking, and not the run, when MLflow is away."""

    progress: ProgressReporter | None = None
    away = False

    def log_trial_start(self, trial: Any) -> None:
        """A fold begins: an MLflow run of its own."""
        self._unless_away(super().log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """An epoch was validated."""
        self._unless_away(super().log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """A fold ended."""
        self._unless_away(super().log_trial_end, trial, failed)

    def _unless_away(self, log: Callable[..., None], *arguments: Any) -> None:
        if self.away:
            return
        try:
            log(*arguments)
        except Exception as error:
            self.away = True
            if self.progress is not None:
                self.progress.info(f"MLflow is away, the run goes on without it: {_first_sentence(error)}")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we do without; a console cannot be pickled
        # its address, which may hold a password, is not needed either
        return self.__dict__ | {"progress": None, "tracking_uri": None}


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:300]
