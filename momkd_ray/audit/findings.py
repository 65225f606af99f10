"""What an audit found: in words, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.input_faults import Fault, faults_table

SHOWN = 40  # faults on the terminal; the files have all


@dataclass(frozen=True)
class Findings:
    """What an audit found.

    faults: everything that is wrong, sorted: the other verbs stop at it.
    features: the folder of the feature files.
    notes: what they pass over, sorted: entries that match nothing, and folds that tell little.
    told: sentences on these, and on what the configuration leaves out.
    excluded: what the configuration leaves out, and what follows from faults: each reason with its number.
    remaining: patients a class, slides, patches and patients with omics, once all that is wrong is left out.
    folds: rows `fold, role, <class> ..., with omics` in patients of what remains, the last of those who train alone;
        empty where no folds can be made.
    """

    faults: tuple[Fault, ...]
    features: str
    notes: tuple[Fault, ...] = ()
    told: tuple[str, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    remaining: dict[str, Any] = field(default_factory=dict)
    folds: pd.DataFrame = field(default_factory=pd.DataFrame)
    impossible: str = ""  # why nothing can be trained on what remains

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and there is enough to train on."""
        return not self.faults and not self.impossible

    def verdict(self) -> str:
        """One sentence."""
        counts = Counter((fault.kind, fault.problem) for fault in self.faults)
        parts = ", ".join(f"{n} {kind} {problem}" for (kind, problem), n in sorted(counts.items()))
        wrong = f"{_number(len(self.faults), 'fault')} ({parts})" if self.faults else "no fault"
        stop = "stops" if len(self.notes) == 1 else "stop"
        notes = f"{_number(len(self.notes), 'note')} {stop} nothing" if self.notes else ""
        return "; ".join(part for part in (f"the audit found {wrong}", notes, self.impossible) if part)

    def table(self) -> pd.DataFrame:
        """A fault or note a row, with its `level`."""
        levels = {"fault": self.faults, "note": self.notes}
        parts = [faults_table(found).assign(level=level) for level, found in levels.items()]
        return pd.concat(parts, ignore_index=True)[["level", *parts[0].columns[:-1]]]

    def write(self, folder: str) -> None:
        """Write `audit.csv` (a fault or note a row) and `audit.json` (the same, and what remains)."""
        storage.write_text(storage.join(folder, "audit.csv"), self.table().to_csv(index=False, lineterminator="\n"))
        content = {
            "ok": self.ok,
            "verdict": self.verdict(),
            "faults": [asdict(fault) for fault in self.faults],
            "notes": [asdict(note) for note in self.notes],
            "excluded": self.excluded,
            "remaining": self.remaining,
            "folds": self.folds.to_dict("records"),
        }
        storage.write_json(storage.join(folder, "audit.json"), content)

    def text(self) -> str:
        """The tables, in plain text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        folder = f"{self.features.rstrip('/')}/"
        for fault in self.faults[:SHOWN]:
            reason = fault.reason.replace(folder, "")
            whose = "" if fault.id in reason else f"{fault.id}: "
            yield f"{fault.problem:<13} {fault.kind:<8} {whose}{reason}"
        if len(self.faults) > SHOWN:
            yield f"... and {len(self.faults) - SHOWN:,} more"
        if self.faults:
            yield ""
        if any(folder in fault.reason for fault in self.faults[:SHOWN]):
            yield from (f"Feature files are named as in {folder}", "")
        by_problem = Counter((fault.problem, fault.kind) for fault in self.faults)
        if by_problem:
            table = pd.DataFrame([(*key, n) for key, n in sorted(by_problem.items())], columns=["problem", "of", "n"])
            yield from (table.to_string(index=False), "")
        if self.told:
            yield from (*self.told, "")
        remaining = ", ".join(f"{value:,} {name}" for name, value in self.remaining.items())
        yield f"What remains: {remaining or 'nothing to train on'}"
        if len(self.folds):
            yield from ("", self.folds.fillna("").to_string(index=False))
        yield from ("", self.verdict()[:1].upper() + self.verdict()[1:] + ".")


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
