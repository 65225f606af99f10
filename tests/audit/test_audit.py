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
from support.command_line import outcome

from momkd_ray.config.load import Config
from momkd_ray.errors import RunError
from momkd_ray.ray_runtime.cluster import Connection


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
def cohort(tiny_config: Config, tmp_path: Path, no_cluster: None) -> Cohort:
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
    assert set(table["level"]) <= {"note", "understood"}
    assert len(found["understood"]) == (table["level"] == "understood").sum()
    assert found["remaining"]["positive patients"] + found["remaining"]["negative patients"] == 24
    folds = pd.DataFrame(found["folds"])
    assert folds.groupby("role")[["positive", "negative"]].sum().loc["test"].sum() == 24
    assert set(folds["fold"]) == {0, 1}
    said = capsys.readouterr()
    assert "The audit found no fault" in said.out
    assert said.out.splitlines()[-1].startswith("Notes and what was recognised: ")
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


def test_a_person_under_two_spellings_is_a_fault_of_both(cohort: Cohort) -> None:
    tables = cohort.config.cohort
    name = cohort.slides["PATIENT"].iloc[0]
    for path in (tables.clinical, str(tables.slides)):
        pd.read_csv(path).replace({"PATIENT": {name: "P-01"}}).to_csv(path, index=False)
    clinical = pd.read_csv(tables.clinical)
    again = clinical[clinical["PATIENT"] == "P-01"].assign(PATIENT="p_01")
    pd.concat([clinical, again]).to_csv(tables.clinical, index=False)
    code, found, table = cohort.audited()
    assert code == 1
    faults = table[table["level"] == "fault"]
    assert sorted(faults["id"]) == ["P-01", "p_01"] and set(faults["problem"]) == {"duplicated"}
    assert faults["reason"].str.contains(f"(data row {len(clinical) + 1})", regex=False).all()
    assert found["remaining"]["positive patients"] + found["remaining"]["negative patients"] == 23


