"""The report and the evaluation of more than two classes, from a run that was not trained."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from support.finished_runs import write_run
from typer.testing import CliRunner

from momkd_ray.cli import app
from momkd_ray.crossval.class_evaluate import pool_classes
from momkd_ray.report.page import write_report
from momkd_ray.report.patients import table_one

HER2 = ("zero", "low", "positive <3+>")
pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_run(tmp_path_factory.mktemp("run"), classes=HER2, label="HER2"))


def test_the_page_shows_every_class(run: Path) -> None:
    page = Path(write_report(str(run))).read_text()
    assert "macro AUC" in page and "quadratic-weighted kappa" in page
    assert "<3+>" not in page and "positive &lt;3+&gt;" in page
    assert "TRIPOD+AI" in page and "the likeliest class is called" in page
    assert "genes were chosen in at least one of" in page
    figures = sorted(path.stem for path in (run / "figures").glob("*.csv"))
    assert {"roc", "confusion", "calibration-0", "calibration-1", "calibration-2"} <= set(figures)
    wrong = pd.read_csv(run / "wrong_calls.csv")
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert len(wrong) == (predictions["label"] != predictions["predicted"]).sum()
    assert wrong["p_label"].is_monotonic_increasing and (wrong["p_label"] <= wrong["p_predicted"]).all()


def test_metrics_json_has_what_the_predictions_say(run: Path) -> None:
    figures = json.loads((run / "metrics.json").read_text())
    pooled = pool_classes(pd.read_parquet(run / "predictions.parquet"), HER2)
    y_N = [HER2.index(name) for name in pooled["label"]]
    called_N = [HER2.index(name) for name in pooled["predicted"]]
    p_NY = pooled[[f"p_{name}" for name in HER2]].to_numpy()
    assert figures["metrics"]["auc"]["pooled"] == pytest.approx(roc_auc_score(y_N, p_NY, multi_class="ovr"))
    kappa = cohen_kappa_score(y_N, called_N, weights="quadratic")
    assert figures["metrics"]["kappa"]["pooled"] == pytest.approx(kappa)
    assert all(fold["threshold"] is None for fold in figures["folds"])


def external(folder: Path, patients: int = 60) -> tuple[str, str]:
    rng = np.random.default_rng(3)
    names = [f"E{i:02}" for i in range(patients)]
    labels = [HER2[i % 3] for i in range(patients)]
    pd.DataFrame({"PATIENT": names, "SLIDE": names, "HER2": labels}).to_csv(folder / "clinical.csv", index=False)
    odds = np.exp(2.0 * (np.arange(3) == np.arange(patients)[:, None] % 3) + rng.normal(size=(patients, 3)))
    table = pd.DataFrame(odds / odds.sum(axis=1, keepdims=True), columns=[f"p_{name}" for name in HER2])
    table.insert(0, "patient_id", names)
    table.to_csv(folder / "predictions.csv", index=False)
    return str(folder / "clinical.csv"), str(folder / "predictions.csv")


def test_evaluate_measures_each_class(run: Path, tmp_path: Path) -> None:
    clinical, predictions = external(tmp_path)
    options = ["evaluate", str(run), "--clinical", clinical, "--predictions", predictions, "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    evaluation = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    table = pd.read_csv(predictions)
    y_N = np.arange(60) % 3
    p_NY = table[[f"p_{name}" for name in HER2]].to_numpy()
    assert evaluation["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(y_N, p_NY, multi_class="ovr"))
    for y, name in enumerate(HER2):
        assert evaluation["of_class"][name]["auc"] == pytest.approx(roc_auc_score(y_N == y, p_NY[:, y]))
    assert np.array(evaluation["confusion"]).sum() == 60
    assert "macro AUC" in result.output and "<3+>" not in (tmp_path / "o" / "evaluation.html").read_text()
    written = pd.read_csv(tmp_path / "o" / "predictions.csv")
    assert (written["predicted"] == [HER2[y] for y in p_NY.argmax(axis=1)]).all()


def test_a_class_that_is_told_perfectly_has_no_interval_by_delong(run: Path, tmp_path: Path) -> None:
    clinical, predictions = external(tmp_path)
    table = pd.read_csv(predictions)
    is_zero = (np.arange(len(table)) % 3 == 0).astype(float)
    others = table[[f"p_{name}" for name in HER2[1:]]]
    table["p_zero"] = 0.2 + 0.6 * is_zero
    table[others.columns] = others.div(others.sum(axis=1), axis=0).mul(1 - table["p_zero"], axis=0)
    table.to_csv(predictions, index=False)
    options = ["evaluate", str(run), "--clinical", clinical, "--predictions", predictions, "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    of_class = json.loads((tmp_path / "o" / "evaluation.json").read_text())["of_class"]
    assert of_class["zero"]["auc"] == 1 and of_class["zero"]["delong_interval"] is None
    assert of_class["low"]["delong_interval"][0] < of_class["low"]["auc"]
    page = html.unescape((tmp_path / "o" / "evaluation.html").read_text())
    assert "<td>1.000 (no interval)</td>" in page
    assert "The AUC of zero has no interval by DeLong: DeLong's variance is 0" in page
    performance = pd.read_csv(tmp_path / "o" / "performance.csv")
    perfect = performance[(performance["method"] == "DeLong") & (performance["value"] == 1)]
    assert len(perfect) == 1 and perfect[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("option", [("--positive", "low"), ("--subgroups", "HER2"), ("--prevalence", "0.2")])
def test_options_of_two_classes_are_refused_in_a_sentence(run: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    clinical, predictions = external(tmp_path)
    options = ["evaluate", str(run), "--clinical", clinical, "--predictions", predictions, *option]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, Exception)
    assert f"{option[0]} is for two classes" in str(result.exception)


def test_table_one_has_the_classes_in_their_order_and_names_what_is_missing() -> None:
    classes = ["under 1", "1 to 2", "2 and over"]
    table = pd.DataFrame(
        {
            "class": pd.Categorical(["1 to 2", "under 1", "2 and over", "under 1"], classes),
            "fold": ["fold 0", "fold 1", "fold 0", "fold 1"],
            "PR": ["positive", None, "negative", "positive"],
        }
    )
    header, rows = table_one(table, "class")
    assert header == ["", "Missing", "Overall", *classes]
    assert ["PR, n (%): missing", "", "1 (25.0)", "1 (50.0)", "0 (0.0)", "0 (0.0)"] in rows
    _, by_fold = table_one(table, "fold")
    assert [row[0] for row in by_fold[1:4]] == ["class, n (%): under 1", "\u00b7 1 to 2", "\u00b7 2 and over"]
