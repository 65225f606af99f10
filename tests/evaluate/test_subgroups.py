"""Subgroups of the evaluated patients: how they are asked for, divided and compared."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from support.command_line import outcome
from support.evaluations import evaluated, external, perfect_in

from momkd_ray.errors import InputError
from momkd_ray.evaluate.options import Subgroups, parse_subgroups
from momkd_ray.evaluate.subgroups import compare_subgroups, levels_of

pytestmark = pytest.mark.usefixtures("unrendered")


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


def test_a_subgroup_that_is_no_column_is_told_with_its_option(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical, _ = external(tmp_path)
    clinical.assign(Centre="A").to_csv(tmp_path / "clinical.csv", index=False)
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    assert outcome(*command, "--predictions", "none.csv", "--subgroups", "centre") == 1
    assert "has no column 'centre'; the nearest is 'Centre' (give --subgroups Centre)" in capsys.readouterr().err
