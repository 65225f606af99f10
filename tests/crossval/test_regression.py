"""A continuous target the whole way: trained over quantile classes, tested, predicted, handed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from scipy.stats import spearmanr
from support.regression_runs import fit_here, number_config
from support.runs import inputs_of
from typer.testing import CliRunner

from momkd_ray.cli import app
from momkd_ray.config.load import Config, load_config
from momkd_ray.config.quantile_ranges import bounds_of
from momkd_ray.crossval.cross_validate import _write_results
from momkd_ray.crossval.fold import run_fold
from momkd_ray.errors import InputError
from momkd_ray.export.stamp import write_stamp
from momkd_ray.model.bundle import load_bundle
from momkd_ray.predict.ensemble import check_ensemble, predict_folder
from momkd_ray.progress import ProgressReporter
from momkd_ray.report import curves
from momkd_ray.report import page as page_module
from momkd_ray.report.drawings import Drawing, write_drawings
from momkd_ray.report.page import write_report
from momkd_ray.run.inputs import RunInputs


def train_here(inputs: RunInputs, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Cross-validates in this process, without Ray."""

    fit_here(monkeypatch)
    for fold in inputs.plan.folds:
        assert run_fold(inputs, fold, 0, {}) is not None
    return _write_results(inputs, dict.fromkeys(inputs.plan.folds, 0))


