"""Estimates when a cross-validation ends, from the folds that it has finished."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """Times folds from their start to their result, with initialisation and refit, and estimates the rest.

    A fold that was resumed has taken less than a whole one and does not count.

    Args:
        total: number of folds to train.
        now: a clock in seconds.
    """

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self._now = total, now
        self._started: dict[str, float] = {}
        self._resumed: set[str] = set()
        self._seconds: list[float] = []
        self._side_by_side = 1
        self.n_ended = 0

    def start(self, trial: str) -> None:
        """Notes that a fold's process starts, or starts again."""
        if trial in self._started:
            self._resumed.add(trial)
        self._started[trial] = self._now()
        self._side_by_side = max(self._side_by_side, len(self._started))

    def resumed(self, trial: str) -> None:
        """Notes that a fold did not begin with its first epoch."""
        self._resumed.add(trial)

    def end(self, trial: str) -> None:
        """Notes that a fold has ended."""
        self.n_ended += 1
        started = self._started.pop(trial, None)
        if started is not None and trial not in self._resumed:
            self._seconds.append(self._now() - started)

    def seconds(self) -> float | None:
        """Returns the seconds until the last fold ends; None before a whole fold has ended or if none is left."""
        if not self._seconds or self.n_ended >= self.total:
            return None
        whole, now = sum(self._seconds) / len(self._seconds), self._now()
        waiting = max(0, self.total - self.n_ended - len(self._started))
        running = sum(max(0.0, whole - (now - started)) for started in self._started.values())
        return (waiting * whole + running) / max(1, min(self._side_by_side, waiting + len(self._started)))
