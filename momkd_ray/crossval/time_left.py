"""Estimates when a cross-validation or a comparison ends, from the folds that it has finished."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping


class TimeLeft:
    """Times folds from their start to their result, with initialisation and refit, and estimates the rest.

    Folds of one model take about as long as each other, and those of another may take thirty times as long. A model of
    which no fold has ended is taken for the mean of the others.
    A fold that was resumed has taken less than a whole one and does not count.

    Args:
        folds: number of folds to train of each model.
        now: a clock in seconds.
    """

    def __init__(self, folds: Mapping[str, int], now: Callable[[], float] = time.monotonic) -> None:
        self.total, self._now = sum(folds.values()), now
        self._waiting = Counter(folds)
        self._running: dict[str, tuple[str, float]] = {}  # model and start of each fold, by trial
        self._resumed: set[str] = set()
        self._seconds: dict[str, list[float]] = {}  # of whole folds, by model
        self._side_by_side = 1
        self.n_ended = 0

    def start(self, trial: str, model: str) -> None:
        """Notes that a fold's process starts, or starts again."""
        if trial in self._running:
            self._resumed.add(trial)
        else:
            self._waiting[model] -= 1
        self._running[trial] = model, self._now()
        self._side_by_side = max(self._side_by_side, len(self._running))

    def resumed(self, trial: str) -> None:
        """Notes that a fold did not begin with its first epoch."""
        self._resumed.add(trial)

    def end(self, trial: str) -> None:
        """Notes that a fold has ended."""
        self.n_ended += 1
        if trial not in self._running:
            return
        model, started = self._running.pop(trial)
        if trial not in self._resumed:
            self._seconds.setdefault(model, []).append(self._now() - started)

    def seconds(self) -> float | None:
        """Returns the seconds until the last fold ends; None before a whole fold has ended or if none is left."""
        if not self._seconds or self.n_ended >= self.total:
            return None
        whole = {model: sum(seconds) / len(seconds) for model, seconds in self._seconds.items()}
        other, now = sum(whole.values()) / len(whole), self._now()
        waiting = +self._waiting  # no count below zero
        work = sum(n * whole.get(model, other) for model, n in waiting.items())
        work += sum(max(0.0, whole.get(model, other) - (now - start)) for model, start in self._running.values())
        return work / max(1, min(self._side_by_side, waiting.total() + len(self._running)))