def only_the_score_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the other figures of a page, which have tests of their own and take most of the time."""

    def write(drawings: list[Drawing], folder: str) -> None:
        write_drawings([drawing for drawing in drawings if drawing.name == "score"], folder)

    monkeypatch.setattr(page_module, "write_drawings", write)
    monkeypatch.setattr(Drawing, "inline", lambda self: Markup(f"figure {self.name}"))
    monkeypatch.setattr(curves, "smooth_curve", lambda *_: pd.DataFrame())


def test_a_number_the_whole_way(
    tiny_config: Config, no_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, run = inputs_of(number_config(tmp_path, tiny_config)), tmp_path / "run"
    metrics = train_here(inputs, monkeypatch)
    resolved = load_config(run / "run.yaml")
    assert resolved.cohort.class_names == inputs.cohort.classes and len(inputs.cohort.classes) == 3

    # what is written is what is measured, and the classes stand for the training patients' means
    predictions = pd.read_parquet(run / "predictions.parquet")
    truth = pd.read_csv(tmp_path / "cohort" / "clinical.csv").set_index("PATIENT")["SCORE"]
    assert predictions["true_score"].tolist() == truth.loc[predictions["patient_id"]].tolist()
    pooled = metrics["metrics"]
    assert list(pooled)[:4] == ["spearman", "r2", "mae", "auc"] and metrics["task"] == "regression"
    assert pooled["spearman"]["pooled"] == pytest.approx(spearmanr(predictions["score"], predictions["true_score"])[0])
    assert pooled["mae"]["pooled"] == pytest.approx((predictions["score"] - predictions["true_score"]).abs().mean())
    columns = [f"p_{name}" for name in inputs.cohort.classes]
    bundles = [str(run / f"fold={fold}" / "model") for fold in inputs.plan.folds]
    for fold, bundle in enumerate(bundles):
        card = load_bundle(bundle)[1]
        assert card.expected_score is not None
        bags = inputs.fold_bags(fold)
        # the kept model was trained again with the validation patients
        training = bags[bags["role"] != "test"].drop_duplicates("patient_id")
        means = truth.loc[training["patient_id"]].groupby(training["y"].to_numpy()).mean()
        np.testing.assert_allclose(card.expected_score.values, means)
        own = predictions[predictions["fold"] == fold]
        single = own["patient_id"].isin(set(bags.loc[~bags["patient_id"].duplicated(keep=False), "patient_id"]))
        np.testing.assert_allclose(card.expected_score.of(own.loc[single, columns]), own.loc[single, "score"])
        readme = (Path(bundle) / "README.md").read_text()
        assert "The number SCORE: the mean of " in readme and "spearman" in readme
        # the figure that chooses is the one that the kept model is said to have
        val = json.loads((run / f"fold={fold}" / "result.json").read_text())["val_scores"]
        epochs = [json.loads(line) for line in (run / f"fold={fold}" / "metrics.jsonl").read_text().splitlines()]
        assert epochs[-1]["val_spearman"] == pytest.approx(val["spearman"]) == card.origin["val_spearman"]
        assert epochs[-1]["val_auc"] == pytest.approx(val["auc"])

    only_the_score_is_drawn(monkeypatch)
    page = Path(write_report(str(run))).read_text()
    assert "In 36 patients whom the models had not seen" in page and "of predicted and true SCORE is" in page
    assert "a number, in the classes under" in page
    assert f"cut at {', '.join(bounds_of(inputs.cohort.ranges or ()))}" in page
    assert (run / "figures" / "score.png").stat().st_size > 5000
    drawn = pd.read_csv(run / "figures" / "score.csv")
    assert drawn["score"].tolist() == pytest.approx(predictions["score"].tolist())
    wrong = pd.read_csv(run / "wrong_calls.csv")
    assert wrong["error"].abs().is_monotonic_decreasing
    assert (wrong["error"] - wrong["score"] + wrong["true_score"]).abs().max() < 1e-5

    # one model predicts its fold's test patients as it was tested, and an ensemble the mean of its models
    features, out = resolved.features.dir, str(tmp_path / "p.csv")
    table = str(tmp_path / "slides.csv")
    slides = pd.read_csv(tmp_path / "cohort" / "slides.csv")
    slides.assign(score=slides["PATIENT"].map(truth)).to_csv(table, index=False)

    def predicted(*models: str) -> pd.DataFrame:
        of = predict_folder(models, features, out, ProgressReporter(), slides=table, by_patient=True, gpus=0)
        return of.set_index("patient_id")

    tested = predictions[predictions["fold"] == 0].set_index("patient_id")
    alone = [predicted(bundle) for bundle in bundles]
    np.testing.assert_allclose(alone[0]["score"].loc[tested.index], tested["score"], rtol=1e-3)
    both = predicted(*bundles)
    np.testing.assert_allclose(both["score"], (alone[0]["score"] + alone[1]["score"]) / 2, rtol=1e-6)
    written = json.loads((tmp_path / "p.csv.metrics.json").read_text())
    assert written["patients"] == 36 and list(written["metrics"]) == ["spearman", "r2", "mae"]

    clinical = str(tmp_path / "external.csv")
    pd.DataFrame({"PATIENT": truth.index, "ODX": truth.astype(str).replace("nan", "unknown")}).to_csv(
        clinical, index=False
    )
    options = ["evaluate", str(run), "--clinical", clinical, "--label", "ODX", "--predictions", out]
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "e")])
    assert result.exit_code == 0, result.output
    evaluation = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    of_all = evaluation["metrics"]["spearman"]["value"]
    labelled = truth.dropna().index
    assert of_all == pytest.approx(spearmanr(both["score"].loc[labelled], truth.loc[labelled])[0])
    assert evaluation["calibration"]["slope"]["interval"] is not None
    assert "36 of the 36 patients are also in the run's folds" in evaluation["notes"][0]
    assert "Spearman correlation of" in result.output and (tmp_path / "e" / "figures" / "score.csv").exists()
    refused = CliRunner().invoke(app, [*options, "--positive", "high"])
    assert "--positive is for two classes, but this run predicts a number" in str(refused.exception)
    fewer = pd.read_csv(out).drop(columns="score")
    fewer.to_csv(tmp_path / "classes.csv", index=False)
    refused = CliRunner().invoke(app, [*options[:-1], str(tmp_path / "classes.csv")])
    assert "has no column 'score' with the predicted number" in str(refused.exception)

    stamp = pd.read_csv(write_stamp(str(run), str(tmp_path / "stamp"))[0])
    assert {f"SCORE_{name}" for name in inputs.cohort.classes} <= set(stamp.columns)
    plain = tmp_path / "plain"
    card = json.loads((Path(bundles[1]) / "model.json").read_text()) | {"expected_score": None}
    plain.mkdir()
    (plain / "model.json").write_text(json.dumps(card))
    (plain / "weights.safetensors").write_bytes((Path(bundles[1]) / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="predicts a number and"):
        check_ensemble([bundles[0], str(plain)])