def test_a_split_that_leaks_is_a_fault_of_every_patient_on_two_sides(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(set(cohort.slides["PATIENT"]))
    halves = [names[::2], names[1::2]]
    splits = [
        {"test_patients": halves[0] + halves[1][:2], "train_patients": halves[1]},
        {"test_patients": halves[1], "train_patients": halves[0]},
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    code, found, table = cohort.audited("--set", f"folds.file={tmp_path / 'splits.json'}")
    assert code == 1
    faults = table[table["level"] == "fault"]
    assert faults[["level", "kind", "id", "problem"]].to_numpy().tolist() == [
        ["fault", "patient", name, "on two sides"] for name in halves[1][:2]
    ]
    assert [fault["id"] for fault in found["faults"]] == halves[1][:2]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the audit found 2 faults (2 patient on two sides); what remains cannot be cross-validated" in last


def test_a_fold_that_omics_cannot_teach_is_a_fault_and_no_other_verb_begins(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = pd.read_csv(cohort.config.cohort.clinical).set_index("PATIENT")["LABEL"]
    omics = pd.read_parquet(cohort.config.cohort.omics)
    omics[omics["PATIENT"].map(labels) == "positive"].to_parquet(cohort.config.cohort.omics)
    code, found, table = cohort.audited()
    assert code == 1
    faults = table[table["level"] == "fault"]
    assert faults[["kind", "id", "problem"]].to_numpy().tolist() == [
        ["fold", f"fold {fold}", "of one class"] for fold in (0, 1)
    ]
    assert {row["with omics"] for row in found["folds"] if row["role"] == "train"} <= {4, 5, 6}
    capsys.readouterr()
    for verb in (["crossval"], ["train", "--fold", "0"]):
        assert outcome(*verb, "--config", str(cohort.path)) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert all(
            part in last for part in ("fold 0", "class 'negative'", cohort.config.cohort.omics or "", "folds.seed")
        )
    assert not Path(cohort.config.store_uri).exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("gone", "does not exist: name the folder"),
        ("a file", "is a file: name the folder"),
        (
            "empty",
            "exists, but holds the feature file of none of the 27 slides (it holds no feature file at all, such as",
        ),
        (
            "others",
            "exists, but holds the feature file of none of the 27 slides (its 2 feature files are named otherwise",
        ),
        ("below", "holds the feature file of none of the 32 slides, but inner/ holds 32 of them: set features.dir to"),
    ],
)
def test_features_that_are_nowhere_are_one_fault_and_no_verb_starts_ray_for_them(
    cohort: Cohort, spoil: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(cohort.config.features.dir)
    away = folder.rename(folder.with_name("away"))
    if spoil == "a file":
        folder.write_text("features")
    elif spoil != "gone":
        folder.mkdir()
    if spoil == "others":
        for name in ("x.h5", "y.h5"):
            (folder / name).write_bytes(b"")
    if spoil == "below":
        away.rename(folder / "inner")
    code, found, table = cohort.audited()
    assert code == 1
    (fault,) = table[table["level"] == "fault"].to_dict("records")
    assert (fault["kind"], fault["problem"], fault["location"]) == ("table", "missing", str(folder))
    assert said in fault["reason"]
    assert not found["remaining"] and not found["folds"]
    assert found["verdict"].endswith("without feature files nothing remains")
    out = capsys.readouterr().out
    assert fault["reason"] in out, "the cure names the folder in full"
    assert "there is no feature file" not in out
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    for verb in (
        ["crossval"],
        ["compare", "--set", "compare.models=[momkd, abmil]"],
        ["train", "--fold=0"],
        ["ingest"],
    ):
        for on_error in ("stop", "skip"):
            assert outcome(*verb, "--config", str(cohort.path), "--on-error", on_error) == 1
            assert capsys.readouterr().err.splitlines()[-1].endswith(fault["reason"])


def test_a_fault_of_the_folds_is_told_beside_absent_features(cohort: Cohort, tmp_path: Path) -> None:
    Path(cohort.config.features.dir).rename(tmp_path / "away")
    _, _, table = cohort.audited("--set", "folds.n=99")
    assert table[table["level"] == "fault"]["id"].tolist() == ["all folds", "features"]
    _, _, table = cohort.audited("--set", "cohort.label=NOPE")
    assert table[table["level"] == "fault"]["id"].tolist() == ["clinical.csv", "features"]


def test_a_folder_that_cannot_be_reached_is_no_fault(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(cohort.config.features.dir)
    for path in folder.iterdir():
        path.unlink()

    def unreachable(location: str) -> None:
        raise RunError(f"cannot look up {location}: Stale file handle")

    monkeypatch.setattr("momkd_ray.cohort.features_elsewhere.storage.kind", unreachable)
    for verb in ("audit", "crossval"):
        assert outcome(verb, "--config", str(cohort.path), "--on-error", "skip") == 3
        assert "Stale file handle" in capsys.readouterr().err


def test_a_store_is_enough_without_the_feature_files(cohort: Cohort, tmp_path: Path) -> None:
    assert outcome("ingest", "--config", str(cohort.path)) == 0
    Path(cohort.config.features.dir).rename(tmp_path / "away")
    assert outcome("ingest", "--config", str(cohort.path)) == 0


def test_a_table_that_cannot_be_used_is_a_fault_beside_those_of_the_files(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort.file(2).unlink()
    cohort.file(3).write_bytes(b"")
    omics = pd.read_parquet(cohort.config.cohort.omics)
    omics.drop(columns="PATIENT").to_parquet(cohort.config.cohort.omics)
    code, found, table = cohort.audited()
    assert code == 1
    faults = table[table["level"] == "fault"].set_index("id")["problem"].to_dict()
    missing, empty = cohort.file(2).stem, cohort.file(3).stem
    assert faults == {missing: "missing", empty: "empty", "rna.parquet": "unusable"}
    assert len(found["folds"]) == 6
    said = capsys.readouterr().out.splitlines()
    assert [line.count(missing) for line in said if missing in line and "there is no" in line] == [1]
    assert any("rna.parquet has no column that names the patients" in line for line in said)
    code, found, table = cohort.audited("--set", "cohort.label=NOPE")
    assert code == 1
    assert table["id"].tolist() == [empty, "clinical.csv"], "a slide that no table names has no file to miss"
    assert not found["folds"]


def test_what_is_unmatched_is_a_note_in_one_line_a_kind(cohort: Cohort, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(9):
        with h5py.File(Path(cohort.config.features.dir) / f"other-{i}.h5", "w") as file:
            file["features"] = np.ones((1, 1))
    code, found, table = cohort.audited()
    assert code == 0
    assert found["ok"]
    assert set(table[table["problem"] == "unmatched"]["id"]) == {f"other-{i}.h5" for i in range(9)}
    said = [line for line in capsys.readouterr().out.splitlines() if "other-" in line]
    assert len(said) == 1
    assert "9 feature files" in said[0]


@pytest.mark.slow
def test_what_skip_leaves_is_what_the_audit_said_would_remain(
    cohort: Cohort, tmp_path: Path, ray_cluster: Connection
) -> None:
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
