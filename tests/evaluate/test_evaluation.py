"""What an evaluation computes of other patients: discrimination, decisions, calibration, comparisons, drawings."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from support.evaluations import evaluated, external, perfect_in
from support.finished_runs import write_run

from momkd_ray.crossval.trained_run import read_run
from momkd_ray.evaluate.decisions import at_fixed, decisions

pytestmark = pytest.mark.usefixtures("unrendered")


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
    assert found["discrimination"]["auc"]["bootstrap_interval"] is None
    assert found["discrimination"]["average_precision"]["bootstrap_interval"] is None
    constant, good = (one["bootstrap"] for one in found["comparisons"])
    assert constant == {"difference": 0.5, "interval": None, "p": None, "p_holm": None}
    assert good["p"] == good["p_holm"] and good["interval"][0] < good["difference"] < good["interval"][1]
    performance = pd.read_csv(tmp_path / "out" / "performance.csv").set_index(["measure", "method"])
    assert (
        performance.loc[[("AUC", "bootstrap"), ("average precision", "bootstrap")], ["low", "high"]]
        .isna()
        .all(axis=None)
    )
    constant, good = (one["delong"] for one in found["comparisons"])
    assert constant == {"difference": 0.5, "interval": None, "p": None, "p_holm": None}
    assert good["p"] == good["p_holm"] and good["interval"][0] < good["difference"] < good["interval"][1]
    page = html.unescape((tmp_path / "out" / "evaluation.html").read_text())
    for text in (told, page):
        assert "AUC of 1.000 (no interval), as DeLong's variance is 0; at its frozen" in text
        assert "0.500 (no interval and no p: DeLong's variance is 0)" in text
        assert "1.000 to 1.000" not in text
    assert "0.500 (no interval and no p: the bootstrap replicates have the same value)" in page
    assert "The AUC has no interval by DeLong" in page and "<td>no interval</td><td>DeLong</td>" in page
    performance = pd.read_csv(tmp_path / "out" / "performance.csv").set_index(["measure", "method"])
    assert performance.loc[("AUC", "DeLong"), ["low", "high"]].isna().all()
    comparisons = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert comparisons.loc[0, ["delong_low", "delong_high", "delong_p", "delong_p_holm"]].isna().all()


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
