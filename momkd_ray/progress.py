"""Reports the progress of a long command on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from momkd_ray.credentials import redact

PLAIN_LINE_EVERY_S = 10.0
# no estimate of the remaining time earlier: the first items are not representative
ESTIMATE_AFTER_S = 3.0
ESTIMATE_AFTER_SHARE = 0.03


QUIET = False  # `--quiet`: nothing is reported
VERBOSE = False  # `--verbose`: what a command chose by itself is reported too


def detail(sentence: str) -> None:
    """Prints a line that only `--verbose` shows."""
    if VERBOSE:
        print(redact(sentence), file=sys.stderr, flush=True)


class ProgressReporter:
    """Prints messages, and a progress bar or lines for each named count."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=QUIET)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        # time and count from which the pace is measured: the first items wait for processes to start
        self._pace_start: dict[str, tuple[float, int]] = {}
        self._first_count: dict[str, int] = {}

    def __enter__(self) -> ProgressReporter:
        if self.console.is_terminal and not QUIET:
            columns = ("[progress.description]{task.description}", "{task.fields[note]}")
            self._bars = Progress(
                TextColumn(columns[0]),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn(columns[1]),
                console=self.console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def info(self, sentence: str) -> None:
        """Prints one line, above any bars."""
        self.console.print(redact(sentence), markup=False)

    def update(
        self, name: str, done: int, total: int, note: str = "", *, left_s: float | Literal["pace"] | None = "pace"
    ) -> None:
        """Shows that `done` of `total` are done, and an estimate of the remaining time.

        Without a terminal it prints a line at most every ten seconds, and the last one.

        Args:
            name: of the count.
            done: number of items done.
            total: of all items.
            note: shown behind them.
            left_s: seconds that remain, None if it is not known; `pace` estimates them from the items so far.
        """
        now = time.monotonic()
        if left_s == "pace":
            if done > self._first_count.setdefault(name, done):
                self._pace_start.setdefault(name, (now, done))
            started, first_done = self._pace_start.get(name, (now, done))
            left = _time_left(done - first_done, total - done, now - started)
        else:
            left = "" if left_s is None or left_s < 1 or done >= total else _left(left_s)
        if self._bars is not None:
            left = left.removeprefix(", ")
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, note=note, left=left)
            self._bars.update(self._tasks[name], completed=done, total=total, note=note, left=left)
            return
        if not QUIET and (done >= total or now - self._last_line.get(name, -PLAIN_LINE_EVERY_S) >= PLAIN_LINE_EVERY_S):
            self._last_line[name] = now
            print(f"{name}: {done}/{total} {note}".rstrip() + left, file=sys.stderr, flush=True)

    def end(self, name: str, note: str) -> None:
        """Shows that a count ends before its total, and why."""
        if self._bars is not None:
            if name in self._tasks:
                self._bars.update(self._tasks[name], note=note, left="")
                self._bars.stop_task(self._tasks[name])
        elif not QUIET:
            print(f"{name}: {note}", file=sys.stderr, flush=True)


def _time_left(done: int, remaining: int, seconds: float) -> str:
    """Estimates the remaining time from the pace so far; '' if it is too early or nothing remains."""
    if done <= 0 or remaining <= 0 or seconds < ESTIMATE_AFTER_S or done < ESTIMATE_AFTER_SHARE * (done + remaining):
        return ""
    return _left(seconds / done * remaining)


def _left(seconds: float) -> str:
    left = round(seconds)
    return f", about {left // 60} min {left % 60} s left" if left >= 60 else f", about {left} s left"
