"""Everything that is wrong with the inputs, found in one pass of Ray Data over all of them, and what would remain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.arrays import Precision
from momkd_ray.bags.ingest import doubles, form_of, odd_ones
from momkd_ray.bags.pool import done_by_pool
from momkd_ray.bags.readers import Recipe, read_bag
from momkd_ray.bags.store import digest, to_row
from momkd_ray.cohort.folds import FoldPlan, make_folds
from momkd_ray.cohort.splits import ROLES
from momkd_ray.cohort.tables import Cohort, load_cohort
from momkd_ray.config import Config
from momkd_ray.errors import InputError
from momkd_ray.faults import Fault, FileFaultError, faults_table

SHOWN = 40  # faults on the terminal; the files have all
_SLIDES_PER_PIECE = 8


@dataclass(frozen=True)
class Findings:
    """What an audit found.

    faults: everything that is wrong, sorted.
    excluded: what the configuration leaves out by choice, each reason with its number.
    remaining: patients a class, slides, patches and patients with omics, once all that is wrong is left out.
    folds: rows `fold, role, <class> ...` in patients of what remains; empty where no folds can be made.
    """

    faults: tuple[Fault, ...]
    excluded: dict[str, int]
    remaining: dict[str, Any]
    folds: pd.DataFrame
    impossible: str = ""  # why nothing can be trained on what remains

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and there is enough to train on."""
        return not self.faults and not self.impossible

    def verdict(self) -> str:
        """One sentence."""
        counts = Counter(f"{fault.problem} {fault.kind}" for fault in self.faults)
        parts = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
        wrong = f"the audit found {len(self.faults)} faults ({parts})" if self.faults else "the audit found no fault"
        return f"{wrong}; {self.impossible}" if self.impossible else wrong

    def write(self, folder: str) -> None:
        """Write `audit.csv` (a fault a row) and `audit.json` (the same, and what remains)."""
        storage.write_text(
            storage.join(folder, "audit.csv"), faults_table(self.faults).to_csv(index=False, lineterminator="\n")
        )
        content = {
            "ok": self.ok,
            "verdict": self.verdict(),
            "faults": [asdict(fault) for fault in self.faults],
            "excluded": self.excluded,
            "remaining": self.remaining,
            "folds": self.folds.to_dict("records"),
        }
        storage.write_json(storage.join(folder, "audit.json"), content)

    def text(self) -> str:
        """The tables, in plain text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for fault in self.faults[:SHOWN]:
            yield f"{fault.problem:<11} {fault.kind:<8} {fault.id}: {fault.reason}"
        if len(self.faults) > SHOWN:
            yield f"... and {len(self.faults) - SHOWN:,} more"
        if self.faults:
            yield ""
        by_problem = Counter((fault.problem, fault.kind) for fault in self.faults)
        if by_problem:
            table = pd.DataFrame([(*key, n) for key, n in sorted(by_problem.items())], columns=["problem", "of", "n"])
            yield from (table.to_string(index=False), "")
        for reason, n in self.excluded.items():
            yield f"Left out by the configuration: {n:,} ({reason})"
        remaining = ", ".join(f"{value:,} {name}" for name, value in self.remaining.items())
        yield f"What remains: {remaining or 'nothing to train on'}"
        if len(self.folds):
            yield from ("", self.folds.to_string(index=False))
        yield from ("", self.verdict()[:1].upper() + self.verdict()[1:] + ".")


def audit_inputs(config: Config, on_progress: Callable[[int, int], None]) -> Findings:
    """Read every table and every feature file once; Ray must be up.

    Args:
        config: says where the inputs are and what becomes of them.
        on_progress: called with the slides done and their total.

    Raises:
        InputError: a whole table cannot be read, so that there is nothing to audit.
        RunError: storage stayed away.
    """
    cohort = load_cohort(config, on_error="skip")
    faults = list(cohort.rejected) + _unmatched(config, cohort)
    facts = _facts(config, cohort.slides, on_progress)
    bad = [Fault(**fault) for row in facts for fault in row["faults"]]
    good = {row["slide_id"]: row for row in facts if not row["faults"]}
    bad += odd_ones(good, cohort.slides, None) + doubles(good, cohort.slides)
    excluded = cohort.excluded[cohort.excluded["problem"] == ""]
    choice = Counter(f"{kind}: {why}" for kind, why in zip(excluded["kind"], excluded["reason"], strict=True))
    remaining: dict[str, Any] = {}
    folds, impossible = pd.DataFrame(), ""
    try:
        left = cohort.without_slides(bad)
        remaining = _remaining(left, good)
        plan = make_folds(config, left, on_error="skip")
        faults += plan.rejected
        folds = _per_fold(plan, left)
    except InputError as error:
        impossible = f"what remains cannot be cross-validated: {error}"
    return Findings(tuple(sorted({*faults, *bad})), dict(sorted(choice.items())), remaining, folds, impossible)


def _unmatched(config: Config, cohort: Cohort) -> list[Fault]:
    """Rows and feature files that belong to nothing."""
    rows = cohort.excluded[cohort.excluded["problem"] != ""]
    location = {"patient": config.cohort.clinical, "slide": config.cohort.slides or config.cohort.clinical}
    location["omics"] = config.cohort.omics or ""
    faults = [
        Fault(row["kind"], row["id"], row["problem"], place, f"{place}: {row['kind']} {row['id']}: {row['reason']}")
        for row in rows.to_dict("records")
        for place in [location[row["kind"]]]
    ]
    return faults + [
        Fault(
            "slide",
            name,
            "unmatched",
            storage.join(config.features.dir, name),
            f"{storage.join(config.features.dir, name)} is of no slide in {location['slide']}; add its row, or move "
            "the file away",
        )
        for name in cohort.strays
    ]


def _facts(config: Config, slides: pd.DataFrame, on_progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Of every slide what its feature file holds, or its faults."""
    form = form_of(config)
    recipe = Recipe(form.neighbors, form.graph, config.features.format)
    rows = slides[["slide_id", "path", "file"]].to_dict("records")
    pieces = [json.dumps(rows[i : i + _SLIDES_PER_PIECE]) for i in range(0, len(rows), _SLIDES_PER_PIECE)]
    facts: list[dict[str, Any]] = []
    on_progress(0, len(rows))
    for done in done_by_pool(pieces, _looked_at, "the audit could not be finished", recipe=recipe, dtype=form.dtype):
        facts += json.loads(done)
        on_progress(len(facts), len(rows))
    return sorted(facts, key=lambda fact: str(fact["slide_id"]))


