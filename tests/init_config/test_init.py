"""`momkd-ray init`: folders as people have them become configurations that run."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from support.bags import features_in, write_h5
from support.command_line import outcome

from momkd_ray.config.load import load_config
from momkd_ray.ray_runtime.cluster import Connection


@pytest.fixture
def own(tiny_cohort_dir: Path, tmp_path: Path) -> Path:
    """A folder of one's own: the tiny cohort, in which `regions.parquet` is a table with a row a patch."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_cohort_dir, folder)
    (folder / "synthetic.json").unlink()
    return folder


def written(folder: Path, tmp_path: Path, *arguments: str) -> tuple[dict[str, dict[str, object]], str]:
    out = tmp_path / "config.yaml"
    assert outcome("init", str(folder), "--out", str(out), *arguments) == 0
    text = out.read_text()
    return yaml.safe_load(text), text


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert outcome("init", *arguments) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_becomes_a_configuration_whose_folds_can_be_made(own: Path, tmp_path: Path) -> None:
    tree, text = written(own, tmp_path)
    cohort = tree["cohort"]
    assert cohort["clinical"] == str(own / "clinical.csv")
    assert cohort["slides"] == str(own / "slides.csv")
    assert cohort["omics"] == str(own / "rna.parquet")
    assert (cohort["label"], cohort["positive"], cohort["negative"]) == ("LABEL", "positive", "negative")
    assert tree["features"]["dir"] == str(own / "features")
    assert "layout trident, of synthetic, width 16" in text
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0
    folds = pd.read_csv(tmp_path / "runs" / "config" / "folds.csv")
    assert folds["fold"].nunique() == tree["folds"]["n"]


@pytest.mark.slow
def test_what_is_written_trains(own: Path, tmp_path: Path, ray_cluster: Connection) -> None:
    written(own, tmp_path)
    small = ["model.hidden=16", "model.shared=8", "memory.components=2", "train.epochs=1", "genes.n=5", "folds.n=2"]
    settings = [word for setting in small for word in ("--set", setting)]
    assert outcome("train", "--config", str(tmp_path / "config.yaml"), "--fold", "0", *settings) == 0
    assert (tmp_path / "runs" / "config" / "fold=0" / "model" / "model.json").exists()


