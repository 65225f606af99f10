"""Folds are scored by patient at the validation threshold, and pooled so that each patient counts once."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sklearn_scores import by_sklearn

from momkd_ray.crossval.evaluate import evaluate_fold, pool_patients, summarise
from momkd_ray.crossval.fold_result import FoldResult
from momkd_ray.crossval.metrics import (
    METRICS,
    patient_table,
)
from momkd_ray.crossval.threshold import best_threshold
from momkd_ray.errors import InputError

CLASSES = ("low", "high")


def slides_of(labels: dict[str, str], seed: int = 0, shift: float = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for patient, label in labels.items():
        for slide in range(1 + len(rows) % 3):
            p = 1 / (1 + np.exp(-shift * (2 * (label == CLASSES[1]) - 1) - rng.normal()))
            rows.append((f"{patient}_{slide}", patient, label, 1 - p, p))
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", "p_low", "p_high"])


def patients(prefix: str, n: int) -> dict[str, str]:
    return {f"{prefix}{i:03}": CLASSES[int(i % 3 == 0)] for i in range(n)}


def test_patient_is_the_mean_of_its_slides_in_any_order() -> None:
    slides = slides_of(patients("P", 30))
    table = patient_table(slides)
    assert list(table.columns) == ["patient_id", "label", "p_low", "p_high"]
    assert table["patient_id"].is_monotonic_increasing
    for row in table.itertuples():
        own = slides[slides["patient_id"] == row.patient_id]
        assert row.p_high == pytest.approx(own["p_high"].mean())
        assert row.label == own["label"].iloc[0]
    pd.testing.assert_frame_equal(patient_table(slides.sample(frac=1, random_state=3)), table, check_exact=True)
    without = patient_table(slides.drop(columns="label"))
    pd.testing.assert_frame_equal(without, table.drop(columns="label"))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("label", "low", "patient P000 has the labels"),
        ("label", None, "patient P000 has the labels"),
        ("slide_id", "P001_0", "slide P001_0 is predicted twice"),
        ("patient_id", None, "without slide_id or patient_id"),
        ("p_high", np.nan, "slide P000_0 has no probability"),
        ("p_high", 1.01, "slide P000_0 has no probability"),
        ("p_high", "high", "slide P000_0 has no probability"),
    ],
)
def test_bad_slide_predictions_are_refused(column: str, value: object, said: str) -> None:
    slides = slides_of(patients("P", 6)).astype(object)
    extra = slides.iloc[[0]].assign(slide_id="P000_9")
    slides = pd.concat([slides, extra], ignore_index=True)
    slides.loc[0, column] = value
    with pytest.raises(InputError, match=said):
        patient_table(slides)
    with pytest.raises(InputError, match="lack the column"):
        patient_table(slides.drop(columns="slide_id"))


def one_fold(fold: int = 0) -> tuple[FoldResult, pd.DataFrame]:
    validation, test = (
        slides_of(patients("V", 30), seed=fold),
        slides_of(patients(f"T{fold}-", 40), seed=fold + 50),
    )
    return evaluate_fold(fold, validation, test, CLASSES, n_train=100, best_epoch=4)


def test_fold_is_scored_at_the_validation_threshold() -> None:
    result, table = one_fold()
    assert list(table.columns) == ["patient_id", "label", "p_low", "p_high", "predicted", "fold"]
    validation = patient_table(slides_of(patients("V", 30)))
    assert result.threshold == best_threshold(validation["label"] == "high", validation["p_high"])
    assert ((table["predicted"] == "high") == (table["p_high"] >= result.threshold)).all()
    assert result.test_scores["accuracy"] == pytest.approx((table["predicted"] == table["label"]).mean())
    assert (result.n_train, result.n_val, result.n_test) == (100, 30, 40)


def test_a_fold_result_is_read_back_as_it_was_written() -> None:
    result = replace(one_fold()[0], machines=({"cores": 2, "workers": 1},))
    plain = json.loads(json.dumps(result.to_json()))
    assert plain == result.to_json()
    assert FoldResult.from_json(plain) == result


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_test_labels_never_reach_the_predictions(random: object) -> None:
    validation, labels = slides_of(patients("V", 30)), patients("T", 40)
    names = list(labels.values())
    random.shuffle(names)  # type: ignore[attr-defined]
    shuffled = dict(zip(labels, names, strict=True))
    test = slides_of(labels, seed=1)
    other = test.assign(label=test["patient_id"].map(shuffled))
    one, one_table = evaluate_fold(0, validation, test, CLASSES, 100, 4)
    two, two_table = evaluate_fold(0, validation, other, CLASSES, 100, 4)
    assert one.threshold == two.threshold
    assert one.val_scores == two.val_scores
    pd.testing.assert_frame_equal(one_table.drop(columns="label"), two_table.drop(columns="label"))


def test_leaks_and_strange_labels_are_refused() -> None:
    validation, test = slides_of(patients("V", 30)), slides_of(patients("T", 30))
    with pytest.raises(InputError, match="fold 3: patient V000 is both"):
        evaluate_fold(3, validation, pd.concat([test, validation.iloc[[0]]]), CLASSES, 1, 1)
    with pytest.raises(InputError, match="test patients of fold 3 include no patient of class 'high'"):
        evaluate_fold(3, validation, test[test["label"] == "low"], CLASSES, 1, 1)
    for label in ("medium", None):
        with pytest.raises(InputError, match="have the label"):
            evaluate_fold(3, validation, test.assign(label=label), CLASSES, 1, 1)
    with pytest.raises(InputError, match="lack the column p_high"):
        evaluate_fold(3, validation, test.drop(columns="p_high"), CLASSES, 1, 1)


def test_summary_is_one_in_any_order_and_adds_up() -> None:
    results, tables = zip(*(one_fold(fold) for fold in range(4)), strict=True)
    pooled = pd.concat(tables)
    summary = summarise(list(results), pooled, CLASSES, seed=5)
    text = json.dumps(summary, allow_nan=False)
    for order in itertools.islice(itertools.permutations(results), 5):
        mixed = pooled.sample(frac=1, random_state=len(order))
        assert json.dumps(summarise(list(order), mixed, CLASSES, seed=5)) == text
    assert set(summary) == {"metrics", "counts", "folds"}
    assert summary["counts"] == {"patients": 160, "classes": {"low": 104, "high": 56}}
    assert [fold["fold"] for fold in summary["folds"]] == [0, 1, 2, 3]
    expected = by_sklearn(pooled["label"] == "high", pooled["p_high"], pooled["predicted"] == "high")
    for name in METRICS:
        one = summary["metrics"][name]
        values = pd.Series([result.test_scores[name] for result in results])
        assert one["folds"] == list(values)
        assert (one["mean"], one["sd"]) == pytest.approx((values.mean(), values.std(ddof=1)))
        assert one["pooled"] == pytest.approx(expected[name])
        assert one["interval"][0] <= one["pooled"] <= one["interval"][1]


def test_summary_of_what_is_not_whole_is_refused() -> None:
    (one, first), (two, second) = one_fold(0), one_fold(1)
    pooled = pd.concat([first, second])
    with pytest.raises(InputError, match="cannot be summarised"):
        summarise([one, one], pooled, CLASSES, seed=1)
    with pytest.raises(InputError, match="but the folds tested"):
        summarise([one, two], pooled.iloc[1:], CLASSES, seed=1)
    with pytest.raises(InputError, match="T0-000 is predicted twice in fold 0"):
        summarise([one, two], pd.concat([pooled, first.iloc[[0]]]), CLASSES, seed=1)


def predicted_rows(*rows: tuple[str, str, float, str, int]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["patient_id", "label", "p_high", "predicted", "fold"])
    return table.assign(p_low=1 - table["p_high"])


def test_folds_that_tested_a_patient_speak_together() -> None:
    thresholds = {0: 0.125, 1: 0.5, 2: 0.8}  # 0.125 and 0.5 are exact
    rows = predicted_rows(
        ("once", "high", 0.2, "high", 0),
        ("most", "low", 0.45, "low", 1),
        ("most", "low", 0.75, "low", 2),
        ("most", "low", 0.9, "high", 0),
        ("even, above", "high", 0.6, "high", 0),
        ("even, above", "high", 0.4, "low", 1),
        ("even, below", "low", 0.2, "high", 0),
        ("even, below", "low", 0.6, "low", 2),
        ("even, on it", "low", 0.25, "high", 0),
        ("even, on it", "low", 0.375, "low", 1),
    )
    for order in (rows, rows.iloc[::-1]):
        table = pool_patients(order, thresholds, CLASSES).set_index("patient_id")
        assert list(table.columns) == ["label", "p_low", "p_high", "predicted"]
        assert table.index.is_monotonic_increasing
        assert table["predicted"].to_dict() == {
            "once": "high",
            "most": "low",
            "even, above": "high",
            "even, below": "low",
            "even, on it": "high",
        }
        assert table["p_high"].to_dict() == pytest.approx(
            {"once": 0.2, "most": 0.7, "even, above": 0.5, "even, below": 0.4, "even, on it": 0.3125}
        )
    with pytest.raises(InputError, match="patient most has another label in another fold"):
        pool_patients(rows.assign(label=["high", "low", "high", *rows["label"][3:]]), thresholds, CLASSES)


def test_patients_tested_once_are_pooled_as_they_are() -> None:
    results, tables = zip(*(one_fold(fold) for fold in range(3)), strict=True)
    pooled = pd.concat(tables).sort_values("patient_id").reset_index(drop=True)
    table = pool_patients(pooled, {result.fold: result.threshold for result in results}, CLASSES)
    pd.testing.assert_frame_equal(table, pooled.drop(columns="fold"), check_exact=True, check_dtype=False)


def test_a_patient_tested_in_several_folds_counts_once() -> None:
    tested = patients("T", 40)
    drawn = np.random.default_rng(0)
    results, tables = [], []
    for fold in range(6):
        names = drawn.choice(list(tested), 25, replace=False)
        test = slides_of({name: tested[name] for name in names}, seed=fold + 50)
        result, table = evaluate_fold(fold, slides_of(patients("V", 30), seed=fold), test, CLASSES, 10, 4)
        results.append(result)
        tables.append(table)
    pooled = pd.concat(tables)
    summary = summarise(results, pooled, CLASSES, seed=5)
    once = pool_patients(pooled, {result.fold: result.threshold for result in results}, CLASSES)
    assert summary["counts"]["patients"] == len(once) == pooled["patient_id"].nunique() < len(pooled)
    expected = by_sklearn(once["label"] == "high", once["p_high"], once["predicted"] == "high")
    for name in METRICS:
        one = summary["metrics"][name]
        assert one["pooled"] == pytest.approx(expected[name])
        assert one["folds"] == [result.test_scores[name] for result in results]
        assert one["interval"] is None or one["interval"][0] <= one["pooled"] <= one["interval"][1]
        assert one["interval"] is not None or one["pooled"] in (0, 1)
    mixed = pooled.sample(frac=1, random_state=1)
    assert summarise(results[::-1], mixed, CLASSES, seed=5) == summary
