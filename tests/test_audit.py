"""The audit lists all that is wrong, once, and what it leaves is what a run with `--on-error skip` uses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from test_cli import outcome

from momkd_ray.cluster import Connection
from momkd_ray.config import Config


class Cohort:
    """A copy of the tiny cohort that a test may spoil, and its configuration on disk."""

    def __init__(self, folder: Path, config: Config) -> None:
        shutil.copytree(Path(config.features.dir).parent, folder / "cohort")
        tree = config.model_dump(mode="json")
        for name in ("clinical", "slides", "omics"):
            tree["cohort"][name] = str(folder / "cohort" / Path(tree["cohort"][name]).name)
        tree["features"]["dir"] = str(folder / "cohort" / "features")
        self.config = Config.model_validate(tree)
        self.path = folder / "c.yaml"
        self.path.write_text(self.config.to_yaml())
        clinical = pd.read_csv(self.config.cohort.clinical)
        labelled = clinical[clinical["LABEL"].isin(["positive", "negative"])]["PATIENT"]
        slides = pd.read_csv(self.config.cohort.slides)
        self.slides = slides[slides["PATIENT"].isin(labelled)].reset_index(drop=True)

    def file(self, place: int) -> Path:
        return Path(self.config.features.dir) / self.slides["FILENAME"][place]

    def audited(self, *arguments: str) -> tuple[int, dict[str, Any], pd.DataFrame]:
        code = outcome("audit", "--config", str(self.path), *arguments)
        folder = Path(self.config.run.dir) / "audit"
        return code, json.loads((folder / "audit.json").read_text()), pd.read_csv(folder / "audit.csv")


@pytest.fixture
def cohort(tiny_config: Config, tmp_path: Path, ray_cluster: Connection) -> Cohort:
    return Cohort(tmp_path, tiny_config)


def edit(path: Path, **datasets: Any) -> None:
    with h5py.File(path, "r+") as file:
        for name, value in datasets.items():
            del file[name]
            file[name] = value


def test_a_clean_cohort_passes_with_its_counts(cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, table = cohort.audited()
    assert code == 0
    assert found["ok"]
    assert set(table["level"]) <= {"note"}
    assert found["remaining"]["positive patients"] + found["remaining"]["negative patients"] == 24
    folds = pd.DataFrame(found["folds"])
    assert folds.groupby("role")[["positive", "negative"]].sum().loc["test"].sum() == 24
    assert set(folds["fold"]) == {0, 1}
    said = capsys.readouterr()
    assert "The audit found no fault" in said.out
    trained = folds[folds["role"] == "train"]
    assert (trained["with omics"] <= trained["positive"] + trained["negative"]).all()
    assert found["notes"] == [note for note in found["notes"] if note["problem"] == "of few"]
    assert "audit: 27/27 slides" in said.err


def test_every_fault_is_listed_with_its_kind(cohort: Cohort) -> None:
    features = Path(cohort.config.features.dir)
    cohort.file(0).unlink()
    cohort.file(1).write_bytes(cohort.file(1).read_bytes()[:-300])
    with h5py.File(cohort.file(2), "r+") as file:
        file["features"][1, 1] = np.nan
    edit(cohort.file(3), features=np.zeros((30, 16), "f4"), coords=np.zeros((30, 2), int))
    edit(cohort.file(4), features=np.zeros((0, 16), "f4"), coords=np.zeros((0, 2), int))
    edit(cohort.file(5), coords=np.zeros((3, 2), int))
    edit(cohort.file(6), features=np.random.default_rng(0).normal(size=(5, 9)), coords=np.arange(10).reshape(5, 2))
    cohort.file(7).write_bytes(cohort.file(8).read_bytes())
    shutil.copy(cohort.file(9), features / "nobody-knows.h5")
    slides = pd.read_csv(cohort.config.cohort.slides)
    slides.loc[len(slides)] = ["NOBODY", "of-nobody.h5"]
    slides.to_csv(cohort.config.cohort.slides, index=False)
    omics = pd.read_parquet(cohort.config.cohort.omics)
    omics.iloc[0, 3] = np.inf
    omics.to_parquet(cohort.config.cohort.omics)

    code, found, table = cohort.audited()
    assert code == 1
    assert not found["ok"]
    by_id = table.groupby("id")["problem"].first()
    expected = dict(
        zip(
            (cohort.file(i).stem for i in range(9)),
            [
                "missing", "truncated", "not finite", "constant", "empty", "misshapen", "mixed", "duplicated",
                "duplicated",
            ],
            strict=True,
        )
    )  # fmt: skip
    expected |= {"nobody-knows.h5": "unmatched", "of-nobody": "unmatched", omics["PATIENT"].iloc[0]: "not finite"}
    assert by_id[list(expected)].to_dict() == expected
    faults, notes = (table[table["level"] == level] for level in ("fault", "note"))
    assert set(notes["id"]) - {"fold 0", "fold 1"} == {"nobody-knows.h5", "of-nobody"}
    assert set(faults["id"]) == set(expected) - set(notes["id"])
    assert all(table["reason"].str.len() < 500)
    assert not table["reason"].str.contains("\n").any()


def test_what_skip_leaves_is_what_the_audit_said_would_remain(cohort: Cohort, tmp_path: Path) -> None:
    cohort.file(0).unlink()
    cohort.file(3).write_text("not HDF5")
    code, found, _ = cohort.audited("--on-error", "skip")
    assert code == 0
    assert outcome("crossval", "--config", str(cohort.path)) == 1
    assert outcome("crossval", "--config", str(cohort.path), "--on-error", "skip") == 0
    run = Path(cohort.config.run.dir)
    rejected = pd.read_csv(run / "rejected.csv")
    assert rejected["id"].tolist() == sorted(cohort.file(i).stem for i in (0, 3))
    pooled = pd.read_parquet(run / "predictions.parquet")
    kept = found["remaining"]["positive patients"] + found["remaining"]["negative patients"]
    assert len(pooled) == kept
    used = pd.concat(pd.read_parquet(path) for path in run.glob("fold=*/test_slides.parquet"))
    assert len(used) == found["remaining"]["slides"]
    assert not set(rejected["id"]) & set(used["slide_id"])
    before = (run / "metrics.json").read_text()
    assert outcome("crossval", "--config", str(cohort.path), "--on-error", "skip") == 0, "the same command goes on"
    assert (run / "metrics.json").read_text() == before