def test_other_names_formats_and_a_turned_table_of_genes(own: Path, tmp_path: Path) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    clinical["Case ID"] = clinical.pop("PATIENT")
    clinical["age"] = range(40, 40 + len(clinical))
    clinical["ER"] = ["yes", "no"] * (len(clinical) // 2)
    clinical["Hospital"] = ["Lyon", "Basel"] * (len(clinical) // 2)
    (own / "clinical.csv").unlink()
    clinical.to_excel(own / "patients.xlsx", index=False)
    slides = pd.read_csv(own / "slides.csv").rename(columns={"PATIENT": "who", "FILENAME": "image"})
    slides["image"] = slides["image"].str.replace(".h5", ".svs")
    (own / "slides.csv").unlink()
    slides.to_csv(own / "list.tsv", sep="\t", index=False)
    genes = pd.read_parquet(own / "rna.parquet").set_index("PATIENT").T
    (own / "rna.parquet").unlink()
    genes.to_csv(own / "expression.csv.gz", index_label="gene")
    tree, text = written(own, tmp_path, "--label", "ER")
    cohort = tree["cohort"]
    assert cohort["clinical"] == str(own / "patients.xlsx")
    assert cohort["columns"] == {"clinical": "Case ID", "slides": "who"}
    assert cohort["slide_column"] == "image"
    assert cohort["omics"] == str(own / "expression.csv.gz")
    assert (cohort["label"], cohort["positive"], cohort["negative"]) == ("ER", "yes", "no")
    assert "Other label: LABEL" in text and "Other label: Hospital" not in text
    assert "`site: Hospital` would keep all patients of a value of Hospital (2 values) in one fold." in text
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0


def clam_folder(folder: Path, patients: int = 12) -> Path:
    (folder / "features" / "h5_files").mkdir(parents=True)
    rows = []
    for i in range(patients):
        write_h5(folder / "features" / "h5_files" / f"slide_{i}.h5", seed=i)
        rows.append((i, f"patient_{i}", f"slide_{i}", ["tumor_a", "tumor_b"][i % 2]))
    pd.DataFrame(rows, columns=["", "case_id", "slide_id", "label"]).to_csv(folder / "dataset.csv", index=False)
    splits = folder / "splits" / "task"
    splits.mkdir(parents=True)
    for k in range(2):
        test = [f"slide_{i}" for i in range(patients) if i // 2 % 3 == k]
        rest = [f"slide_{i}" for i in range(patients) if f"slide_{i}" not in test]
        columns = {"train": rest[:-4], "val": rest[-4:], "test": test}
        table = pd.DataFrame({name: pd.Series(values) for name, values in columns.items()})
        table.to_csv(splits / f"splits_{k}.csv")
    return folder


def test_clam_s_folder_with_its_splits(tmp_path: Path) -> None:
    folder = clam_folder(tmp_path / "clam")
    tree, text = written(folder, tmp_path)
    assert tree["cohort"]["clinical"] == str(folder / "dataset.csv")
    assert "slides" not in tree["cohort"]
    assert tree["features"]["dir"] == str(folder / "features")
    assert tree["folds"] == {"file": str(folder / "splits" / "task")}
    assert "CHECK: which of 'tumor_b' and 'tumor_a' is the positive class?" in text
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0


def test_patho_bench_s_table_with_its_folds(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    (folder / "features").mkdir(parents=True)
    rows = []
    for i in range(16):
        write_h5(folder / "features" / f"s{i}.h5", seed=i)
        roles = ["test" if i // 4 == k else "train" for k in range(4)]
        rows.append((f"c{i}", f"s{i}", i % 2, *roles))
    columns = ["case_id", "slide_id", "IDH", *(f"fold_{k}" for k in range(4))]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "k=all.tsv", sep="\t", index=False)
    tree, _ = written(folder, tmp_path, "--label", "IDH")
    assert tree["folds"] == {"file": str(folder / "k=all.tsv")}
    assert (tree["cohort"]["positive"], tree["cohort"]["negative"]) == ("1", "0")
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0


def test_slides_that_nearly_match_are_shown(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = pd.read_csv(own / "slides.csv")
    slides["FILENAME"] = "scan of " + slides["FILENAME"].str.removesuffix(".h5")
    slides.to_csv(own / "slides.csv", index=False)
    sentence = refused(capsys, str(own), "--out", str(tmp_path / "c.yaml"))
    assert "no table names the" in sentence
    assert "the nearest is 'scan of TCGA" in sentence


def test_what_a_folder_lacks_is_said(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "c.yaml")]
    assert "does not exist" in refused(capsys, str(tmp_path / "none"), *out)
    sentence = refused(capsys, str(own), "--label", "HER2", *out)
    assert "clinical.csv has no column 'HER2': choose --label among LABEL" in sentence
    (own / "clinical.csv").rename(tmp_path / "clinical.csv")
    assert "add a clinical table" in refused(capsys, str(own), *out)
    (tmp_path / "empty").mkdir()
    assert "holds no feature file (.h5, " in refused(capsys, str(tmp_path / "empty"), *out)
    assert outcome("init") == 2
    (tmp_path / "c.yaml").write_text("mine")
    (tmp_path / "clinical.csv").rename(own / "clinical.csv")
    assert "exists already" in refused(capsys, str(own), *out)
    assert (tmp_path / "c.yaml").read_text() == "mine"


def stamp(own: Path, path: Path, **changes: object) -> Path:
    section = {
        "output_dir": str(path.parent / "stamp-out"),
        "clini_table": str(own / "clinical.csv"),
        "slide_table": str(own / "slides.csv"),
        "feature_dir": str(own / "features"),
        "ground_truth_label": "LABEL",
        "categories": ["positive", "negative"],
        "n_splits": 2,
    } | changes
    path.write_text(yaml.safe_dump({"preprocessing": {"wsi_dir": "x"}, "crossval": section}))
    return path


def test_stamp_s_configuration_is_translated(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "config.yaml"
    assert outcome("init", "--from", str(stamp(own, tmp_path / "stamp.yaml")), "--out", str(out)) == 0
    config = load_config(out)
    assert config.cohort.label == "LABEL"
    assert config.cohort.class_names == ("negative", "positive")
    assert config.folds.n == 2
    assert config.run.dir == str(tmp_path / "stamp-out" / "momkd-ray")
    assert outcome("split", "--config", str(out)) == 0
    capsys.readouterr()
    other = ["--out", str(tmp_path / "other.yaml")]
    survival = stamp(own, tmp_path / "r.yaml", task="survival")
    assert "its task is survival" in refused(capsys, "--from", str(survival), *other)
    lacking = stamp(own, tmp_path / "l.yaml", clini_table=None)
    assert "lacks clini_table" in refused(capsys, "--from", str(lacking), *other)
    assert "no section crossval" in refused(capsys, "--from", str(out), *other)


@pytest.mark.parametrize("categories", [["low", "middle", "high"], None])
def test_stamp_s_several_classes_and_its_numbers_are_translated(
    own: Path, tmp_path: Path, categories: list[str] | None
) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    clinical["LABEL"] = [("low", "middle", "high")[row % 3] for row in range(len(clinical))]
    clinical["HRD"] = [row / 3 for row in range(len(clinical))]
    clinical.to_csv(own / "clinical.csv", index=False)
    several = stamp(own, tmp_path / "several.yaml", categories=categories)
    assert outcome("init", "--from", str(several), "--out", str(tmp_path / "classes.yaml")) == 0
    config = load_config(str(tmp_path / "classes.yaml"))
    assert config.cohort.class_names == ("low", "middle", "high")
    assert not config.cohort.ordered
    numbers = stamp(own, tmp_path / "numbers.yaml", task="regression", ground_truth_label="HRD", categories=None)
    assert outcome("init", "--from", str(numbers), "--out", str(tmp_path / "numbers-out.yaml")) == 0
    config = load_config(str(tmp_path / "numbers-out.yaml"))
    assert (config.cohort.label, config.cohort.task) == ("HRD", "regression")


def test_a_column_of_numbers_is_offered_and_can_be_asked_for(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    rows = len(clinical)
    clinical["HRD score"] = [f"{row / 3:.2f}".replace(".", ",") if row % 5 else "n.a." for row in range(rows)]
    clinical["remark"] = [f"seen by {row}" for row in range(rows)]
    clinical["ward"] = "B"
    clinical.to_csv(own / "clinical.csv", index=False, sep=";")
    tree, text = written(own, tmp_path)
    assert tree["cohort"]["label"] == "LABEL"
    assert "Other label: HRD score (" in text
    assert "remark (" not in text
    out = ["--out", str(tmp_path / "asked.yaml")]
    assert outcome("init", str(own), "--label", "HRD score", *out) == 0
    config = load_config(str(tmp_path / "asked.yaml"))
    assert (config.cohort.label, config.cohort.task) == ("HRD score", "regression")
    assert "under" in capsys.readouterr().out  # the classes that the numbers are cut into
    assert outcome("split", "--config", out[1]) == 0
    (tmp_path / "asked.yaml").unlink()
    assert f"has {rows} different values, which are neither" in refused(capsys, str(own), "--label", "remark", *out)
    assert "has one value" in refused(capsys, str(own), "--label", "ward", *out)
    clinical.drop(columns="LABEL").to_csv(own / "clinical.csv", index=False, sep=";")
    assert "choose --label among HRD score to predict one" in refused(capsys, str(own), *out)


def test_the_table_with_the_asked_label_is_taken_for_the_clinical_one(own: Path, tmp_path: Path) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    receptors = clinical[["PATIENT"]].assign(ER=["yes", "no"] * (len(clinical) // 2))
    receptors.to_csv(own / "receptors.csv", index=False)
    clinical.assign(T=["1", "2"] * (len(clinical) // 2)).to_csv(own / "clinical.csv", index=False)
    tree, _ = written(own, tmp_path, "--label", "ER")
    assert tree["cohort"]["clinical"] == str(own / "receptors.csv")


def test_folds_are_no_label_and_are_offered_as_folds(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    rows = len(clinical)
    clinical.insert(1, "set", ["train", "test", "val"] * (rows // 3) + ["train"] * (rows % 3))
    clinical.insert(2, "LABEL2", ["HER2 2+", "HER2 3+"] * (rows // 2))
    clinical.drop(columns="LABEL").to_csv(own / "clinical.csv", index=False)
    folds = clinical[["PATIENT"]].assign(site_fold=[row % 3 for row in range(rows)])
    folds.to_csv(own / "folds.csv", index=False)
    tree, text = written(own, tmp_path)
    assert tree["cohort"]["label"] == "LABEL2"
    assert "label: set" not in text and "label: site_fold" not in text
    assert f"`file: {own / 'clinical.csv'}` with `column: set` would use its folds (test, train, val)." in text
    assert f"`file: {own / 'folds.csv'}` with `column: site_fold` would use its folds (0, 1, 2)." in text
    for file, column in (("clinical.csv", "set"), ("folds.csv", "site_fold")):
        keys = ["--set", f"folds.file={own / file}", "--set", f"folds.column={column}"]
        assert (
            outcome("split", "--config", str(tmp_path / "config.yaml"), *keys, "--set", f"run.dir={tmp_path / column}")
            == 0
        )
    capsys.readouterr()
    sentence = refused(capsys, str(own), "--label", "set", "--out", str(tmp_path / "other.yaml"))
    assert "says which patients train and which are tested: choose --label among LABEL2" in sentence


def test_the_label_is_chosen_after_its_spellings_are_one_and_is_told(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical = pd.read_csv(own / "clinical.csv")
    rows = len(clinical)
    results = ["Positive", "negative", "positive", "Negative  "]
    clinical["PR status"] = [results[row % 4] for row in range(rows - 1)] + ["Indeterminate"]
    clinical["Stage"] = [("I", "II", "III")[row % 3] for row in range(rows)]
    clinical.drop(columns="LABEL").to_csv(own / "clinical.csv", index=False)
    tree, _ = written(own, tmp_path)
    cohort = tree["cohort"]
    assert cohort["label"] == "PR status"
    assert [str(cohort[key]).casefold() for key in ("negative", "positive")] == ["negative", "positive"]
    told = capsys.readouterr().out
    assert "Label: PR status (" in told and "chosen among 2 columns; --label takes another: Stage" in told
    assert "CHECK: patients whose PR status is another are left out: Indeterminate (1 patient)" in told
    out = tmp_path / "stage.yaml"
    assert outcome("init", str(own), "--label", "Stage", "--out", str(out)) == 0
    config = load_config(str(out))
    assert config.cohort.class_names == ("I", "II", "III") and config.cohort.ordered
    assert "CHECK: 3 classes, I, II, III: if they have no order" in capsys.readouterr().out
    assert outcome("split", "--config", str(out)) == 0


def test_links_to_another_disk_are_followed_and_loops_end(own: Path, tmp_path: Path) -> None:
    shutil.move(own / "features", tmp_path / "disk")
    (own / "features").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(own)
    (own / "again").symlink_to(own)
    tree, text = written(own, tmp_path)
    assert tree["features"]["dir"] == str(own / "features")
    assert "Another" not in text
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_numpy_are_feature_files(own: Path, tmp_path: Path, suffix: str) -> None:
    for path in (own / "features").iterdir():
        features = features_in(str(path))
        path.unlink()
        if suffix == ".npy":
            np.save(path.with_suffix(suffix), features)
        else:
            np.savez(path.with_suffix(suffix), features=features)
    tree, _ = written(own, tmp_path)
    assert tree["features"] == {"dir": str(own / "features"), "graph": "none"}
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0


def test_trident_s_coordinates_beside_the_features_are_no_feature_files(own: Path, tmp_path: Path) -> None:
    job = own / "trident" / "20x_256px"
    (job / "patches").mkdir(parents=True)
    for path in (own / "features").iterdir():
        with h5py.File(job / "patches" / f"{path.stem}_patches.h5", "w") as file:
            file["coords"] = np.zeros((9, 2), dtype=np.int64)
    with h5py.File(job / "patches" / "one_more_patches.h5", "w") as file:
        file["coords"] = np.zeros((9, 2), dtype=np.int64)
    shutil.move(own / "features", job / "features_uni_v2")
    tree, text = written(own, tmp_path)
    assert tree["features"]["dir"] == str(job / "features_uni_v2")
    assert "patches" not in text


def test_bad_rows_are_told_with_the_way_on_that_then_works(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = pd.read_csv(own / "slides.csv")
    slides.loc[0, "PATIENT"] = None
    slides.to_csv(own / "slides.csv", index=False)
    out = tmp_path / "c.yaml"
    sentence = refused(capsys, str(own), "--out", str(out))
    assert f"or go on without them by momkd-ray crossval --config {out} --on-error skip" in sentence
    two = ["--set", "folds.n=2"]
    assert outcome("split", "--config", str(out), *two) == 1
    assert capsys.readouterr().err.strip().endswith("or go on without them by --on-error skip")
    assert outcome("split", "--config", str(out), *two, "--on-error", "skip") == 0


def test_patients_are_taken_from_barcodes_where_no_table_names_the_slides(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owners = pd.read_csv(own / "slides.csv")
    (own / "slides.csv").unlink()
    (own / "rna.parquet").unlink()
    patients, rows = pd.read_csv(own / "clinical.csv"), []
    barcodes = {name: f"TCGA-A{i % 10}-{1000 + i}" for i, name in enumerate(patients["PATIENT"])}
    patients.assign(PATIENT=patients["PATIENT"].map(barcodes)).to_csv(own / "clinical.csv", index=False)
    for i, (patient, name) in enumerate(zip(owners["PATIENT"], owners["FILENAME"], strict=True)):
        slide = f"{barcodes[patient]}-01Z-00-DX{i % 9 + 1}.0a1b2c3d-0000-0000-0000-{i:012}"
        (own / "features" / name).rename(own / "features" / f"{slide}.h5")
        rows.append((barcodes[patient], slide))
    normal = f"{rows[0][0]}-11A-01-TS1"
    write_h5(own / "features" / f"{normal}.h5")
    tree, _ = written(own, tmp_path)
    table = tmp_path / "config-slides.csv"
    assert tree["cohort"]["slides"] == str(table)
    told = pd.read_csv(table)
    assert list(told.columns) == ["PATIENT", "FILENAME"]
    assert sorted(told.itertuples(index=False, name=None)) == sorted(rows)
    printed = capsys.readouterr().out
    assert f"CHECK: no table names the feature files; {table} is written from their barcodes" in printed
    assert f"CHECK: 1 feature file is not in it, such as {normal}" in printed
    assert outcome("split", "--config", str(tmp_path / "config.yaml")) == 0
    (tmp_path / "config.yaml").unlink()
    sentence = refused(capsys, str(own), "--out", str(tmp_path / "config.yaml"))
    assert f"{table} exists already" in sentence


def test_without_a_table_of_slides_its_columns_and_a_row_are_told(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "slides.csv").unlink()
    for i, path in enumerate(sorted((own / "features").iterdir())):
        path.rename(own / "features" / f"scan{i:03}.h5")
    sentence = refused(capsys, str(own), "--out", str(tmp_path / "c.yaml"))
    first = pd.read_csv(own / "clinical.csv")["PATIENT"][0]
    assert (
        f"the columns PATIENT and FILENAME to the folder and a row for each file, such as '{first},scan000'" in sentence
    )
    assert f"with its patient as the column 'PATIENT' of {own / 'clinical.csv'} names it" in sentence
    assert not (tmp_path / "c.yaml").exists()
