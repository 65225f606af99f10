"""Who is evaluated: patients, slides and predictions of other tables, matched, counted or refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.bags import write_h5
from support.command_line import outcome
from support.evaluations import evaluated, external
from support.finished_runs import write_run
from support.models import card_of, small_model

from momkd_ray.crossval.trained_run import read_run
from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import Labels, read_cohort
from momkd_ray.evaluate.options import EvaluationOptions
from momkd_ray.evaluate.predictions import feature_files_of, patients_of_run, read_predictions
from momkd_ray.model.bundle import save_bundle

pytestmark = pytest.mark.usefixtures("unrendered")


def test_everybody_is_counted_and_named(run: str, tmp_path: Path) -> None:
    external(tmp_path)
    found = evaluated(run, tmp_path)
    flow = [(step["patients"], step["left_out"]) for step in found["cohort"]["flow"]]
    assert flow == [
        (93, {}),
        (91, {"'PR' is 'Equivocal', neither 'negative' nor 'positive'": 1, "'PR' is blank": 1}),
        (90, {"no prediction": 1}),
    ]
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv").set_index("id")["reason"]
    assert set(excluded.index) == {"E900", "E901", "E902", "E999"}
    assert excluded["E999"] == "a prediction of no patient of the clinical table"
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions.columns[0] == "PATIENT"
    assert len(predictions) == 90


def test_patients_of_the_run_are_called_out(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clinical, predictions = external(tmp_path)
    for table, column in ((clinical, "PATIENT"), (predictions, "patient_id")):
        table[column] = table[column].replace("E000", "T0-00")
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    found = evaluated(run, tmp_path)
    assert found["cohort"]["also_in_the_run"] == {"patients": 1, "examples": ["T0-00"]}
    assert "1 of the 90 patients are also in the run's folds (T0-00)" in capsys.readouterr().err
    assert "also in the run" in (tmp_path / "out" / "evaluation.html").read_text()


def test_classes_may_have_other_names_there(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clinical, _ = external(tmp_path)
    first = evaluated(run, tmp_path)
    renamed = clinical.replace({"PR": {"positive": "1", "negative": "0"}}).rename(columns={"PR": "pgr"})
    renamed.loc[renamed["pgr"] == "1", "pgr"] = ["1", *(["2"] * (int((renamed["pgr"] == "1").sum()) - 1))]
    renamed.to_csv(tmp_path / "clinical.csv", index=False)
    capsys.readouterr()
    again = evaluated(
        run, tmp_path, "--label", "pgr", "--positive", "1", "--positive", "2", "--negative", "0", "--json"
    )
    assert json.loads(capsys.readouterr().out) == again
    assert again["discrimination"] == first["discrimination"]
    assert again["classes"] == ["negative", "positive"], "the run's names are shown"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, p: (c.rename(columns={"PR": "pr"}), p),
            r"has no column 'PR'; the nearest is 'pr' \(give --label pr\)",
        ),
        (lambda c, p: (c.rename(columns={"PR": "receptor"}), p), "give --label one of its columns.*'receptor'"),
        (lambda c, p: (c.replace("positive", "pos"), p), "no 'PR' is 'positive'.*give --positive rest"),
        (lambda c, p: (c.rename(columns={"PATIENT": "who"}), p), "give --patient-column"),
        (
            lambda c, p: (pd.concat([c, c.iloc[:1].assign(PR="x"), c.iloc[:1].assign(PR="positive")]), p),
            "'E000' has several",
        ),
        (lambda c, p: (c, p.rename(columns={"p_positive": "score"})), "has no column 'p_positive'"),
        (lambda c, p: (c, p.assign(p_positive=p["p_positive"].where(p["patient_id"] != "E001"))), "data row 2 has no"),
        (lambda c, p: (c, p.assign(p_positive=p["p_positive"] * 3)), "no probability between 0 and 1"),
        (lambda c, p: (c, pd.concat([p, p.iloc[:1]])), "'E000' has more than one row"),
        (lambda c, p: (c, p.assign(patient_id="x" + p["patient_id"])), "none of the labelled patients"),
        (lambda c, p: (c[(c["PR"] != "positive") | (c["PATIENT"] == "E000")], p), "no 'PR'|two of each class"),
    ],
)
def test_bad_tables_are_named_in_one_sentence(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    clinical, predictions = change(*external(tmp_path, seed=1))
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--predictions", str(tmp_path / "predictions.csv")) == 1
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, err), err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_bad_rows_may_be_left_out(run: str, tmp_path: Path) -> None:
    clinical, _ = external(tmp_path)
    pd.concat([clinical, clinical.iloc[:1].assign(PR="other")]).to_csv(tmp_path / "clinical.csv", index=False)
    found = evaluated(run, tmp_path, "--on-error", "skip")
    assert found["cohort"]["flow"][1]["left_out"]["a bad row (duplicated)"] == 1
    assert found["cohort"]["patients"] == 89
    assert "E000" in (tmp_path / "out" / "rejected.csv").read_text()


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    external(tmp_path)
    command = ["--clinical", str(tmp_path / "clinical.csv"), "--predictions", str(tmp_path / "predictions.csv")]
    assert outcome("evaluate", str(tmp_path / "nothing"), *command) == 1
    assert "no finished cross-validation in" in capsys.readouterr().err
    assert outcome("evaluate", str(tmp_path / "nothing"), "--clinical", "c.csv") == 2
    assert "--predictions" in capsys.readouterr().err


def test_shares_outside_0_and_1_are_refused() -> None:
    with pytest.raises(InputError, match=r"--prevalence is 1\.2"):
        EvaluationOptions(prevalences=(1.2,))


def test_slides_of_a_file_of_predictions_are_averaged(tmp_path: Path) -> None:
    table = pd.DataFrame({"slide_id": ["a1", "a2", "b1"], "patient_id": ["A", "A", "B"], "p_positive": [0.2, 0.6, 0.9]})
    table.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "c.csv").write_text("PATIENT,PR\nA,positive\nb,negative\n")
    cohort = read_cohort(Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",))))
    found = read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    assert found["p"].to_dict() == pytest.approx({"A": 0.4, "b": 0.9}), "spelt as in the clinical table"


def test_barcodes_of_a_patient_are_one_patient_in_both_tables(tmp_path: Path) -> None:
    names = {"TCGA-A1-0001-01Z-00-DX1": 0.2, "TCGA-A1-0001-01Z-00-DX2": 0.6, "TCGA-A1-0002-01Z-00-DX1": 0.9}
    table = pd.DataFrame({"slide_id": list(names), "patient_id": list(names), "p_positive": list(names.values())})
    table.to_csv(tmp_path / "p.csv", index=False)
    rows = "".join(f"{name},{name},{'positive' if '0001' in name else 'negative'}\n" for name in names)
    (tmp_path / "c.csv").write_text("case_id,slide_id,PR\n" + rows)
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)))
    cohort = read_cohort(labels)
    found = read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    assert found["p"].to_dict() == pytest.approx({"TCGA-A1-0001": 0.4, "TCGA-A1-0002-01Z-00-DX1": 0.9})
    assert "2 identifiers are read as 1 patient" in " ".join(entry.what for entry in cohort.understood)
    table.drop(columns="slide_id").to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match="two identifiers mean the patient 'TCGA-A1-0001'"):
        read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    (tmp_path / "c.csv").write_text("PATIENT,PR\nP-1,positive\np-1,positive\nP2,negative\n")
    assert [fault.id for fault in read_cohort(labels).faults] == ["P-1", "p-1"]


def test_a_table_with_a_row_per_slide_gives_each_patient_once(tmp_path: Path) -> None:
    text = "case_id,slide_id,PR,site\nA,a1,positive,X\nA,a2,positive,X\nB,b1,negative,\n"
    (tmp_path / "c.csv").write_text(text)
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)), subgroups=("site",))
    cohort = read_cohort(labels)
    assert cohort.patients["y"].to_dict() == {"A": 1, "B": 0}
    assert cohort.patients["site"].tolist() == ["X", "missing"]
    (tmp_path / "c.csv").write_text(text.replace("a2,positive,X", "a2,positive,Y"))
    with pytest.raises(InputError, match="patient 'A' has several values of 'site'"):
        read_cohort(labels)


def test_the_folds_models_predict_the_labelled_patients(
    no_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", folds=3)
    for fold in range(3):
        model = small_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * fold)
        save_bundle(f"{run}/fold={fold}/model", model, card_of(model))
    features = tmp_path / "features"
    features.mkdir()
    rows = []
    for patient in range(12):
        for slide in range(1 + patient % 2):
            name = f"s{patient}-{slide}"
            rows.append((f"P{patient}", name))
            if patient != 5:  # who has no feature file
                write_h5(features / f"{name}.h5", n=12, width=12, seed=patient * 10 + slide)
    (features / "s6-0.h5").write_bytes(b"damaged")
    write_h5(features / "stranger.h5", n=12, width=12)
    pd.DataFrame(rows, columns=["PATIENT", "FILENAME"]).to_csv(tmp_path / "slides.csv", index=False)
    clinical = pd.DataFrame({"PATIENT": [f"P{i}" for i in range(12)], "PR": ["positive", "negative"] * 6})
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    tables = ["--clinical", str(tmp_path / "clinical.csv"), "--slides", str(tmp_path / "slides.csv")]
    command = ["evaluate", run, *tables, "--features", str(features), "--out", str(tmp_path / "out")]
    assert outcome(*command) == 1
    assert "s6-0.h5" in capsys.readouterr().err
    assert outcome(*command, "--on-error", "skip") == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["cohort"]["flow"][-1] == {
        "step": "with features that can be read",
        "patients": 10,
        "left_out": {"no feature file": 1, "no feature file that can be read": 1},
    }
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv").set_index("id")["reason"]
    assert excluded["stranger"] == "a feature file of no patient of the clinical table"
    own = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("PATIENT")
    np.testing.assert_allclose(own["p_positive"], own[[f"fold={k}" for k in range(3)]].mean(axis=1))
    # the same as predict's mean over models and slides
    models = [f"{run}/fold={fold}/model" for fold in range(3)]
    (features / "s6-0.h5").unlink()
    kept = pd.read_csv(tmp_path / "slides.csv")
    kept[~kept["PATIENT"].isin(["P5", "P6"])].to_csv(tmp_path / "slides.csv", index=False)
    (features / "stranger.h5").unlink()
    rest = ["--features", str(features), "--slides", str(tmp_path / "slides.csv"), "--patients"]
    assert outcome("predict", *models, *rest, "--out", str(tmp_path / "p.csv")) == 0
    by_predict = pd.read_csv(tmp_path / "p.csv", index_col=0)["p_positive"]
    np.testing.assert_allclose(by_predict.loc[own.index], own["p_positive"], atol=1e-6)


def test_files_are_matched_with_the_tables_slides_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("PATIENT,PR\nA,positive\nB,negative\nC,positive\nD,negative\n")
    (tmp_path / "s.csv").write_text("PATIENT,FILENAME\nA,A.svs\nB,2\nC,deep/C.svs\nD,D.svs\n")
    for name in ("A.svs.h5", "00002.h5", "deep/C.h5", "other.h5"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(b"x")
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)), slides=str(tmp_path / "s.csv"))
    files = feature_files_of(str(tmp_path / "f"), read_cohort(labels))
    found = {slide: Path(path).name for slide, path, _ in files.itertuples(index=False)}
    assert found == {"A": "A.svs.h5", "2": "00002.h5", "C": "C.h5", "other": "other.h5"}


def test_patients_of_the_run_are_recognised_by_whatever_follows_their_barcodes(run: str) -> None:
    trained = dataclasses.replace(read_run(run), patients=frozenset(["TCGA-A0-1000", "TCGA-A0-2000-DX1", "0012"]))
    known = ["12", "TCGA-A0-1000-01A", "TCGA-A0-1000-DX1", "tcga.a0.2000"]
    assert patients_of_run([*known, "TCGA-A0-3000-DX1", "TCGA-A0-100", "120"], trained) == known


def test_files_of_patients_without_a_label_are_of_patients_of_the_table(no_cluster: None, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", folds=2)
    for folder in read_run(run).models:
        model = small_model()
        save_bundle(folder, model, card_of(model))
    labels = ["positive", "negative", "positive", "negative", "", "Equivocal"]
    pd.DataFrame({"PATIENT": list("ABCDEF"), "PR": labels}).to_csv(tmp_path / "clinical.csv", index=False)
    (tmp_path / "features").mkdir()
    for name in "ABCDEFZ":
        write_h5(tmp_path / "features" / f"{name}.h5", n=12, width=12)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--features", str(tmp_path / "features")) == 0
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert excluded.loc[excluded["kind"] == "slide", "id"].tolist() == ["Z"]
    assert excluded.loc[excluded["kind"] == "patient", "id"].tolist() == ["E", "F"]
