"""The scripts of `examples/` run and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from support.models import card_of, small_model

from momkd_ray.model.bundle import save_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"


def main_of(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_a_fold_is_trained_on_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("train_on_arrays.py")(str(tmp_path)) > 0.6
    printed = capsys.readouterr().out
    assert printed.count("AUC") >= 2
    assert "p_positive" in printed
    assert (tmp_path / "fold=0" / "metrics.jsonl").exists()


def test_slides_are_predicted_with_bundles(
    tmp_path: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    bundles = [str(tmp_path / name) for name in ("a", "b")]
    for bundle in bundles:
        save_bundle(bundle, model, card_of(model))
    features, rng = tmp_path / "features", np.random.default_rng(0)
    features.mkdir()
    for slide in ("s0", "s1", "s2"):
        with h5py.File(features / f"{slide}.h5", "w") as file:
            file["features"] = rng.normal(size=(12, card_of(model).width)).astype("f4")
            file["coords"] = np.stack(np.divmod(np.arange(12), 4), axis=1) * 256
    main_of("predict_with_bundle.py")(str(features), str(tmp_path / "p.csv"), bundles)
    assert sorted(pd.read_csv(tmp_path / "p.csv")["slide_id"]) == ["s0", "s1", "s2"]
    assert "s2" in capsys.readouterr().out
