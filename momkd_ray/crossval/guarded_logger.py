"""Keeps a run going when the service that its metrics are logged to fails: only the logging stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.logger import LoggerCallback

from momkd_ray.credentials import redact
from momkd_ray.progress import ProgressReporter


class GuardedLogger(LoggerCallback):  # type: ignore[misc]  # Ray carries no types
    """A base class, to be named before a logger of Tune's, that stops the logging if its service fails."""

    service = ""
    progress: ProgressReporter | None = None
    failed = False

    def log_trial_start(self, trial: Any) -> None:
        """Begins the record of a fold."""
        self._try(super().log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Logs the metrics of an epoch."""
        self._try(super().log_trial_result, iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Ends the record of a fold."""
        self._try(super().log_trial_end, trial, failed)

    def _try(self, log: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            log(*arguments)
        except Exception as error:
            self.failed = True
            self._note(error)

    def _note(self, error: Exception) -> None:
        if self.progress is not None:
            told = f"{self.service} failed, and the run continues without it: {first_sentence(error)}"
            self.progress.info(redact(told))


def first_sentence(error: Exception) -> str:
    """Returns the first sentence of an error's message, in one line."""
    return " ".join(str(error).split()).split(". ")[0][:300]
