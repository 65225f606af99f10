"""A continuous target the whole way: trained over quantile classes, tested, predicted, handed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from scipy.stats import spearmanr
from support.regression_runs import fit_here, number_config
from support.runs import inputs_of, without_cluster
from support.tiny_config import config_of
from typer.testing import CliRunner

from momkd_ray.cli import app
from momkd_ray.config.load import load_config
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


@dataclass(frozen=True)
class Trained:
    """A finished cross-validation of a number.

    Attributes:
        folder: of the cohort and all that is made from it.
        truth: patient -> number in the clinical table; missing for some.
    """

    folder: Path
    inputs: RunInputs
    metrics: dict[str, Any]
    truth: pd.Series[Any]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def predictions(self) -> pd.DataFrame:
        return pd.read_parquet(self.run / "predictions.parquet")

    @property
    def models(self) -> list[str]:
        return [str(self.run / f"fold={fold}" / "model") for fold in self.inputs.plan.folds]


@dataclass(frozen=True)
class Predicted:
    """The predictions of the cohort's patients, by each model alone and by the ensemble, whose file is kept."""

    alone: list[pd.DataFrame]
    ensemble: pd.DataFrame
    path: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_cohort_dir: Path) -> Iterator[Trained]:
    """Cross-validated in this process, without Ray, and once for all tests."""
    folder = tmp_path_factory.mktemp("number")
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_cluster(monkeypatch)
        fit_here(monkeypatch)
        inputs = inputs_of(number_config(folder, config_of(tiny_cohort_dir, folder / "run")))
        for fold in inputs.plan.folds:
            assert run_fold(inputs, fold, 0, {}) is not None
        metrics = _write_results(inputs, dict.fromkeys(inputs.plan.folds, 0))
        truth = pd.read_csv(folder / "cohort" / "clinical.csv").set_index("PATIENT")["SCORE"]
        yield Trained(folder, inputs, metrics, truth)


@pytest.fixture(scope="module")
def predicted(trained: Trained) -> Predicted:
    table, out = str(trained.folder / "slides.csv"), str(trained.folder / "p.csv")
    slides = pd.read_csv(trained.folder / "cohort" / "slides.csv")
    slides.assign(score=slides["PATIENT"].map(trained.truth)).to_csv(table, index=False)
    features = load_config(trained.run / "run.yaml").features.dir

    def predict(*models: str) -> pd.DataFrame:
        of = predict_folder(models, features, out, ProgressReporter(), slides=table, by_patient=True, gpus=0)
        return of.set_index("patient_id")

    return Predicted([predict(model) for model in trained.models], predict(*trained.models), out)


