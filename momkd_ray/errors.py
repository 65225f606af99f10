"""The ways a run ends early, and the exit codes they carry."""

import re
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class InputError(Exception):
    """The user's input is wrong: one sentence naming the file, row or key, the fault and its remedy (exit 1)."""


class RunError(Exception):
    """The input was good but the run could not be finished (exit 3)."""


class DivergedError(RunError):
    """Training left the finite numbers, and would again."""


class StoppedError(Exception):
    """The user stopped the run, which can go on (exit 130)."""


def input_error_within(error: BaseException) -> InputError | None:
    """The `InputError` behind an exception that Ray or another library has wrapped, if there is one."""
    return _within(error, InputError)


def run_error_within(error: BaseException) -> RunError | None:
    """The `RunError` behind an exception that Ray or another library has wrapped, if there is one."""
    return _within(error, RunError)


def diverged_error_within(error: BaseException) -> DivergedError | None:
    """The `DivergedError` behind an exception that Ray has wrapped, if there is one."""
    return _within(error, DivergedError)


def as_user_error(what: str, error: BaseException) -> InputError | RunError:
    """What to raise where Ray says that a task failed: the sentence behind it, or else one that tells its cause."""
    if wrong := input_error_within(error):
        return wrong
    found = run_error_within(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return RunError(f"{what}: {found or lines[-1]}")


def _within(error: BaseException, kind: type[E]) -> E | None:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, kind):
            # what Ray raises for a task is of its cause's type too, but its text is the task's whole traceback
            cause = getattr(one, "cause", None)
            return cause if isinstance(cause, kind) else one
        queue += [one.__cause__, one.__context__, getattr(one, "cause", None)]
        # Ray Train gathers its workers' exceptions by rank
        queue += [*getattr(one, "worker_failures", {}).values(), getattr(one, "controller_failure", None)]
    # Ray Data keeps of what a task raised only the text
    told = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.*)$", str(error), re.MULTILINE)
    return kind(told[-1]) if told else None
