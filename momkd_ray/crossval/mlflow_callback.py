"""Logs a run's folds to MLflow, if `watch.mlflow` is set."""

from __future__ import annotations

import os
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback

from momkd_ray.config.load import Config
from momkd_ray.credentials import redact
from momkd_ray.crossval.guarded_logger import GuardedLogger, first_sentence
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime import environment


def mlflow_trackers(config: Config, progress: ProgressReporter, fingerprint: str) -> list[MLflowLoggerCallback]:
    """Returns Tune's MLflow logger, which logs an MLflow run per fold, to `watch.mlflow`.

    Raises:
        InputError: MLflow cannot be reached at the tracking URI.
    """
    environment.set_defaults(environment.MLFLOW)
    # the configuration keeps the variable's name: it may hold a password
    uri = os.path.expandvars(str(config.watch.mlflow))
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
        raise InputError(redact(f"watch.mlflow {uri} cannot be used: {first_sentence(error)}")) from None
    return [tracker]


class _Tracker(GuardedLogger, MLflowLoggerCallback):  # type: ignore[misc]  # Ray carries no types
    """Tune's MLflow logger, which stops logging, and not the run, if MLflow fails."""

    service = "MLflow"

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restore, which is not used; a console cannot be pickled, and
        # the tracking URI may contain a password
        return self.__dict__ | {"progress": None, "tracking_uri": None}
