"""The ways a run ends early, and the exit codes they carry."""

from __future__ import annotations

from collections.abc import Iterator


class InputError(Exception):
    """The user's input is wrong: one sentence naming the file, row or key, the fault and its remedy (exit 1)."""


class RunError(Exception):
    """The input was good but the run could not be finished (exit 3)."""


class StoppedError(Exception):
    """The user stopped the run, which can go on (exit 130)."""


def input_error_within(error: BaseException) -> InputError | None:
    """The `InputError` behind an exception that Ray or another library has wrapped, if there is one."""
    return next((one for one in _behind(error) if isinstance(one, InputError)), None)


def run_error_within(error: BaseException, what: str) -> RunError:
    """The `RunError` behind an exception that Ray has wrapped, or else one that says what failed and its cause."""
    found = next((one for one in _behind(error) if isinstance(one, RunError)), None)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return RunError(f"{what}: {str(found) if found else lines[-1]}")


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        queue += [one.__cause__, one.__context__, getattr(one, "cause", None)]
        # Ray Train gathers its workers' exceptions by rank
        queue += [*getattr(one, "worker_failures", {}).values(), getattr(one, "controller_failure", None)]
