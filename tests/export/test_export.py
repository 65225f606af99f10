"""Models handed over: ONNX and pt2 compute what the bundle computes; an archive comes back as it went."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from support.command_line import outcome
from support.models import card_of, small_model

from momkd_ray.errors import InputError
from momkd_ray.export.archive import read_archive
from momkd_ray.export.program import Program, example, expected
from momkd_ray.export.stamp import stamp_table
from momkd_ray.model.bundle import load_bundle, save_bundle
from momkd_ray.model.registry import build_model


def bundle(folder: Path, name: str = "momkd", seed: int = 0, **changes: object) -> str:
    card = card_of(small_model())
    sizes = card.model.model_copy(update={"name": name})
    torch.manual_seed(seed)
    model = build_model(sizes, card.memory, card.loss, width=card.width, genes=card.genes)
    save_bundle(str(folder), model, card.model_copy(update={"model": sizes, **changes}))
    return str(folder)


@pytest.mark.parametrize("name", ["momkd", "gated_abmil", "acmil", "clam_sb"])
def test_the_program_computes_what_the_models_compute(name: str, tmp_path: Path) -> None:
    models = [load_bundle(bundle(tmp_path / str(seed), name, seed))[0] for seed in (0, 1)]
    card = load_bundle(str(tmp_path / "0"))[1]
    program = Program(models)
    for patches in (2, 5, 40):
        features, edges = example(card, patches, patches)
        with torch.no_grad():
            p_Y, attention_P = program(torch.from_numpy(features), torch.from_numpy(edges))
        np.testing.assert_allclose(p_Y.numpy(), expected(models, features, edges), atol=1e-5)
        assert attention_P.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("momkd", "onnx"),
        ("abmil", "pt2"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("momkd", "pt2"), ("abmil", "onnx"))),
    ],
)
def test_onnx_and_pt2_run_without_the_package(
    name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [bundle(tmp_path / str(seed), name, seed) for seed in (0, 1)]
    out = tmp_path / f"model.{form}"
    assert outcome("export", *places, "--format", form, "--out", str(out)) == 0
    assert "Checked against the bundles" in capsys.readouterr().out
    models, card = [load_bundle(place)[0] for place in places], load_bundle(places[0])[1]
    for patches in (3, 200):
        features, edges = example(card, patches, patches)
        if form == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            names = [given.name for given in session.get_inputs()]
            p_Y = session.run(["probabilities"], dict(zip(names, (features, edges), strict=False)))[0]
            described = session.get_modelmeta().custom_metadata_map
            assert json.loads(described["classes"]) == ["negative", "positive"]
        else:
            program = torch.export.load(str(out)).module()
            given = [torch.from_numpy(features), torch.from_numpy(edges)][: 2 if name == "momkd" else 1]
            p_Y = program(*given)[0].numpy()
        np.testing.assert_allclose(p_Y, expected(models, features, edges), atol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_model_without_a_graph_needs_no_edges(form: str, tmp_path: Path) -> None:
    place = bundle(tmp_path / "m", graph="none")
    out = tmp_path / f"m.{form}"
    assert outcome("export", place, "--format", form, "--out", str(out)) == 0
    model, card = load_bundle(place)
    features, edges = example(card, 30, 1)
    assert edges.shape == (2, 0)
    if form == "pt2":
        p_Y = torch.export.load(str(out)).module()(torch.from_numpy(features))[0].numpy()
        np.testing.assert_allclose(p_Y, expected([model], features, edges), atol=1e-5)


@pytest.mark.parametrize("name", ["transmil", "mean_pool", "dsmil"])
def test_models_that_cannot_be_programs_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = bundle(tmp_path / "m", name)
    assert outcome("export", place, "--format", "onnx", "--out", str(tmp_path / "m.onnx")) == 1
    assert f"a model of type {name} cannot be written as ONNX or pt2" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    places = [bundle(tmp_path / f"fold={k}" / "model", seed=k, encoder="uni", origin={"fold": k}) for k in (0, 1)]
    out = tmp_path / "pr.zip"
    about = ["--intended-use", "Triage in study X.", "--license", "apache-2.0", "--authors", "A, B"]
    assert outcome("export", *places, "--format", "zip", "--out", str(out), *about) == 0
    return out


def test_an_archive_comes_back_as_it_went(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert outcome("import", str(archive), "--out", str(tmp_path / "in")) == 0
    places = capsys.readouterr().out.split()
    assert len(places) == 2
    for k, place in enumerate(places):
        for name in ("weights.safetensors", "model.json"):
            assert (Path(place) / name).read_bytes() == (tmp_path / f"fold={k}" / "model" / name).read_bytes()


def test_the_same_ensemble_gives_the_same_archive(archive: Path, tmp_path: Path) -> None:
    places = [str(tmp_path / f"fold={k}" / "model") for k in (0, 1)]
    about = ["--intended-use", "Triage in study X.", "--license", "apache-2.0", "--authors", "A, B"]
    again = tmp_path / "again" / "pr.zip"
    assert outcome("export", *places, "--format", "zip", "--out", str(again), *about) == 0
    assert again.read_bytes() == archive.read_bytes()


def test_the_card_has_hugging_face_s_fields_and_the_metadata_monai_s(archive: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        text = packed.read("README.md").decode()
        metadata = json.loads(packed.read("metadata.json"))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "momkd-ray"
    assert "Triage in study X." in text
    assert "extracted with uni" in text
    required = (
        "version monai_version pytorch_version numpy_version required_packages_version task description authors "
        "copyright network_data_format"
    )
    assert set(required.split()) <= set(metadata)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "negative", "1": "positive"}
    assert metadata["authors"] == "A, B"


def test_the_card_states_the_metrics_of_the_run(tmp_path: Path) -> None:
    value = {"mean": 0.81, "sd": 0.02, "pooled": 0.80, "interval": [0.71, 0.88]}
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {"auc": value}}))
    out = tmp_path / "m.zip"
    place = bundle(tmp_path / "m")
    assert outcome("export", place, "--format", "zip", "--out", str(out), "--run", str(tmp_path)) == 0
    with zipfile.ZipFile(out) as packed:
        text = packed.read("README.md").decode()
    assert "| auc | 0.810 ± 0.020 | 0.800, 0.710 to 0.880 |" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.81


def repacked(archive: Path, change: dict[str, bytes | None]) -> Path:
    with zipfile.ZipFile(archive) as packed:
        files = {name: packed.read(name) for name in packed.namelist()} | change
    out = archive.with_name("changed.zip")
    with zipfile.ZipFile(out, "w") as packed:
        for name, content in files.items():
            if content is not None:
                packed.writestr(name, content)
    return out


def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    def refuses(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            read_archive(str(path), str(tmp_path / "in"))

    refuses(tmp_path / "none.zip", "does not exist")
    (tmp_path / "text.zip").write_text("no zip")
    refuses(tmp_path / "text.zip", "no archive of an ensemble")
    refuses(repacked(archive, {"models/00/weights.safetensors": b"x"}), "models/00/weights.safetensors is missing or")
    refuses(repacked(archive, {"README.md": None}), "README.md is missing or another")
    refuses(repacked(archive, {"manifest.json": b"{}"}), "no archive of an ensemble")
    assert not (tmp_path / "in").exists()


def test_an_archive_never_writes_outside_its_folder(archive: Path, tmp_path: Path) -> None:
    import hashlib

    with zipfile.ZipFile(archive) as packed:
        manifest = json.loads(packed.read("manifest.json"))
    manifest["sha256"]["../evil"] = hashlib.sha256(b"x").hexdigest()
    changed = repacked(archive, {"../evil": b"x", "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(InputError, match="outside its folder"):
        read_archive(str(changed), str(tmp_path / "in"))
    assert not (tmp_path / "evil").exists()


def test_stamp_s_table_has_its_columns() -> None:
    predictions = pd.DataFrame(
        {
            "patient_id": ["a", "b", "c"],
            "label": ["yes", "no", "yes"],
            "predicted": ["yes", "yes", "no"],
            "p_no": [0.1, 0.4, 0.7],
            "p_yes": [0.9, 0.6, 0.3],
            "fold": 0,
        }
    )
    table = stamp_table(predictions, "Case ID", "ER", ("no", "yes"))
    assert list(table.columns) == ["Case ID", "ER", "pred", "ER_no", "ER_yes", "loss"]
    assert table["Case ID"].tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(table["loss"], -np.log([0.9, 0.4, 0.3]))


def test_the_predictions_of_a_run_become_stamp_s_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    arguments = ["export", "--format", "stamp", "--run", str(run), "--out", str(tmp_path / "stamp")]
    assert outcome(*arguments) == 1
    assert "no finished cross-validation" in capsys.readouterr().err
    rows = [(f"p{i}", ["neg", "pos"][i % 2], "pos", 0.5 - i / 20, 0.5 + i / 20, i % 3) for i in range(6)]
    columns = ["patient_id", "label", "predicted", "p_neg", "p_pos", "fold"]
    pd.DataFrame(rows, columns=columns).to_parquet(run / "predictions.parquet")
    (run / "run.yaml").write_text("cohort: {label: PR}\n")
    (run / "folds.csv").write_text("Case ID,fold\np0,0\n")
    assert outcome(*arguments) == 0
    tables = [pd.read_csv(tmp_path / "stamp" / f"split-{k}" / "patient-preds.csv") for k in range(3)]
    assert all(list(table.columns) == ["Case ID", "PR", "pred", "PR_neg", "PR_pos", "loss"] for table in tables)
    assert sorted(pd.concat(tables)["Case ID"]) == [f"p{i}" for i in range(6)]
    assert outcome("export", "--format", "zip", "--out", str(tmp_path / "x.zip")) == 2
    assert re.search("MODELS", capsys.readouterr().err)
