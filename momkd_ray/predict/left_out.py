"""Slides that cannot be used: listed in a table and left out, or the end of the command, as the user chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from momkd_ray.input_faults import Fault, OnError, raise_faults, record_faults

_SHOWN = 10  # names in a sentence


class LeftOutSlides:
    """The slides that cannot be used, in the order in which they are found: of the table of slides, then of the files.

    Args:
        rejected: the CSV file that lists them; that of an earlier call is removed if there are none.
        on_error: whether they end the command.
    """

    def __init__(self, rejected: str, on_error: OnError) -> None:
        self.rejected = rejected
        self.on_error = on_error
        self.faults: list[Fault] = []

    def add_rows(self, faults: Sequence[Fault], total: str, *, some_left: bool) -> None:
        """Adds the faults of a table of slides; slides without a row and rows without a feature file end nothing.

        Args:
            faults: of the table, which may be none.
            total: the inputs that were checked, such as `5 feature files`.
            some_left: whether there are other slides.

        Raises:
            InputError: there is a bad row, and bad inputs end the command.
        """
        self._add(faults, total, some_left=some_left, ends=bool(bad_rows(faults)))

    def add_files(self, faults: Sequence[Fault], total: str, *, some_left: bool) -> None:
        """Adds the faults of files.

        Args:
            faults: of the files, which may be none.
            total: the inputs that were checked, such as `5 feature files`.
            some_left: whether there are other slides.

        Raises:
            InputError: there is a fault and bad inputs end the command, or no slide is left.
        """
        self._add(faults, total, some_left=some_left, ends=bool(faults))
        if not some_left:
            raise_faults(self.faults, total, self.rejected)

    def _add(self, faults: Sequence[Fault], total: str, *, some_left: bool, ends: bool) -> None:
        self.faults += faults
        record_faults(self.faults, total, self.rejected, self.on_error if ends else "skip", some_left=some_left)

    def sentence(self) -> str | None:
        """Says which slides are left out and where the reasons are; None if all are used."""
        faults = sorted(set(self.faults))
        if not faults:
            return None
        counts = Counter(fault.kind for fault in faults)
        what = " and ".join(f"{count} {kind}" if count == 1 else f"{count} {kind}s" for kind, count in counts.items())
        verb, them = ("is", "it") if len(faults) == 1 else ("are", "them")
        names = [fault.id for fault in faults]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        listing = f"{self.rejected} lists {them} with the reason"
        return f"{what} {verb} left out; {listing}: {', '.join(names[:_SHOWN])}{more}"


def inputs_checked(files: int, slides: str | None) -> str:
    """Names the inputs that faults are counted of: the feature files and, if there is one, the table of slides."""
    return f"{files} feature files" if slides is None else f"the table and {files} feature files"


def bad_rows(faults: Sequence[Fault]) -> list[Fault]:
    """Returns the faults of rows, without slides that have no row and rows that have no feature file."""
    return [fault for fault in faults if fault.problem not in ("missing", "unmatched")]


def without_counterpart(faults: Sequence[Fault], slides: str | None, left_out: str) -> list[str]:
    """Says how many slides have no row, and how many rows no feature file, with examples.

    Args:
        faults: of the table of slides.
        slides: the table.
        left_out: what is not done with them, such as `not predicted`.
    """
    sentences = []
    for problem, words in (("missing", "of {} without a feature file"), ("unmatched", "without a row in {}")):
        names = [fault.id for fault in faults if fault.problem == problem]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            count = "1 slide" if len(names) == 1 else f"{len(names)} slides"
            sentences.append(f"{count} {words.format(slides)}, {left_out}: {', '.join(names[:3])}{more}")
    return sentences