def _looked_at(slides: str, recipe: Recipe, dtype: Precision) -> str:
    """What some slides hold, each read whole and as it would be stored."""
    facts: list[dict[str, Any]] = []
    for slide in json.loads(slides):
        slide_id, path = slide["slide_id"], slide["path"]
        fact: dict[str, Any] = {"slide_id": slide_id, "faults": []}
        try:
            if not slide["file"]:
                raise FileFaultError("missing", f"there is no feature file {path}; extract it or leave the slide out")
            bag = read_bag(path, slide_id, recipe, dtype=dtype)
            fact |= {"width": bag.width, "encoder": bag.provenance.get("encoder"), "n_patches": bag.n_patches}
            fact |= {"sha256": digest(to_row(bag))}
            del bag  # or two of the largest bags would be in memory at a time
        except FileFaultError as error:
            fact["faults"] = [asdict(Fault("slide", slide_id, error.problem, path, str(error)))]
        facts.append(fact)
    return json.dumps(facts)


def _remaining(cohort: Cohort, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    per_class = {f"{name} patients": int((cohort.patients["label"] == name).sum()) for name in cohort.classes}
    return per_class | {
        "slides": len(cohort.slides),
        "patches": sum(int(facts[slide_id]["n_patches"]) for slide_id in cohort.slides["slide_id"]),
        "patients with omics": 0 if cohort.omics is None else len(cohort.omics),
    }


def _per_fold(plan: FoldPlan, cohort: Cohort) -> pd.DataFrame:
    """Patients of each class in each role of each fold."""
    rows: list[dict[str, Any]] = []
    for fold in plan.folds:
        roles = plan.roles(fold)
        for role in ROLES:
            labels = cohort.patients["label"].loc[roles.index[roles == role]]
            rows.append({"fold": fold, "role": role} | {name: int((labels == name).sum()) for name in cohort.classes})
    return pd.DataFrame(rows)
