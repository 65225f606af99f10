"""Splits in every layout that is imported, written for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.config.load import Config
from support.written_tables import config_for

Assigned = Mapping[int, Mapping[str, str]]


def fold_config(tmp_path: Path = Path("/none"), **folds: object) -> Config:
    return config_for(tmp_path, folds=folds)


KINDS = ("STAMP", "CLAM", "Patho-Bench", "folds.csv")


def study_cohort(folder: Path, patients: int = 16) -> tuple[Config, Cohort]:
    """Patients P00, P01, ..., every third one with two slides, in one table with a row a slide."""
    rows = [
        (f"P{i:02}", f"S{i:02}{letter}", ("negative", "positive")[i % 2])
        for i in range(patients)
        for letter in ("ab" if i % 3 == 0 else "a")
    ]
    pd.DataFrame(rows, columns=["case_id", "slide_id", "PR"]).to_csv(folder / "one.csv", index=False)
    config = config_for(folder, cohort={"clinical": str(folder / "one.csv"), "slides": None})
    return config, load_cohort(config)


def write_split(folder: Path, kind: str, roles: Assigned, cohort: Cohort, seed: int = 0) -> str:
    """The split as a tool writes it, its rows in the order that the seed gives; returns where."""
    order = random.Random(seed)
    names = list(cohort.patients.index)
    order.shuffle(names)
    if kind == "STAMP":
        splits = []
        for own in roles.values():
            lists = {part: [name for name in names if own.get(name) == part] for part in ("train", "test")}
            splits.append({f"{part}_patients": [*found, f"stranger-{part}"] for part, found in lists.items()})
        (folder / "splits.json").write_text(json.dumps({"splits": splits}))
        return str(folder / "splits.json")
    slides = cohort.slides.sample(frac=1, random_state=seed)
    if kind == "CLAM":
        place = folder / "task_100"
        place.mkdir(exist_ok=True)
        for fold, own in roles.items():
            lists = [
                slides.loc[slides["patient_id"].map(own.get) == part, "slide_id"] for part in ("train", "val", "test")
            ]
            wide = pd.concat([part.reset_index(drop=True) for part in lists], axis=1, keys=["train", "val", "test"])
            wide.to_csv(place / f"splits_{fold}.csv")
            (place / f"splits_{fold}_bool.csv").write_text(",train,val,test\nS00a,True,False,False\n")
            (place / f"splits_{fold}_descriptor.csv").write_text(",train,val,test\nnegative,1,1,1\n")
        return str(place)
    if kind == "Patho-Bench":
        table = slides[["patient_id", "slide_id"]].rename(columns={"patient_id": "case_id"}).assign(PR="x")
        for fold, own in roles.items():
            table[f"fold_{fold}"] = table["case_id"].map(own.get)
        table.to_csv(folder / "k=all.tsv", sep="\t", index=False)
        return str(folder / "k=all.tsv")
    table = pd.DataFrame({f"role_{fold}": {name: own.get(name) for name in names} for fold, own in roles.items()})
    table.loc[names].to_csv(folder / "folds.csv", index_label="PATIENT")
    return str(folder / "folds.csv")


def with_file(config: Config, path: str, **folds: object) -> Config:
    return config.model_copy(update={"folds": config.folds.model_copy(update={"file": path} | folds)})


def partition(names: Sequence[str], folds: int = 2) -> dict[int, dict[str, str]]:
    return {
        fold: {name: "test" if i // 2 % folds == fold else "train" for i, name in enumerate(names)}
        for fold in range(folds)
    }
