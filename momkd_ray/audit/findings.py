"""The findings of an audit, as text, as a table and as JSON."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.fold_checks import folds_text
from momkd_ray.cohort.understood import Understood, in_order
from momkd_ray.input_faults import Fault, faults_table

SHOWN = 40  # faults on the terminal; the files have all


@dataclass(frozen=True)
class Findings:
    """The result of an audit.

    Attributes:
        faults: all faults, sorted; the other verbs stop at any of them.
        features: folder of the feature files.
        notes: things that stop nothing, sorted: entries that match nothing, and folds with few patients.
        sentences: on the notes, and on what the configuration excludes.
        excluded: numbers of excluded entries by reason.
        remaining: patients per class, slides, patches and patients with omics without the bad inputs.
        folds: rows `fold, role, <class> ..., with omics`: numbers of patients that remain, the last for training
            patients only; empty if no folds can be made.
        impossible: why nothing can be trained on what remains; '' if something can.
        understood: what was recognised about the inputs rather than declared.
    """

    faults: tuple[Fault, ...]
    features: str
    notes: tuple[Fault, ...] = ()
    sentences: tuple[str, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    remaining: dict[str, Any] = field(default_factory=dict)
    folds: pd.DataFrame = field(default_factory=pd.DataFrame)
    impossible: str = ""
    understood: tuple[Understood, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no faults, and enough remains to train on."""
        return not self.faults and not self.impossible

    def verdict(self) -> str:
        """Summarises the findings in one sentence."""
        counts = Counter((fault.kind, fault.problem) for fault in self.faults)
        parts = ", ".join(f"{n} {kind} {problem}" for (kind, problem), n in sorted(counts.items()))
        wrong = f"{_number(len(self.faults), 'fault')} ({parts})" if self.faults else "no fault"
        stop = "stops" if len(self.notes) == 1 else "stop"
        notes = f"{_number(len(self.notes), 'note')} {stop} nothing" if self.notes else ""
        return "; ".join(part for part in (f"the audit found {wrong}", notes, self.impossible) if part)

    def table(self) -> pd.DataFrame:
        """Tabulates faults, notes and what was recognised, one per row, with their `level`."""
        levels = {"fault": self.faults, "note": self.notes}
        parts = [faults_table(entries).assign(level=level) for level, entries in levels.items()]
        columns = ["level", *parts[0].columns[:-1]]
        rows = [
            ("understood", entry.topic, _base_name(entry.location), "", entry.location, entry.sentence())
            for entry in in_order(self.understood)
        ]
        return pd.concat([*parts, pd.DataFrame(rows, columns=columns, dtype="str")], ignore_index=True)[columns]

    def write(self, folder: str) -> None:
        """Writes `audit.csv` (faults, notes and what was recognised) and `audit.json` (also what remains)."""
        storage.write_text(storage.join(folder, "audit.csv"), self.table().to_csv(index=False, lineterminator="\n"))
        storage.write_json(storage.join(folder, "audit.json"), self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `audit.json`."""
        return {
            "ok": self.ok,
            "verdict": self.verdict(),
            "faults": [asdict(fault) for fault in self.faults],
            "notes": [asdict(note) for note in self.notes],
            "understood": [asdict(entry) for entry in in_order(self.understood)],
            "excluded": self.excluded,
            "remaining": self.remaining,
            "folds": self.folds.to_dict("records"),
        }

    def text(self) -> str:
        """Formats the findings as plain text."""
        return "\n".join(self._lines())

    def listing(self, location: str) -> str:
        """Returns a line that says which findings the table at a location lists."""
        what = "All faults, notes and what was recognised" if self.faults else "Notes and what was recognised"
        return f"{what}: {location}"

    def _lines(self) -> Iterator[str]:
        folder = f"{self.features.rstrip('/')}/"
        warnings = [entry.sentence() for entry in in_order(self.understood) if entry.warning]
        if warnings:
            yield from (*warnings, "")
        for fault in self.faults[:SHOWN]:
            reason = fault.reason.replace(folder, "") if fault.kind == "slide" else fault.reason
            prefix = "" if fault.id in reason else f"{fault.id}: "
            yield f"{fault.problem:<13} {fault.kind:<8} {prefix}{reason}"
        if len(self.faults) > SHOWN:
            yield f"... and {len(self.faults) - SHOWN:,} more"
        if self.faults:
            yield ""
        if any(fault.kind == "slide" and folder in fault.reason for fault in self.faults[:SHOWN]):
            yield from (f"Names of feature files are relative to {folder}", "")
        by_problem = Counter((fault.problem, fault.kind) for fault in self.faults)
        if by_problem:
            table = pd.DataFrame([(*key, n) for key, n in sorted(by_problem.items())], columns=["problem", "of", "n"])
            yield from (table.to_string(index=False), "")
        recognised = [entry.sentence() for entry in in_order(self.understood) if not entry.warning]
        if recognised:
            yield from (*recognised, "")
        if self.sentences:
            yield from (*self.sentences, "")
        remaining = ", ".join(f"{value:,} {name}" for name, value in self.remaining.items())
        yield f"What remains: {remaining or 'nothing to train on'}"
        if len(self.folds):
            yield from ("", folds_text(self.folds))
        yield from ("", self.verdict()[:1].upper() + self.verdict()[1:] + ".")


def _base_name(location: str) -> str:
    return posixpath.basename(location.rstrip("/"))


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
