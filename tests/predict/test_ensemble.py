"""Predictions of new slides: the patients of slides, bags, and the table in the user's class names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.models import card_of, small_model

from momkd_ray.errors import InputError
from momkd_ray.model.bundle import save_bundle
from momkd_ray.model.registry import build_model
from momkd_ray.predict.ensemble import check_ensemble, group_bags, list_slides, match_patients, named_predictions

SLIDES = pd.DataFrame({"slide_id": ["a1", "a2", "b"], "path": ["f/a1.h5", "f/a2.h5", "f/b.h5"], "bytes": [5, 7, 11]})


def test_slides_without_a_table_are_patients_of_their_own() -> None:
    _, patients, faults = match_patients(None, SLIDES, "f")
    assert patients == {"a1": "a1", "a2": "a2", "b": "b"}
    assert not faults


def test_slides_and_rows_without_a_counterpart_are_listed_and_the_rest_is_predicted(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b"):
        (tmp_path / f"{name}.h5").write_bytes(b"x")
    table = tmp_path / "slides.csv"
    table.write_text("PATIENT,FILENAME\nA,a1.svs\nA,a2.h5\nC,c.h5\n")
    files, patients, faults = match_patients(str(table), list_slides(str(tmp_path)), str(tmp_path))
    assert patients == {"a1": "A", "a2": "A"}
    assert files["slide_id"].tolist() == ["a1", "a2"]
    assert [(fault.id, fault.problem) for fault in sorted(faults)] == [("b", "unmatched"), ("c", "missing")]
    table.write_text("case_id,submitter_id,slide_id\nA,1,a1\nA,1,a2\nB,2,b\n")
    assert match_patients(str(table), list_slides(str(tmp_path)), str(tmp_path))[1]["b"] == "B"
    table.write_text("case_id,submitter_id,slide_id\nA,1,a1\nA,2,a2\nB,2,b\n")
    with pytest.raises(InputError, match="pass --patient-column case_id, or pass --patient-column submitter_id"):
        match_patients(str(table), list_slides(str(tmp_path)), str(tmp_path))
    assert match_patients(str(table), list_slides(str(tmp_path)), str(tmp_path), "submitter_id")[1]["a1"] == "1"


def test_bags_are_slides_or_patients() -> None:
    patients = {"a1": "A", "a2": "A", "b": "B"}
    assert group_bags(SLIDES, patients, joint=False)["bag_id"].tolist() == ["a1", "a2", "b"]
    joint = group_bags(SLIDES, patients, joint=True)
    assert joint["bag_id"].tolist() == ["A", "B"]
    assert joint["slides"].tolist() == [["a1", "a2"], ["b"]]
    assert joint["bytes"].tolist() == [12, 11]


def test_predictions_have_the_user_s_classes_and_the_mean_threshold() -> None:
    card = card_of(small_model())
    cards = [card.model_copy(update={"classes": ("low", "high"), "threshold": t}) for t in (0.2, 0.6)]
    bags = pd.DataFrame({"bag_id": ["a1", "a2", "b"], "patient_id": ["A", "A", "B"], "p": [0.5, 0.25, 0.4]})
    table = named_predictions(bags, cards, by_patient=False)
    assert list(table.columns) == ["slide_id", "patient_id", "p_low", "p_high", "predicted"]
    assert table["predicted"].tolist() == ["high", "low", "high"]
    patients = named_predictions(bags, cards, by_patient=True)
    assert patients.set_index("patient_id")["p_high"].to_dict() == {"A": 0.375, "B": 0.4}


def test_a_folder_without_feature_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains no .h5 or .pt feature files"):
        list_slides(str(tmp_path))


@pytest.mark.parametrize("name", ["omics_only", "late_fusion"])
def test_models_that_need_omics_do_not_predict_from_histology(name: str, tmp_path: Path) -> None:
    card = card_of(small_model())
    sizes = card.model.model_copy(update={"name": name})
    model = build_model(sizes, card.memory, card.loss, width=card.width, genes=card.genes)
    save_bundle(str(tmp_path), model, card.model_copy(update={"model": sizes}))
    with pytest.raises(InputError, match=f"{name}, which needs omics to predict"):
        check_ensemble([str(tmp_path)])
