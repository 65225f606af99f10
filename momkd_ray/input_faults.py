"""Faults of the inputs: collected, listed in a CSV file, and then raised together or left out, as the user chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError

OnError = Literal["stop", "skip"]
"""Whether bad inputs end the command, after all are listed, or are left out and listed beside its results."""

Problem = Literal[
    "missing",  # no such file
    "missing value",  # a blank cell where a value is needed
    "unreadable",  # damaged, or of an unknown format
    "truncated",  # ends too early
    "empty",  # no bytes, no patches, no genes
    "not a number",  # text in a numeric cell
    "not finite",  # NaN, infinity, or out of range at the stored precision
    "constant",  # all patches or all genes are equal
    "duplicated",  # listed twice, or with the content of another
    "misshapen",  # shapes, columns or types that do not agree
    "mixed",  # another encoder or width than the others
    "unmatched",  # without a counterpart
    "on two sides",  # on two sides of one split
    "of one class",  # of one class where two are needed
    "of few",  # of too few patients for a meaningful figure
    "unusable",  # an entire table or split
    "open elsewhere",  # locked by another program; no fault of the file, and never left out
]

OPEN_ELSEWHERE: Problem = "open elsewhere"

Kind = Literal["patient", "slide", "omics", "table", "fold"]

REJECTED = "rejected.csv"
SKIP = "--on-error skip"
GO_ON = f"correct them, or go on without them by {SKIP}"
COLUMNS = ("kind", "id", "problem", "location", "reason")


@dataclass(frozen=True, order=True)
class Fault:
    """One bad input: its kind and id, the kind of fault, the file, and a sentence that also says how to correct it."""

    kind: Kind
    id: str
    problem: Problem
    location: str
    reason: str


class FaultsError(InputError):
    """An `InputError` that carries all the faults that its sentence summarises.

    Attributes:
        faults: all of them.
        table: location of the table, if an entire table cannot be used.
    """

    def __init__(self, sentence: str, faults: Sequence[Fault] = (), table: str = "") -> None:
        super().__init__(sentence)
        self.faults = tuple(faults)
        self.table = table


class FileFaultError(InputError):
    """An `InputError` about one file, of a slide or its picture, that carries the kind of fault."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(problem, reason)
        self.problem: Problem = problem
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@contextmanager
def faults_of_table(path: str) -> Iterator[None]:
    """Adds the table's path to input errors raised within the block."""
    try:
        yield
    except InputError as error:
        raise FaultsError(str(error), error.faults if isinstance(error, FaultsError) else (), path) from error


def faults_table(faults: Iterable[Fault]) -> pd.DataFrame:
    """Returns faults as a sorted table with the columns `COLUMNS`, without repetitions."""
    return pd.DataFrame([asdict(fault) for fault in sorted(set(faults))], columns=list(COLUMNS), dtype="str")


def record_faults(
    faults: Sequence[Fault], total: str, location: str, on_error: OnError, *, some_left: bool = True
) -> None:
    """Lists faults in a CSV file and, under `stop`, raises them; without faults removes the list of an earlier run.

    Args:
        faults: the faults, which may be none.
        total: the inputs that were checked, such as `5 feature files`.
        location: the CSV file.
        on_error: whether faults end the command.
        some_left: whether there are other inputs, so that the command could go on without these.

    Raises:
        InputError: there is a fault, and `on_error` is `stop`.
        RunError: a file is open for writing elsewhere, which says nothing about the file.
    """
    if faults:
        storage.write_text(location, faults_table(faults).to_csv(index=False, lineterminator="\n"))
        if on_error == "stop":
            raise_faults(faults, total, location, GO_ON if some_left else "")
        raise_open_elsewhere(faults, total)
    elif storage.exists(location):
        storage.delete(location)


def raise_faults(faults: Sequence[Fault], total: str, listed_in: str = "", cure: str = "") -> None:
    """Raises the first fault's sentence with the number of faults; does nothing if there are none.

    Args:
        faults: the faults.
        total: the inputs that were checked, such as `5 feature files`.
        listed_in: the file that lists all of them.
        cure: what to do about all of them, beside the first one's own cure.

    Raises:
        FaultsError: there is a fault.
        RunError: all of them are files that are open for writing elsewhere.
    """
    if not faults:
        return
    if all(fault.problem == OPEN_ELSEWHERE for fault in faults):
        raise_open_elsewhere(faults, total)
    first = min(faults)
    listing = f"; all are listed in {listed_in}" if listed_in else ""
    cure = f"; {cure}" if cure else ""
    raise FaultsError(f"{len(faults)} of {total} cannot be used, the first: {first.reason}{listing}{cure}", faults)


def raise_open_elsewhere(faults: Sequence[Fault], total: str) -> None:
    """Raises `RunError` if a file is open for writing in another program: such a file is never left out."""
    held = [fault for fault in faults if fault.problem == OPEN_ELSEWHERE]
    if held:
        raise RunError(f"{len(held)} of {total} cannot be read now, and are not left out: {min(held).reason}")
