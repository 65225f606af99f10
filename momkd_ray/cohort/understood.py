"""What was recognised about the inputs rather than declared: layouts, identifiers, labels, with counts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Topic = Literal["layout", "identifiers", "columns", "labels", "omics", "split", "features"]


@dataclass(frozen=True)
class Understood:
    """Something that was recognised about an input, for `audit` and a run's provenance.

    Attributes:
        location: the file or folder.
        topic: what it is about.
        what: a clause with its counts, such as `4 comment lines above the header are skipped`.
        count: number of rows, cells or identifiers that it concerns.
        warning: whether it is likely to be a mistake, so that it is said first.
    """

    location: str
    topic: Topic
    what: str
    count: int = 0
    warning: bool = False

    def sentence(self) -> str:
        """Returns it as a sentence that begins with the file's name."""
        return f"{posixpath.basename(self.location.rstrip('/'))}: {self.what}."


def in_order(entries: Iterable[Understood]) -> tuple[Understood, ...]:
    """Returns the entries without repetitions, warnings first, otherwise in their order."""
    unique = dict.fromkeys(entries)
    return tuple(sorted(unique, key=lambda entry: not entry.warning))
