"""What is wrong with the inputs, one row at a time: listed together, then refused or left out as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from momkd_ray import storage
from momkd_ray.errors import InputError

OnError = Literal["stop", "skip"]
"""Bad inputs end the command (after all are listed), or are left out and listed beside its results."""

Problem = Literal[
    "missing",  # no such file
    "missing value",  # a blank cell where a value is needed
    "unreadable",  # damaged, or of a format that is not known
    "truncated",  # ends before it should
    "empty",  # no bytes, no patches, no genes
    "not a number",  # text in a cell of numbers
    "not finite",  # NaN or inf, or beyond the precision it is kept at
    "constant",  # all patches or all genes are the same
    "duplicated",  # named twice, or the content of another
    "misshapen",  # shapes, columns or types that do not fit
    "mixed",  # another encoder or width than the rest
    "unmatched",  # nothing that belongs to it
    "on two sides",  # of one split
    "of one class",  # where two are needed
    "of few",  # so few patients that they tell little
    "unusable",  # a table or split as a whole
]

Kind = Literal["patient", "slide", "omics", "table", "fold"]

REJECTED = "rejected.csv"
COLUMNS = ("kind", "id", "problem", "location", "reason")


@dataclass(frozen=True, order=True)
class Fault:
    """One bad input: what it is, what kind of fault it has, the file, and one sentence that says how to mend it."""

    kind: Kind
    id: str
    problem: Problem
    location: str
    reason: str


class FaultsError(InputError):
    """One sentence, and the faults behind it: an `InputError` for whoever lists all of them.

    `table` is where a table lies that cannot be used as a whole.
    """

    def __init__(self, sentence: str, faults: Sequence[Fault] = (), table: str = "") -> None:
        super().__init__(sentence)
        self.faults = tuple(faults)
        self.table = table


class FileFaultError(InputError):
    """The fault of one feature file: an `InputError` that carries what kind of fault it is."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(problem, reason)
        self.problem: Problem = problem
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def faults_table(faults: Iterable[Fault]) -> pd.DataFrame:
    """Faults as rows of `COLUMNS`, sorted."""
    return pd.DataFrame([asdict(fault) for fault in sorted(set(faults))], columns=list(COLUMNS), dtype="str")


def record_faults(faults: Sequence[Fault], what: str, place: str, on_error: OnError) -> None:
    """List faults in a CSV file, and refuse them under `stop`; without faults no list of an earlier try stays.

    Args:
        faults: what is wrong.
        what: what the faults are counted among, such as `5 feature files`.
        place: the CSV file.
        on_error: whether faults end the command.

    Raises:
        InputError: there is a fault, and `on_error` is `stop`.
    """
    if faults:
        storage.write_text(place, faults_table(faults).to_csv(index=False, lineterminator="\n"))
        if on_error == "stop":
            raise_faults(faults, what, place)
    elif storage.exists(place):
        storage.delete(place)


def raise_faults(faults: Sequence[Fault], what: str, listed_in: str = "") -> None:
    """Raise the first fault's sentence, with how many there are, unless there is none.

    Args:
        faults: what is wrong.
        what: what the faults are counted among, such as `5 feature files`.
        listed_in: the file that lists all of them.

    Raises:
        FaultsError: there is a fault.
    """
    if not faults:
        return
    first = min(faults)
    where = f"; all are listed in {listed_in}" if listed_in else ""
    raise FaultsError(f"{len(faults)} of {what} cannot be used, the first: {first.reason}{where}", faults)
