"""Three classes the whole way: trained, reported, compared, predicted, drawn, handed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.command_line import outcome
from support.runs import crossval, inputs_of

from momkd_ray.compare.run import compare_models
from momkd_ray.config.load import Config
from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.model.bundle import load_bundle
from momkd_ray.predict.ensemble import predict_folder
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.report.page import write_report
from momkd_ray.synthetic.cohort import class_names, generate_cohort

GRADES = class_names(3)
COLUMNS = [f"p_{name}" for name in GRADES]


def config_of(folder: Path, tiny: Config, **other: object) -> Config:
    cohort = folder / "cohort"
    generate_cohort(SyntheticConfig(dir=str(cohort), patients=30, patches=20, width=16, genes=30, classes=3))
    tree = tiny.model_dump(mode="json") | {"run": {"dir": str(folder / "run")}, **other}
    tree["cohort"] |= {
        "clinical": str(cohort / "clinical.csv"),
        "slides": str(cohort / "slides.csv"),
        "omics": str(cohort / "rna.parquet"),
        "classes": list(GRADES),
    }
    tree["features"]["dir"] = str(cohort / "features")
    return Config.model_validate(tree)


@pytest.mark.slow
def test_three_classes_the_whole_way(tiny_config: Config, ray_cluster: Connection, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_config)
    metrics, run = crossval(config), tmp_path / "run"
    assert list(metrics["counts"]["classes"]) == list(GRADES) and metrics["counts"]["patients"] == 30
    assert metrics["thresholds"] == {"0": None, "1": None}
    assert "macro AUC" in Path(write_report(str(run))).read_text()
    predictions = pd.read_parquet(run / "predictions.parquet")
    np.testing.assert_allclose(predictions[COLUMNS].sum(axis=1), 1, rtol=1e-5)
    assert (predictions["predicted"] == predictions[COLUMNS].idxmax(axis=1).str[2:]).all()

    bundle = str(run / "fold=0" / "model")
    assert load_bundle(bundle)[1].classes == GRADES
    slides = pd.read_parquet(run / "fold=0" / "test_slides.parquet").set_index("slide_id")
    predicted = predict_folder(
        [bundle], config.features.dir, str(tmp_path / "p.csv"), ProgressReporter(), slides=None, gpus=0
    )
    ours = predicted.set_index("slide_id").loc[slides.index]
    np.testing.assert_allclose(ours[COLUMNS], slides[COLUMNS], atol=2e-3)

    (run / "run.yaml").write_text(config.to_yaml())
    assert outcome("heatmap", "--run", str(run), "--slide", str(slides.index[0])) == 0
    table = pd.read_csv(run / "heatmaps" / "slides.csv").set_index("slide_id")
    np.testing.assert_allclose(table[COLUMNS].iloc[0], slides[COLUMNS].iloc[0], atol=1e-4)

    assert outcome("export", bundle, "--format", "zip", "--out", str(tmp_path / "m.zip"), "--run", str(run)) == 0
    assert outcome("import", str(tmp_path / "m.zip"), "--out", str(tmp_path / "again")) == 0
    assert outcome("export", "--run", str(run), "--format", "stamp", "--out", str(tmp_path / "stamp")) == 0
    stamp = pd.read_csv(tmp_path / "stamp" / "split-0" / "patient-preds.csv")
    assert {f"LABEL_{name}" for name in GRADES} <= set(stamp.columns)


@pytest.mark.slow
def test_models_of_three_classes_are_compared(tiny_config: Config, ray_cluster: Connection, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_config, compare={"models": ["mean_pool", "max_pool"], "seeds": [1]})
    board = compare_models(inputs_of(config), ProgressReporter(), own_cluster=True)
    assert board.classes == dict.fromkeys(GRADES, 10)
    difference = next(row.difference for row in board.rows if row.difference is not None)
    assert difference.delong is None and difference.bootstrap_interval[0] <= difference.bootstrap
    page = (tmp_path / "run" / "compare.html").read_text()
    assert "means over classes" in page
    assert json.loads((tmp_path / "run" / "leaderboard.json").read_text())["classes"] == dict.fromkeys(GRADES, 10)
