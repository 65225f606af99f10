"""Names in every script: classes, patients, slides, columns and folders, through the verbs that train and read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.command_line import outcome
from support.s3 import S3Server

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.ray_runtime.cluster import Connection

NAMES = {"positive": "阳性", "negative": "négatif/−"}  # noqa: RUF001  # a minus sign


def renamed(text: str) -> str:
    """A patient or a file's name in another script."""
    return text.replace("TCGA-", "Fällé-Ж")


def written(config: Config, place: Path) -> Path:
    """The tiny cohort in folders, columns and identifiers beyond ASCII; returns its configuration."""
    features = place / "Merkmale ü" / "特征"
    features.mkdir(parents=True)
    for path in Path(config.features.dir).iterdir():
        shutil.copy(path, features / renamed(path.name))
    source = config.cohort
    clinical = pd.read_csv(str(source.clinical), dtype=str).replace(NAMES)
    clinical = clinical.map(lambda value: renamed(value) if isinstance(value, str) else value)
    slides = pd.read_csv(str(source.slides), dtype=str).map(renamed)
    omics = pd.read_parquet(str(source.omics))
    omics["PATIENT"] = omics["PATIENT"].map(renamed)
    clinical.rename(columns={"LABEL": "Étiquette"}).to_csv(place / "klinisch.csv", index=False)
    slides.to_csv(place / "Schnitte.csv", index=False)
    omics.to_parquet(place / "RNA-ß.parquet")
    tree = config.model_dump(mode="json")
    tree["cohort"] |= {
        "clinical": str(place / "klinisch.csv"),
        "slides": str(place / "Schnitte.csv"),
        "omics": str(place / "RNA-ß.parquet"),
        "label": "Étiquette",
        "positive": NAMES["positive"],
        "negative": NAMES["negative"],
    }
    tree["features"]["dir"] = str(features)
    tree["train"]["epochs"] = 1
    tree["run"]["dir"] = str(place / "Läufe" / "проба 1")
    path = place / "Konfiguration é.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return path


@pytest.mark.slow
def test_every_verb_takes_names_in_every_script(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tiny_config, tmp_path))
    run = tmp_path / "Läufe" / "проба 1"
    for verb in (["audit"], ["ingest", "--clean"], ["split"], ["train", "--fold", "0"], ["crossval"]):
        assert outcome(*verb, "--config", path) == 0, capsys.readouterr().err
    assert outcome("report", "--run", str(run)) == 0
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert set(predictions["label"]) == set(NAMES.values())
    assert all("Ж" in patient for patient in predictions["patient_id"])
    assert {f"p_{name}" for name in NAMES.values()} <= set(predictions.columns)
    assert "阳性" in (run / "report.html").read_text()
    features = str(tmp_path / "Merkmale ü" / "特征")
    model, out = str(run / "fold=0" / "model"), tmp_path / "Ausgabe ü.csv"
    assert outcome("predict", "--model", model, "--features", features, "--out", str(out)) == 0
    assert {f"p_{name}" for name in NAMES.values()} <= set(pd.read_csv(out).columns)


def test_a_run_on_s3_takes_names_in_every_script(s3_server: S3Server) -> None:
    place = f"{s3_server.uri}/Läufe/проба 1"
    storage.write_json(f"{place}/阳性.json", {"Étiquette": NAMES["positive"]})
    assert storage.read_json(f"{place}/阳性.json") == {"Étiquette": "阳性"}
    assert storage.list_names(f"{s3_server.uri}/Läufe") == ["проба 1"]
