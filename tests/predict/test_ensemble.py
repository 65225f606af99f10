"""Predictions of new slides: the patients of slides, bags, and the table in the user's class names."""

from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
import pytest
from support.feature_files import values, write_hdf5
from support.models import card_of, small_model

from momkd_ray.api import predict_slides
from momkd_ray.errors import InputError
from momkd_ray.input_faults import OnError
from momkd_ray.model.bundle import save_bundle
from momkd_ray.model.registry import build_model
from momkd_ray.predict.ensemble import (
    Ensemble,
    check_ensemble,
    named_predictions,
    other_formats,
)
from momkd_ray.predict.slides import group_bags, list_slides, match_patients, open_slides

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
    files, patients, faults = match_patients(
        open_slides(str(table), None, None), list_slides(str(tmp_path)), str(tmp_path)
    )
    assert patients == {"a1": "A", "a2": "A"}
    assert files["slide_id"].tolist() == ["a1", "a2"]
    assert [(fault.id, fault.problem) for fault in sorted(faults)] == [("b", "unmatched"), ("c", "missing")]
    table.write_text("case_id,submitter_id,slide_id\nA,1,a1\nA,1,a2\nB,2,b\n")
    assert match_patients(open_slides(str(table), None, None), list_slides(str(tmp_path)), str(tmp_path))[1]["b"] == "B"
    table.write_text("case_id,submitter_id,slide_id\nA,1,a1\nA,2,a2\nB,2,b\n")
    with pytest.raises(InputError, match="give --patient-column case_id, or give --patient-column submitter_id"):
        match_patients(open_slides(str(table), None, None), list_slides(str(tmp_path)), str(tmp_path))
    assert (
        match_patients(open_slides(str(table), "submitter_id", None), list_slides(str(tmp_path)), str(tmp_path))[1][
            "a1"
        ]
        == "1"
    )


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
    with pytest.raises(InputError, match=r"contains no feature files \(\.h5, "):
        list_slides(str(tmp_path))


@pytest.mark.parametrize("name", ["omics_only", "late_fusion"])
def test_models_that_need_omics_do_not_predict_from_histology(name: str, tmp_path: Path) -> None:
    card = card_of(small_model())
    sizes = card.model.model_copy(update={"name": name})
    model = build_model(sizes, card.memory, card.loss, width=card.width, genes=card.genes)
    save_bundle(str(tmp_path), model, card.model_copy(update={"model": sizes}))
    with pytest.raises(InputError, match=f"{name}, which needs omics to predict"):
        check_ensemble([str(tmp_path)])


def test_what_is_predicted_is_compared_with_what_the_model_learnt(tmp_path: Path) -> None:
    model = small_model()
    learnt = {"encoder": "uni_v2", "magnification": 20, "patch_px": 256, "feature_format": "trident"}
    folders = {
        "one": card_of(model).model_copy(update=learnt),
        "several": card_of(model).model_copy(update=learnt | {"scales": ((20, 256), (10, 512))}),
    }
    for name, card in folders.items():
        save_bundle(str(tmp_path / name), model, card)
    files = {}
    for name, changes in (
        ("same", {}),
        ("small", {"target_magnification": 10, "patch_size": 512}),
        ("no", {"patch_size": 99}),
    ):
        files[name] = str(write_hdf5(tmp_path / f"{name}.h5", "trident", values(9, width=model.width)))
        with h5py.File(files[name], "a") as file:
            file["coords"].attrs.update(changes)
    files["clam"] = str(write_hdf5(tmp_path / "clam.h5", "clam", values(9, width=model.width)))

    def predicted(bundle: str) -> dict[str, dict[str, object]]:
        ensemble = Ensemble([str(tmp_path / bundle)], "cpu")
        return {name: ensemble.predict(name, [name], [path]) for name, path in files.items()}

    one, several = predicted("one"), predicted("several")
    assert {name for name, row in one.items() if row["p"] is not None} == {"same", "clam"}
    assert {name for name, row in several.items() if row["p"] is not None} == {"same", "small", "clam"}
    assert "10x magnification in patches of 512" in str(one["small"]["faults"])
    (said,) = other_formats(list(one.values()), folders["one"])
    assert said.startswith("1 feature file is of the layout clam; the model was trained on trident")


def test_every_model_has_learnt_the_scale_of_a_file_in_whichever_order_they_are_named(tmp_path: Path) -> None:
    model = small_model()
    for magnification, patch_px in ((20, 256), (10, 512), (None, None)):
        card = card_of(model).model_copy(update={"magnification": magnification, "patch_px": patch_px})
        save_bundle(str(tmp_path / f"{magnification}x"), model, card)
    file = str(write_hdf5(tmp_path / "a.h5", "trident", values(9, width=model.width)))  # at 20x

    def predicted(*names: str) -> dict[str, object]:
        return Ensemble([str(tmp_path / name) for name in names], "cpu").predict("a", ["a"], [file])

    assert predicted("20x", "Nonex")["p"] is not None
    for names in (("20x", "10x"), ("10x", "20x"), ("Nonex", "10x")):
        assert predicted(*names)["p"] is None
        assert "the model was trained at 10x magnification" in str(predicted(*names)["faults"])


def test_files_that_cannot_be_used_end_with_the_way_on_where_others_are_left(tmp_path: Path, no_cluster: None) -> None:
    model = small_model()
    save_bundle(str(tmp_path / "model"), model, card_of(model))
    (tmp_path / "features").mkdir()

    def predicted(on_error: OnError) -> pd.DataFrame:
        return predict_slides(
            [str(tmp_path / "model")], str(tmp_path / "features"), str(tmp_path / "p.csv"), on_error=on_error
        )

    (tmp_path / "features" / "bad.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError) as alone:
        predicted("stop")
    assert "1 of 1 feature files cannot be used" in str(alone.value)
    assert "--on-error" not in str(alone.value)
    write_hdf5(tmp_path / "features" / "good.h5", "trident", values(9, width=model.width))
    with pytest.raises(InputError, match=r"1 of 2 .* or go on without them by --on-error skip$"):
        predicted("stop")
    assert predicted("skip")["slide_id"].tolist() == ["good"]
