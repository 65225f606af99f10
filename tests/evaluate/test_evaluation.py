"""Evaluation of a run on other patients: who is counted, what is computed, and by which of the patients."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from support.bags import write_h5
from support.command_line import outcome
from support.finished_runs import write_run
from support.models import card_of, small_model

from momkd_ray.crossval.trained_run import read_run
from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import Labels, read_cohort
from momkd_ray.evaluate.decisions import at_fixed, decisions
from momkd_ray.evaluate.options import EvaluationOptions, Subgroups, parse_subgroups
from momkd_ray.evaluate.predictions import feature_files_of, patients_of_run, read_predictions
from momkd_ray.evaluate.subgroups import compare_subgroups, levels_of
from momkd_ray.model.bundle import save_bundle

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("run"))


def external(folder: Path, n: int = 90, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A clinical table with all that can go wrong, and predictions of most of its patients."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    names = [f"E{i:03}" for i in range(n)]
    clinical = pd.DataFrame(
        {
            "PATIENT": names,
            "PR": np.where(y, "positive", "negative"),
            "age": rng.integers(30, 90, n).astype(str),
            "site": rng.choice(["Lyon", "Basel", ""], n, p=[0.5, 0.4, 0.1]),
        }
    )
    others = [("E900", "Equivocal", "60", "Lyon"), ("E901", "", "60", "Lyon"), ("E902", "negative", "60", "Lyon")]
    clinical = pd.concat([clinical, pd.DataFrame(others, columns=clinical.columns)])
    p = expit(rng.normal(size=n) + 2 * y - 0.5)
    predictions = pd.DataFrame({"patient_id": names, "p_negative": 1 - p, "p_positive": p})
    stranger = pd.DataFrame({"patient_id": ["E999"], "p_negative": [0.5], "p_positive": [0.5]})
    predictions = pd.concat([predictions, stranger])
    clinical.to_csv(folder / "clinical.csv", index=False)
    predictions.to_csv(folder / "predictions.csv", index=False)
    return clinical, predictions


def evaluated(run: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = ["evaluate", run, "--clinical", str(folder / "clinical.csv"), "--out", str(folder / "out")]
    assert outcome(*command, "--predictions", str(folder / "predictions.csv"), *arguments) == 0
    content: dict[str, Any] = json.loads((folder / "out" / "evaluation.json").read_text())
    return content


def test_everybody_is_counted_and_named(run: str, tmp_path: Path) -> None:
    external(tmp_path)
    found = evaluated(run, tmp_path)
    flow = [(step["patients"], step["left_out"]) for step in found["cohort"]["flow"]]
    assert flow == [
        (93, {}),
        (91, {"'PR' is 'Equivocal', neither 'negative' nor 'positive'": 1, "'PR' is blank": 1}),
        (90, {"no prediction": 1}),
    ]
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv").set_index("id")["reason"]
    assert set(excluded.index) == {"E900", "E901", "E902", "E999"}
    assert excluded["E999"] == "a prediction of no patient of the clinical table"
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions.columns[0] == "PATIENT"
    assert len(predictions) == 90


def test_figures_are_scikit_learns(run: str, tmp_path: Path) -> None:
    external(tmp_path)
    found = evaluated(run, tmp_path)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    y, p = (table["label"] == "positive").to_numpy(), table["p_positive"].to_numpy()
    assert found["discrimination"]["auc"]["value"] == pytest.approx(roc_auc_score(y, p))
    assert found["discrimination"]["average_precision"]["value"] == pytest.approx(average_precision_score(y, p))
    frozen = found["decisions"][0]
    assert frozen["threshold"] == pytest.approx(read_run(run).threshold)
    tn, fp, fn, tp = confusion_matrix(y, p >= frozen["threshold"]).ravel()
    assert frozen["counts"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    for name, value in {"sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp)}.items():
        assert frozen[name]["value"] == pytest.approx(value)
    assert (table["predicted"] == np.where(p >= frozen["threshold"], "positive", "negative")).all()


def test_probabilities_are_corrected_and_recalibrated_by_the_run_alone(run: str, tmp_path: Path) -> None:
    external(tmp_path)
    trained = read_run(run)
    assert trained.train_prevalence == pytest.approx(1 / 3, abs=0.02)
    assert trained.shift.intercept == pytest.approx(logit(trained.train_prevalence), abs=0.02)
    found = evaluated(run, tmp_path)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    p, corrected = table["p_positive"], table["corrected_p_positive"]
    np.testing.assert_allclose(logit(corrected) - logit(p), trained.shift.intercept)
    fitted = trained.recalibration()
    recalibrated = expit(fitted.intercept + fitted.slope * logit(p))
    assert table["recalibrated_p_positive"].to_numpy() == pytest.approx(recalibrated)
    assert found["prevalence_shift"]["balanced_sampling"]
    # other labels of this cohort change nothing about it
    clinical = pd.read_csv(tmp_path / "clinical.csv", dtype=str, keep_default_na=False)
    clinical["PR"] = clinical["PR"].map(lambda v: {"positive": "negative", "negative": "positive"}.get(v, v))
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    again = evaluated(run, tmp_path)
    assert again["calibration"]["recalibrated"]["map"] == found["calibration"]["recalibrated"]["map"]
    assert [at["threshold"] for at in again["decisions"]] == [at["threshold"] for at in found["decisions"]]
    assert again["discrimination"]["auc"]["value"] == pytest.approx(1 - found["discrimination"]["auc"]["value"])


def test_sampling_that_was_not_balanced_is_not_corrected(tmp_path: Path) -> None:
    trained = read_run(write_run(tmp_path, balanced=False))
    assert trained.shift.intercept == 0


def test_the_ridge_start_is_at_the_training_prevalence_and_is_not_corrected(tmp_path: Path) -> None:
    location = Path(write_run(tmp_path))
    tree, metrics = (
        yaml.safe_load((location / "run.yaml").read_text()),
        json.loads((location / "metrics.json").read_text()),
    )

    def shift(name: str, pooling: str, **setting: object) -> float:
        own = tree | {"model": {"name": name, "pooling": pooling}}
        (location / "run.yaml").write_text(yaml.safe_dump(own))
        search = {"settings": [setting], "chosen": dict.fromkeys("01234", 0)}
        (location / "metrics.json").write_text(json.dumps(metrics | {"search": search}))
        return read_run(str(location)).shift.intercept

    expected = logit(read_run(str(location)).train_prevalence)
    assert shift("momkd", "components") == 0
    assert shift("momkd", "attention") == pytest.approx(expected, abs=0.02)
    assert shift("abmil", "components") == pytest.approx(expected, abs=0.02)
    assert shift("momkd", "attention", **{"model.pooling": "components"}) == 0
    assert shift("momkd", "components", **{"model.name": "abmil"}) == pytest.approx(expected, abs=0.02)


def test_thresholds_at_a_fixed_sensitivity_come_from_validation_patients(run: str) -> None:
    trained = read_run(run)
    for measure, reached in (("sensitivity", lambda y, p, t: (p[y] >= t).mean()), ("specificity", None)):
        one = []
        for _, own in trained.validation.groupby("fold"):
            y, p = own["y"].to_numpy(dtype=bool), own["p"].to_numpy()
            for value in (0.5, 0.9, 1.0):
                threshold = type(trained)(**{**vars(trained), "validation": own}).threshold_at(measure, value)
                share = reached(y, p, threshold) if reached else (p[~y] < threshold).mean()
                assert share >= value
                if value == 0.9:
                    one.append(threshold)
        assert trained.threshold_at(measure, 0.9) == pytest.approx(np.mean(one))


def test_the_curve_at_a_fixed_sensitivity_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    y = rng.random(200) < 0.4
    p = expit(rng.normal(size=200) + y)
    fpr, tpr, _ = roc_curve(y, p, drop_intermediate=False)
    for value in (0.5, 0.8, 0.95):
        found = at_fixed(y, p, "sensitivity", value, 1)
        assert found["value"] == pytest.approx(1 - fpr[tpr >= value - 1e-12].min())
        assert found["interval"][0] <= found["value"] <= found["interval"][1]
        assert (p[y] >= found["threshold"]).mean() >= value
        turned = at_fixed(y, p, "specificity", value, 1)
        assert turned["value"] == pytest.approx(tpr[fpr <= 1 - value + 1e-12].max())
        for one in (found, turned):  # who is called there, at or above the threshold, gives both measures
            called = p >= one["threshold"]
            reached = {"sensitivity": called[y].mean(), "specificity": (~called[~y]).mean()}
            assert reached[one["fixed"]] >= value
            assert reached[one["other"]] == pytest.approx(one["value"])


def test_the_threshold_at_a_specificity_is_above_the_negative_patients_that_it_spares() -> None:
    y, p = np.repeat([False, True], 10), np.concatenate([np.arange(1, 11), np.arange(6, 16)]) / 20
    found = at_fixed(y, p, "specificity", 0.9, 1)
    assert (~(p >= found["threshold"])[~y]).mean() == 0.9
    assert at_fixed(y, p, "specificity", 0.99, 1)["threshold"] == pytest.approx(0.55)
    assert at_fixed(y, 1 - p, "specificity", 0.99, 1)["threshold"] == np.nextafter(0.95, 1)  # nobody is above


def test_intervals_of_decisions_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    hits: dict[str, list[bool]] = {"sensitivity": [], "specificity": [], "ppv": [], "npv": []}
    truth = {"sensitivity": 0.8, "specificity": 0.7}
    truth |= {"ppv": 0.24 / (0.24 + 0.21), "npv": 0.49 / (0.49 + 0.06)}
    for _ in range(400):
        y = rng.random(120) < 0.3
        called = rng.random(120) < np.where(y, 0.8, 0.3)
        found = decisions(y, called.astype(float), 0.5, [])
        for name, value in truth.items():
            low, high = found[name]["interval"]
            hits[name].append(low <= value <= high)
    assert all(0.92 <= np.mean(own) <= 0.985 for own in hits.values())


def test_subgroups_divide_the_patients_and_find_a_difference() -> None:
    rng = np.random.default_rng(5)
    n = 600
    y = rng.random(n) < 0.4
    age = rng.integers(30, 90, n)
    p = expit(rng.normal(size=n) + np.where(age < 50, 0.1, 3.0) * y)
    table = pd.DataFrame({"y": y.astype(int), "p": p, "recalibrated": p, "age": age.astype(str)})
    table["coin"] = rng.choice(["heads", "tails", "missing"], n, p=[0.45, 0.45, 0.1])
    asked = [Subgroups("age"), Subgroups("age", (50.0,)), Subgroups("coin")]
    tertiles, cut, coin = compare_subgroups(table, "recalibrated", 0.5, asked)
    assert [level["level"] for level in cut["levels"]] == ["below 50", "50 or more"]
    assert len(tertiles["levels"]) == 3
    assert [level["level"] for level in coin["levels"]] == ["heads", "tails", "missing"]
    for one in (tertiles, cut, coin):
        assert sum(level["patients"] for level in one["levels"]) == n
        assert sum(level["positives"] for level in one["levels"]) == y.sum()
    assert cut["heterogeneity"]["p_holm"] < 0.001
    assert coin["heterogeneity"]["p"] > 0.01
    assert coin["heterogeneity"]["df"] == 1, "patients whose value is missing are not tested"
    young = table[age < 50]
    assert cut["levels"][0]["auc"]["value"] == pytest.approx(roc_auc_score(young["y"], young["p"]))


def test_levels_of_few_patients_have_no_auc() -> None:
    table = pd.DataFrame({"y": [0, 1, 0, 1, 0, 0], "p": [0.1, 0.9, 0.4, 0.6, 0.2, 0.1]})
    table["recalibrated"], table["site"] = table["p"], ["a"] * 4 + ["b"] * 2
    (found,) = compare_subgroups(table, "recalibrated", 0.5, [Subgroups("site")])
    assert found["levels"][1]["auc"]["value"] is None
    assert found["heterogeneity"] is None
    assert [one["level"] for one in found["not_tested"]] == ["a", "b"]
    assert "DeLong's variance is 0" in found["not_tested"][0]["reason"]
    assert found["not_tested"][1]["reason"] == "it has fewer than two patients of a class"


def perfect_in(clinical: pd.DataFrame, predictions: pd.DataFrame, of: pd.Series[bool]) -> pd.DataFrame:
    """Predictions that rank the positive patients of some above all others of theirs."""
    own = clinical.loc[of, "PATIENT"]
    positive = clinical.set_index("PATIENT")["PR"].reindex(predictions["patient_id"]).eq("positive").to_numpy()
    p = predictions["p_positive"].where(~predictions["patient_id"].isin(own), np.where(positive, 0.8, 0.3))
    return predictions.assign(p_positive=p, p_negative=1 - p)


@pytest.mark.parametrize("others", [("Lyon", "Genf"), ("Lyon",)])
def test_a_level_with_a_perfect_auc_is_said_to_be_left_out_of_the_test(
    run: str, tmp_path: Path, others: tuple[str, ...]
) -> None:
    clinical, predictions = external(tmp_path)
    clinical["site"] = np.array(["Basel", *others])[np.arange(len(clinical)) % (1 + len(others))]
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    predictions = perfect_in(clinical, predictions, clinical["site"] == "Basel")
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    (found,) = evaluated(run, tmp_path, "--subgroups", "site")["subgroups"]
    reason = "DeLong's variance is 0 for its AUC of 1.000"
    assert found["not_tested"] == [{"level": "Basel", "reason": reason}]
    assert found["levels"][0]["auc"] == {"value": 1, "interval": None, "sd": 0}
    page = html.unescape((tmp_path / "out" / "evaluation.html").read_text())
    assert "too few patients" not in page and "1.000 (no interval)" in page
    assert f"; Basel is left out: {reason}</th>" in page
    if len(others) == 2:
        assert found["heterogeneity"]["df"] == 1
        assert "site: heterogeneity of the AUC Q = " in page
    else:
        assert found["heterogeneity"] is None
        assert "site: no test of the heterogeneity of the AUC, which takes two levels; " in page
    table = pd.read_csv(tmp_path / "out" / "subgroups.csv").set_index("level")
    assert table.loc["Basel", "not_tested"] == reason and table["not_tested"].isna().sum() == len(others)
    assert np.isnan(table.loc["Basel", "auc_low"]) and np.isnan(table.loc["Basel", "auc_high"])


def test_a_perfect_ensemble_has_no_interval_by_delong_and_it_is_said(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical, predictions = external(tmp_path)
    predictions.assign(p_positive=0.5, p_negative=0.5).to_csv(tmp_path / "constant.csv", index=False)
    predictions.to_csv(tmp_path / "good.csv", index=False)
    perfect = perfect_in(clinical, predictions, clinical["PATIENT"] != "")
    perfect.to_csv(tmp_path / "predictions.csv", index=False)
    against = ["--against", str(tmp_path / "constant.csv"), "--against", str(tmp_path / "good.csv")]
    found = evaluated(run, tmp_path, *against)
    told = capsys.readouterr().out
    assert found["discrimination"]["auc"]["delong_interval"] is None
    constant, good = (one["delong"] for one in found["comparisons"])
    assert constant == {"difference": 0.5, "interval": None, "p": None, "p_holm": None}
    assert good["p"] == good["p_holm"] and good["interval"][0] < good["difference"] < good["interval"][1]
    page = html.unescape((tmp_path / "out" / "evaluation.html").read_text())
    for text in (told, page):
        assert "AUC of 1.000 (no interval), as DeLong's variance is 0; at its frozen" in text
        assert "0.500 (no interval and no p: DeLong's variance is 0)" in text
    assert "The AUC has no interval by DeLong" in page and "<td>no interval</td><td>DeLong</td>" in page
    performance = pd.read_csv(tmp_path / "out" / "performance.csv").set_index(["measure", "method"])
    assert performance.loc[("AUC", "DeLong"), ["low", "high"]].isna().all()
    comparisons = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert comparisons.loc[0, ["delong_low", "delong_high", "delong_p", "delong_p_holm"]].isna().all()


@pytest.mark.parametrize(
    ("values", "asked", "message"),
    [
        (["missing", "missing"], Subgroups("a"), "are blank"),
        (["1", "x"], Subgroups("a", (1.0,)), "cut at numbers, but a patient has 'x'"),
        ([f"p{i}" for i in range(30)], Subgroups("a"), "30 different values"),
    ],
)
def test_columns_that_make_no_subgroups(values: list[str], asked: Subgroups, message: str) -> None:
    with pytest.raises(InputError, match=message):
        levels_of(pd.Series(values), asked)


def test_subgroups_are_read_as_written() -> None:
    columns = ["site", "age", "Stage: T, clinical"]
    assert parse_subgroups("site,age:50:65,Stage: T, clinical", columns) == (
        Subgroups("site"),
        Subgroups("age", (50.0, 65.0)),
        Subgroups("Stage: T, clinical"),
    )
    for text, message in (("age:x", "write a column"), ("age:65:50", "must rise"), ("site,site", "twice")):
        with pytest.raises(InputError, match=message):
            parse_subgroups(text, columns)


def test_other_predictions_are_compared_on_shared_patients(run: str, tmp_path: Path) -> None:
    _, predictions = external(tmp_path)
    rng = np.random.default_rng(6)
    worse = predictions.iloc[:70].rename(columns={"patient_id": "PATIENT", "p_positive": "PR_positive"})
    worse = worse.drop(columns="p_negative")
    worse["PR_positive"] = expit(logit(worse["PR_positive"]) + rng.normal(scale=4, size=70))
    worse.to_csv(tmp_path / "stamp.csv", index=False)
    same = ["--against", str(tmp_path / "predictions.csv")]
    found = evaluated(run, tmp_path, "--against", str(tmp_path / "stamp.csv"), *same)
    other, itself = found["comparisons"]
    assert other["patients"] == 70
    assert len(other["only_in_cohort"]) == 20
    assert other["delong"]["p"] < 0.05
    assert other["delong"]["difference"] == pytest.approx(other["bootstrap"]["difference"])
    assert itself["delong"] == {"difference": 0, "interval": [0, 0], "p": 1, "p_holm": 1}
    assert itself["calls"]["sensitivity"]["p"] == 1


def test_patients_of_the_run_are_called_out(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clinical, predictions = external(tmp_path)
    for table, column in ((clinical, "PATIENT"), (predictions, "patient_id")):
        table[column] = table[column].replace("E000", "T0-00")
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    found = evaluated(run, tmp_path)
    assert found["cohort"]["also_in_the_run"] == {"patients": 1, "examples": ["T0-00"]}
    assert "1 of the 90 patients are also in the run's folds (T0-00)" in capsys.readouterr().err
    assert "also in the run" in (tmp_path / "out" / "evaluation.html").read_text()


def test_patients_of_the_run_are_recognised_by_whatever_follows_their_barcodes(run: str) -> None:
    trained = dataclasses.replace(read_run(run), patients=frozenset(["TCGA-A0-1000", "TCGA-A0-2000-DX1", "0012"]))
    known = ["12", "TCGA-A0-1000-01A", "TCGA-A0-1000-DX1", "tcga.a0.2000"]
    assert patients_of_run([*known, "TCGA-A0-3000-DX1", "TCGA-A0-100", "120"], trained) == known


def test_classes_may_have_other_names_there(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clinical, _ = external(tmp_path)
    first = evaluated(run, tmp_path)
    renamed = clinical.replace({"PR": {"positive": "1", "negative": "0"}}).rename(columns={"PR": "pgr"})
    renamed.loc[renamed["pgr"] == "1", "pgr"] = ["1", *(["2"] * (int((renamed["pgr"] == "1").sum()) - 1))]
    renamed.to_csv(tmp_path / "clinical.csv", index=False)
    capsys.readouterr()
    again = evaluated(
        run, tmp_path, "--label", "pgr", "--positive", "1", "--positive", "2", "--negative", "0", "--json"
    )
    assert json.loads(capsys.readouterr().out) == again
    assert again["discrimination"] == first["discrimination"]
    assert again["classes"] == ["negative", "positive"], "the run's names are shown"


def test_every_figure_is_also_a_file(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the figures are rendered
    external(tmp_path)
    evaluated(run, tmp_path, "--subgroups", "site,age", "--prevalence", "0.2")
    names = {"roc", "precision-recall", "calibration", "decision-curve", "histogram", "subgroups"}
    files = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "csv")}
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count('role="img"') == len(names)
    assert "#010101" not in page
    assert "PR: positive against negative" in page
    for name in ("performance", "subgroups"):
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv"))
    assert not (tmp_path / "out" / "comparisons.csv").exists()


def test_disagreement_of_the_folds_is_described(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the figures are rendered
    _, predictions = external(tmp_path)
    rng = np.random.default_rng(7)
    for fold in range(5):
        shifted = logit(predictions["p_positive"]) + rng.normal(scale=0.5, size=len(predictions))
        predictions[f"fold={fold}"] = expit(shifted)
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    folds = evaluated(run, tmp_path)["folds"]
    assert set(folds["auc"]) == {"0", "1", "2", "3", "4"}
    assert sum(folds["calls"].values()) == 90
    assert 0.5 < folds["rank_correlation"] < 1
    assert (tmp_path / "out" / "figures" / "disagreement.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, p: (c.rename(columns={"PR": "pr"}), p),
            r"has no column 'PR'; the nearest is 'pr' \(give --label pr\)",
        ),
        (lambda c, p: (c.rename(columns={"PR": "receptor"}), p), "give --label one of its columns.*'receptor'"),
        (lambda c, p: (c.replace("positive", "pos"), p), "no 'PR' is 'positive'.*give --positive rest"),
        (lambda c, p: (c.rename(columns={"PATIENT": "who"}), p), "give --patient-column"),
        (
            lambda c, p: (pd.concat([c, c.iloc[:1].assign(PR="x"), c.iloc[:1].assign(PR="positive")]), p),
            "'E000' has several",
        ),
        (lambda c, p: (c, p.rename(columns={"p_positive": "score"})), "has no column 'p_positive'"),
        (lambda c, p: (c, p.assign(p_positive=p["p_positive"].where(p["patient_id"] != "E001"))), "data row 2 has no"),
        (lambda c, p: (c, p.assign(p_positive=p["p_positive"] * 3)), "no probability between 0 and 1"),
        (lambda c, p: (c, pd.concat([p, p.iloc[:1]])), "'E000' has more than one row"),
        (lambda c, p: (c, p.assign(patient_id="x" + p["patient_id"])), "none of the labelled patients"),
        (lambda c, p: (c[(c["PR"] != "positive") | (c["PATIENT"] == "E000")], p), "no 'PR'|two of each class"),
    ],
)
def test_bad_tables_are_named_in_one_sentence(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    clinical, predictions = change(*external(tmp_path, seed=1))
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--predictions", str(tmp_path / "predictions.csv")) == 1
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, err), err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_subgroup_that_is_no_column_is_told_with_its_option(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical, _ = external(tmp_path)
    clinical.assign(Centre="A").to_csv(tmp_path / "clinical.csv", index=False)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--predictions", "none.csv", "--subgroups", "centre") == 1
    assert "has no column 'centre'; the nearest is 'Centre' (give --subgroups Centre)" in capsys.readouterr().err


def test_bad_rows_may_be_left_out(run: str, tmp_path: Path) -> None:
    clinical, _ = external(tmp_path)
    pd.concat([clinical, clinical.iloc[:1].assign(PR="other")]).to_csv(tmp_path / "clinical.csv", index=False)
    found = evaluated(run, tmp_path, "--on-error", "skip")
    assert found["cohort"]["flow"][1]["left_out"]["a bad row (duplicated)"] == 1
    assert found["cohort"]["patients"] == 89
    assert "E000" in (tmp_path / "out" / "rejected.csv").read_text()


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    external(tmp_path)
    command = ["--clinical", str(tmp_path / "clinical.csv"), "--predictions", str(tmp_path / "predictions.csv")]
    assert outcome("evaluate", str(tmp_path / "nothing"), *command) == 1
    assert "no finished cross-validation in" in capsys.readouterr().err
    assert outcome("evaluate", str(tmp_path / "nothing"), "--clinical", "c.csv") == 2
    assert "--predictions" in capsys.readouterr().err


def test_shares_outside_0_and_1_are_refused() -> None:
    with pytest.raises(InputError, match=r"--prevalence is 1\.2"):
        EvaluationOptions(prevalences=(1.2,))


def test_slides_of_a_file_of_predictions_are_averaged(tmp_path: Path) -> None:
    table = pd.DataFrame({"slide_id": ["a1", "a2", "b1"], "patient_id": ["A", "A", "B"], "p_positive": [0.2, 0.6, 0.9]})
    table.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "c.csv").write_text("PATIENT,PR\nA,positive\nb,negative\n")
    cohort = read_cohort(Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",))))
    found = read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    assert found["p"].to_dict() == pytest.approx({"A": 0.4, "b": 0.9}), "spelt as in the clinical table"


def test_barcodes_of_a_patient_are_one_patient_in_both_tables(tmp_path: Path) -> None:
    names = {"TCGA-A1-0001-01Z-00-DX1": 0.2, "TCGA-A1-0001-01Z-00-DX2": 0.6, "TCGA-A1-0002-01Z-00-DX1": 0.9}
    table = pd.DataFrame({"slide_id": list(names), "patient_id": list(names), "p_positive": list(names.values())})
    table.to_csv(tmp_path / "p.csv", index=False)
    rows = "".join(f"{name},{name},{'positive' if '0001' in name else 'negative'}\n" for name in names)
    (tmp_path / "c.csv").write_text("case_id,slide_id,PR\n" + rows)
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)))
    cohort = read_cohort(labels)
    found = read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    assert found["p"].to_dict() == pytest.approx({"TCGA-A1-0001": 0.4, "TCGA-A1-0002-01Z-00-DX1": 0.9})
    assert "2 identifiers are read as 1 patient" in " ".join(entry.what for entry in cohort.understood)
    table.drop(columns="slide_id").to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InputError, match="two identifiers mean the patient 'TCGA-A1-0001'"):
        read_predictions(str(tmp_path / "p.csv"), ("negative", "positive"), "PR", cohort)
    (tmp_path / "c.csv").write_text("PATIENT,PR\nP-1,positive\np-1,positive\nP2,negative\n")
    assert [fault.id for fault in read_cohort(labels).faults] == ["P-1", "p-1"]


def test_a_table_with_a_row_per_slide_gives_each_patient_once(tmp_path: Path) -> None:
    text = "case_id,slide_id,PR,site\nA,a1,positive,X\nA,a2,positive,X\nB,b1,negative,\n"
    (tmp_path / "c.csv").write_text(text)
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)), subgroups=("site",))
    cohort = read_cohort(labels)
    assert cohort.patients["y"].to_dict() == {"A": 1, "B": 0}
    assert cohort.patients["site"].tolist() == ["X", "missing"]
    (tmp_path / "c.csv").write_text(text.replace("a2,positive,X", "a2,positive,Y"))
    with pytest.raises(InputError, match="patient 'A' has several values of 'site'"):
        read_cohort(labels)


def test_the_folds_models_predict_the_labelled_patients(
    no_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", folds=3)
    for fold in range(3):
        model = small_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * fold)
        save_bundle(f"{run}/fold={fold}/model", model, card_of(model))
    features = tmp_path / "features"
    features.mkdir()
    rows = []
    for patient in range(12):
        for slide in range(1 + patient % 2):
            name = f"s{patient}-{slide}"
            rows.append((f"P{patient}", name))
            if patient != 5:  # who has no feature file
                write_h5(features / f"{name}.h5", n=12, width=12, seed=patient * 10 + slide)
    (features / "s6-0.h5").write_bytes(b"damaged")
    write_h5(features / "stranger.h5", n=12, width=12)
    pd.DataFrame(rows, columns=["PATIENT", "FILENAME"]).to_csv(tmp_path / "slides.csv", index=False)
    clinical = pd.DataFrame({"PATIENT": [f"P{i}" for i in range(12)], "PR": ["positive", "negative"] * 6})
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    tables = ["--clinical", str(tmp_path / "clinical.csv"), "--slides", str(tmp_path / "slides.csv")]
    command = ["evaluate", run, *tables, "--features", str(features), "--out", str(tmp_path / "out")]
    assert outcome(*command) == 1
    assert "s6-0.h5" in capsys.readouterr().err
    assert outcome(*command, "--on-error", "skip") == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["cohort"]["flow"][-1] == {
        "step": "with features that can be read",
        "patients": 10,
        "left_out": {"no feature file": 1, "no feature file that can be read": 1},
    }
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv").set_index("id")["reason"]
    assert excluded["stranger"] == "a feature file of no patient of the clinical table"
    own = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("PATIENT")
    np.testing.assert_allclose(own["p_positive"], own[[f"fold={k}" for k in range(3)]].mean(axis=1))
    # the same as predict's mean over models and slides
    models = [f"{run}/fold={fold}/model" for fold in range(3)]
    (features / "s6-0.h5").unlink()
    kept = pd.read_csv(tmp_path / "slides.csv")
    kept[~kept["PATIENT"].isin(["P5", "P6"])].to_csv(tmp_path / "slides.csv", index=False)
    (features / "stranger.h5").unlink()
    rest = ["--features", str(features), "--slides", str(tmp_path / "slides.csv"), "--patients"]
    assert outcome("predict", *models, *rest, "--out", str(tmp_path / "p.csv")) == 0
    by_predict = pd.read_csv(tmp_path / "p.csv", index_col=0)["p_positive"]
    np.testing.assert_allclose(by_predict.loc[own.index], own["p_positive"], atol=1e-6)


def test_files_are_matched_with_the_tables_slides_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("PATIENT,PR\nA,positive\nB,negative\nC,positive\nD,negative\n")
    (tmp_path / "s.csv").write_text("PATIENT,FILENAME\nA,A.svs\nB,2\nC,deep/C.svs\nD,D.svs\n")
    for name in ("A.svs.h5", "00002.h5", "deep/C.h5", "other.h5"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(b"x")
    labels = Labels(str(tmp_path / "c.csv"), "PR", (("negative",), ("positive",)), slides=str(tmp_path / "s.csv"))
    files = feature_files_of(str(tmp_path / "f"), read_cohort(labels))
    found = {slide: Path(path).name for slide, path, _ in files.itertuples(index=False)}
    assert found == {"A": "A.svs.h5", "2": "00002.h5", "C": "C.h5", "other": "other.h5"}


def test_files_of_patients_without_a_label_are_of_patients_of_the_table(no_cluster: None, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", folds=2)
    for folder in read_run(run).models:
        model = small_model()
        save_bundle(folder, model, card_of(model))
    labels = ["positive", "negative", "positive", "negative", "", "Equivocal"]
    pd.DataFrame({"PATIENT": list("ABCDEF"), "PR": labels}).to_csv(tmp_path / "clinical.csv", index=False)
    (tmp_path / "features").mkdir()
    for name in "ABCDEFZ":
        write_h5(tmp_path / "features" / f"{name}.h5", n=12, width=12)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--features", str(tmp_path / "features")) == 0
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert excluded.loc[excluded["kind"] == "slide", "id"].tolist() == ["Z"]
    assert excluded.loc[excluded["kind"] == "patient", "id"].tolist() == ["E", "F"]
