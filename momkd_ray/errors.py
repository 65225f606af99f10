"""The exceptions that end a command early, and their exit codes."""

import re
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class InputError(Exception):
    """The user's input is wrong; one sentence names the file, row or key, the fault and its remedy (exit code 1)."""


class RunError(Exception):
    """The input is valid but the run could not be finished (exit code 3)."""


class DivergedError(RunError):
    """The loss became NaN or infinite, as it would on every retry."""


class StoppedError(Exception):
    """The user stopped the run, which the same command resumes (exit code 130)."""


def input_error_within(error: BaseException) -> InputError | None:
    """Returns the `InputError` that an exception of Ray or another library wraps; None if it wraps none."""
    return _within(error, InputError)


def run_error_within(error: BaseException) -> RunError | None:
    """Returns the `RunError` that an exception of Ray or another library wraps; None if it wraps none."""
    return _within(error, RunError)


def diverged_error_within(error: BaseException) -> DivergedError | None:
    """Returns the `DivergedError` that an exception of Ray wraps; None if it wraps none."""
    return _within(error, DivergedError)


def as_user_error(failure: str, error: BaseException) -> InputError | RunError:
    """Converts an exception of Ray about a failed task to the one to raise for the user.

    Args:
        failure: beginning of the sentence, such as `the slides could not be predicted`.
        error: the exception.

    Returns:
        The `InputError` that it wraps; or else a `RunError` that begins with `failure` and gives the cause.
    """
    if input_error := input_error_within(error):
        return input_error
    run_error = run_error_within(error)
    lines = _without_advice(str(error)).strip().splitlines() or [type(error).__name__]
    return RunError(f"{failure}: {run_error or lines[-1]}")


def _within(error: BaseException, kind: type[E]) -> E | None:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, kind):
            # Ray's exception for a task has its cause's type too, but its text is the task's entire traceback
            cause = getattr(current, "cause", None)
            found = cause if isinstance(cause, kind) else current
            found.args = tuple(_without_advice(part) if isinstance(part, str) else part for part in found.args)
            return found
        if kind is InputError and isinstance(current, RunError) and not hasattr(current, "cause"):
            continue  # what looked like bad input was the machine's failure, as whoever raised this has found
        queue += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        # Ray Train collects its workers' exceptions by rank
        queue += [*getattr(current, "worker_failures", {}).values(), getattr(current, "controller_failure", None)]
    # Ray Data keeps only the text of a task's exception
    sentences = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.*)$", str(error), re.MULTILINE)
    return kind(sentences[-1]) if sentences else None


def _without_advice(text: str) -> str:
    """Removes what Ray Data appends to the text of a task's exception: its attempts, and how to change their number."""
    return re.sub(r"\n?Failed to [^\n]* after \d+/\d+ attempts \(total backoff .*", "", text, flags=re.DOTALL)
