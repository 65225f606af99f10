"""A bundle tells which of the predicted patients its model was trained on, and names nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support.feature_files import values, write_hdf5
from support.models import card_of, small_model

from momkd_ray.model.bundle import load_bundle, save_bundle
from momkd_ray.model.training_patients import TrainingPatients
from momkd_ray.predict.ensemble import predict_folder
from momkd_ray.predict.known_patients import count_training, training_note
from momkd_ray.progress import ProgressReporter

KNOWN = TrainingPatients.of(["TCGA-A0-1000", "00012", "Müller 7"], ["block-3"], "salt")


@pytest.mark.parametrize(
    "name",
    ["TCGA-A0-1000", "tcga.a0.1000", "TCGA-A0-1000-01Z-00-DX1", "12", "12.0", "müller-7", "Block_3"],
)
def test_a_patient_is_known_however_it_is_spelt(name: str) -> None:
    assert KNOWN.knows(name)


@pytest.mark.parametrize("name", ["TCGA-A0-1001", "13", "Müller 77", "block-33", ""])
def test_others_are_not_known(name: str) -> None:
    assert not KNOWN.knows(name)


def test_names_are_not_in_a_bundle_and_the_salt_matters(tmp_path: Path) -> None:
    model = small_model()
    save_bundle(str(tmp_path), model, card_of(model).model_copy(update={"trained_on": KNOWN}))
    text = (tmp_path / "model.json").read_text()
    assert not any(name in text for name in ("TCGA", "00012", "ller", "block"))
    assert load_bundle(str(tmp_path))[1].trained_on == KNOWN
    again = TrainingPatients.of(["Müller 7", "TCGA-A0-1000", "00012"], ["block-3"], "salt")
    other = TrainingPatients.of(["Müller 7"], [], "another")
    assert again == KNOWN, "the order of the patients does not matter"
    assert not set(other.patients.split()) & set(KNOWN.patients.split())


def test_models_are_counted_by_patient_or_slide() -> None:
    cards = [
        card_of(small_model()).model_copy(update={"trained_on": TrainingPatients.of(patients, slides, "salt")})
        for patients, slides in ((["A", "B"], []), (["B"], ["c1"]))
    ]
    table = pd.DataFrame({"slide_id": ["a1", "b1", "c1", "d1"], "patient_id": ["A", "B", "C", "D"]})
    counted = count_training(table, cards)
    assert counted["trained_on"].tolist() == [1, 2, 1, 0]
    note = training_note(counted, 2)
    assert note is not None
    assert note.startswith("3 of the 4 patients (A, B, C) are among those that one or more of the 2 models learnt from")
    assert training_note(counted[counted["patient_id"] == "D"], 2) is None
    old = [card_of(small_model())]
    assert count_training(table, old) is table
    assert training_note(table, 1) is None


def test_labels_in_the_table_of_slides_give_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, features = small_model(), tmp_path / "features"
    features.mkdir()
    trained = TrainingPatients.of(["P0"], [], "salt")
    save_bundle(str(tmp_path / "model"), model, card_of(model).model_copy(update={"trained_on": trained}))
    for number in range(7):
        write_hdf5(features / f"s{number}.h5", "trident", values(9, width=model.width, seed=number))
    slides, out = tmp_path / "slides.csv", tmp_path / "p.csv"

    def predict(labels: list[str]) -> tuple[pd.DataFrame, str]:
        patients = ["P0", "P0", "P1", "P2", "P3", "P4", "P5"]
        names = [f"s{number}.svs" for number in range(7)]
        pd.DataFrame({"PATIENT": patients, "FILENAME": names, "pr": labels}).to_csv(slides, index=False)
        with ProgressReporter() as progress:
            table = predict_folder(
                [str(tmp_path / "model")], str(features), str(out), progress, slides=str(slides), gpus=0
            )
        return table, capsys.readouterr().err

    table, said = predict(["positive", "Positive", "negative", "positive", "negative", "equivocal", "unknown"])
    assert table["trained_on"].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert "1 of the 6 patients (P0) are among those" in said.replace("\n", " ")
    content = json.loads((tmp_path / "p.csv.metrics.json").read_text())
    assert (content["patients"], content["of_training"]) == (4, 1)
    assert content["classes"] == {"negative": 2, "positive": 2}
    p = table.groupby("patient_id")["p_positive"].mean()
    pairs = [(p["P0"], p["P1"]), (p["P0"], p["P3"]), (p["P2"], p["P1"]), (p["P2"], p["P3"])]
    assert content["metrics"]["auc"]["value"] == pytest.approx(sum(more > less for more, less in pairs) / 4)
    assert "with 'equivocal', which is no class of the model" in said
    labels = ["negative" if p[name] < p["P3"] else "positive" for name in ("P0", "P0", "P1", "P2", "P3", "P4", "P5")]
    assert len(set(labels)) == 2
    _, said = predict(labels)
    content = json.loads((tmp_path / "p.csv.metrics.json").read_text())
    assert content["metrics"]["auc"] == {"value": 1.0, "interval": None}
    assert "AUC 1.000, no interval, of 6 patients" in said
    _, said = predict(["positive"] * 7)
    assert "they need a patient of each class" in said
    assert json.loads((tmp_path / "p.csv.metrics.json").read_text())["metrics"] == {}