def only_the_score_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the other figures of a page, which have tests of their own and take most of the time."""

    def write(drawings: list[Drawing], folder: str) -> None:
        write_drawings([drawing for drawing in drawings if drawing.name == "score"], folder)

    monkeypatch.setattr(page_module, "write_drawings", write)
    monkeypatch.setattr(Drawing, "inline", lambda self: Markup(f"figure {self.name}"))
    monkeypatch.setattr(curves, "smooth_curve", lambda *_: pd.DataFrame())


def test_what_is_written_is_what_is_measured(trained: Trained) -> None:
    predictions, pooled = trained.predictions, trained.metrics["metrics"]
    assert predictions["true_score"].tolist() == trained.truth.loc[predictions["patient_id"]].tolist()
    assert list(pooled)[:4] == ["spearman", "r2", "mae", "auc"] and trained.metrics["task"] == "regression"
    assert pooled["spearman"]["pooled"] == pytest.approx(spearmanr(predictions["score"], predictions["true_score"])[0])
    assert pooled["mae"]["pooled"] == pytest.approx((predictions["score"] - predictions["true_score"]).abs().mean())


def test_classes_stand_for_the_means_of_the_training_patients(trained: Trained) -> None:
    inputs, predictions = trained.inputs, trained.predictions
    resolved = load_config(trained.run / "run.yaml")
    assert resolved.cohort.class_names == inputs.cohort.classes and len(inputs.cohort.classes) == 3
    columns = [f"p_{name}" for name in inputs.cohort.classes]
    for fold, model in enumerate(trained.models):
        expected = load_bundle(model)[1].expected_score
        assert expected is not None
        bags = inputs.fold_bags(fold)
        # the kept model was trained again with the validation patients
        training = bags[bags["role"] != "test"].drop_duplicates("patient_id")
        means = trained.truth.loc[training["patient_id"]].groupby(training["y"].to_numpy()).mean()
        np.testing.assert_allclose(expected.values, means)
        own = predictions[predictions["fold"] == fold]
        single = own["patient_id"].isin(set(bags.loc[~bags["patient_id"].duplicated(keep=False), "patient_id"]))
        np.testing.assert_allclose(expected.of(own.loc[single, columns]), own.loc[single, "score"])


def test_a_models_card_says_the_metric_that_chose_it(trained: Trained) -> None:
    for fold, model in enumerate(trained.models):
        card = load_bundle(model)[1]
        readme = (Path(model) / "README.md").read_text()
        assert "The number SCORE: the mean of " in readme and "spearman" in readme
        val = json.loads((trained.run / f"fold={fold}" / "result.json").read_text())["val_scores"]
        lines = (trained.run / f"fold={fold}" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["val_spearman"] == pytest.approx(val["spearman"]) == card.origin["val_spearman"]
        assert last["val_auc"] == pytest.approx(val["auc"])


def test_the_report_shows_predicted_and_true_numbers(
    trained: Trained, no_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_score_is_drawn(monkeypatch)
    page = Path(write_report(str(trained.run))).read_text()
    assert "In 36 patients whom the models had not seen" in page and "of predicted and true SCORE is" in page
    assert "a number, in the classes under" in page
    assert f"cut at {', '.join(bounds_of(trained.inputs.cohort.ranges or ()))}" in page
    assert (trained.run / "figures" / "score.png").stat().st_size > 5000
    drawn = pd.read_csv(trained.run / "figures" / "score.csv")
    assert drawn["score"].tolist() == pytest.approx(trained.predictions["score"].tolist())
    wrong = pd.read_csv(trained.run / "wrong_calls.csv")
    assert wrong["error"].abs().is_monotonic_decreasing
    assert (wrong["error"] - wrong["score"] + wrong["true_score"]).abs().max() < 1e-5


def test_a_model_predicts_as_it_was_tested_and_an_ensemble_the_mean_of_its_models(
    trained: Trained, predicted: Predicted
) -> None:
    predictions = trained.predictions
    tested = predictions[predictions["fold"] == 0].set_index("patient_id")
    first, second = (of["score"] for of in predicted.alone)
    np.testing.assert_allclose(first.loc[tested.index], tested["score"], rtol=1e-3)
    np.testing.assert_allclose(predicted.ensemble["score"], (first + second) / 2, rtol=1e-6)
    written = json.loads(Path(f"{predicted.path}.metrics.json").read_text())
    assert written["patients"] == 36 and list(written["metrics"]) == ["spearman", "r2", "mae"]


def test_predictions_are_evaluated_by_the_numbers_of_another_table(
    trained: Trained, predicted: Predicted, tmp_path: Path
) -> None:
    clinical, truth = str(tmp_path / "external.csv"), trained.truth
    numbers = truth.astype(str).replace("nan", "unknown")
    pd.DataFrame({"PATIENT": truth.index, "ODX": numbers}).to_csv(clinical, index=False)
    options = ["evaluate", str(trained.run), "--clinical", clinical, "--label", "ODX", "--predictions", predicted.path]
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "e")])
    assert result.exit_code == 0, result.output
    evaluation = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    labelled = truth.dropna().index
    expected = spearmanr(predicted.ensemble["score"].loc[labelled], truth.loc[labelled])[0]
    assert evaluation["metrics"]["spearman"]["value"] == pytest.approx(expected)
    assert evaluation["calibration"]["slope"]["interval"] is not None
    assert "36 of the 36 patients are also in the run's folds" in evaluation["notes"][0]
    assert "Spearman correlation of" in result.output and (tmp_path / "e" / "figures" / "score.csv").exists()
    refused = CliRunner().invoke(app, [*options, "--positive", "high"])
    assert "--positive is for two classes, but this run predicts a number" in str(refused.exception)
    pd.read_csv(predicted.path).drop(columns="score").to_csv(tmp_path / "classes.csv", index=False)
    refused = CliRunner().invoke(app, [*options[:-1], str(tmp_path / "classes.csv")])
    assert "has no column 'score' with the predicted number" in str(refused.exception)


def test_stamp_has_the_scores_of_the_classes(trained: Trained, tmp_path: Path) -> None:
    stamp = pd.read_csv(write_stamp(str(trained.run), str(tmp_path / "stamp"))[0])
    assert {f"SCORE_{name}" for name in trained.inputs.cohort.classes} <= set(stamp.columns)


def test_a_model_of_a_number_and_one_of_classes_are_no_ensemble(trained: Trained, tmp_path: Path) -> None:
    first, second = map(Path, trained.models)
    card = json.loads((second / "model.json").read_text()) | {"expected_score": None}
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "weights.safetensors").write_bytes((second / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="predicts a number and"):
        check_ensemble([str(first), str(tmp_path)])
