"""Patient-level metrics, thresholds, intervals and the summary over folds."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn import metrics as sk

from momkd_ray.crossval.evaluate import evaluate_fold, pool_patients, summarise
from momkd_ray.crossval.fold_result import FoldResult
from momkd_ray.crossval.metrics import (
    METRICS,
    bootstrap_intervals,
    patient_table,
    scores,
    weighted_scores,
)
from momkd_ray.crossval.threshold import best_threshold
from momkd_ray.errors import InputError

CLASSES = ("low", "high")


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Classes, both present, and probabilities with many ties."""
    n = draw(st.integers(2, 40))
    y = draw(npst.arrays(bool, n))
    assume(0 < y.sum() < n)
    steps = draw(st.sampled_from([1, 3, 10, 1000]))
    return y, draw(npst.arrays(int, n, elements=st.integers(0, steps))) / steps


def by_sklearn(y: np.ndarray, p: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {
        "auc": sk.roc_auc_score(y, p),
        "auprc": sk.average_precision_score(y, p),
        "macro_f1": sk.f1_score(y, predicted, average="macro", zero_division=0),
        "accuracy": sk.accuracy_score(y, predicted),
        "sensitivity": sk.recall_score(y, predicted),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
    }


@given(predictions(), st.floats(0, 1))
def test_scores_are_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    y, p = case
    found = scores(y, p, threshold)
    assert tuple(found) == METRICS
    assert found == pytest.approx(by_sklearn(y, p, p >= threshold), abs=1e-12)


@given(predictions(), st.data())
def test_weighted_scores_are_those_of_repeated_patients(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    y, p = case
    weights = data.draw(npst.arrays(int, (3, len(y)), elements=st.integers(0, 3)))
    assume(all((w @ y) and (w @ ~y) for w in weights))
    found = weighted_scores(y, p, p >= 0.5, weights.astype(float))
    for place, w in enumerate(weights):
        y_R, p_R = np.repeat(y, w), np.repeat(p, w)
        one = {name: value[place] for name, value in found.items()}
        assert one == pytest.approx(by_sklearn(y_R, p_R, p_R >= 0.5), abs=1e-12)


@pytest.mark.parametrize(
    ("y", "p", "said"),
    [
        ([1, 1], [0.1, 0.2], "negative"),
        ([0, 0], [0.1, 0.2], "positive"),
        ([0, 1], [0.1, np.nan], "nan"),
        ([0, 1], [0.1, 1.5], "1.5"),
        ([0, 2], [0.1, 0.2], "neither"),
        ([0, np.nan], [0.1, 0.2], "neither"),
        ([0, 1, 1], [0.1, 0.2], "shape"),
    ],
)
def test_undefined_scores_are_refused(y: list[float], p: list[float], said: str) -> None:
    for call in (
        lambda: scores(y, p, 0.5),
        lambda: best_threshold(y, p),
        lambda: bootstrap_intervals(y, p, [0] * len(p), 1),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match="threshold"):
        scores([0, 1], [0.1, 0.2], float("nan"))


def quality(y: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    return sk.f1_score(y, predicted, zero_division=0), sk.balanced_accuracy_score(y, predicted)


@given(predictions())
def test_no_threshold_is_better(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    found = quality(y, p >= best_threshold(y, p))
    best = max(quality(y, p >= t) for t in [*np.unique(p), 1.1])
    assert found == pytest.approx(best, abs=1e-12)


@given(predictions())
def test_threshold_stands_clear_of_the_scores(case: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = case
    threshold = best_threshold(y, p)
    assert 0 <= threshold <= 1
    nearest = np.abs(np.unique(p) - threshold).min()
    below, above = p[p < threshold], p[p >= threshold]
    if len(below):
        assert nearest == pytest.approx((above.min() - below.max()) / 2)
    else:
        assert nearest == pytest.approx(p.min() / 2)


@given(predictions(), st.randoms(use_true_random=False))
def test_threshold_ignores_the_order_of_patients(case: tuple[np.ndarray, np.ndarray], random: object) -> None:
    y, p = case
    order = np.random.default_rng(random.randrange(99)).permutation(len(y))  # type: ignore[attr-defined]
    assert best_threshold(y[order], p[order]) == best_threshold(y, p)


@given(predictions(), st.sampled_from([lambda p: p**2, np.sqrt, lambda p: 0.1 + 0.3 * p]))
def test_predictions_survive_a_monotone_transform(case: tuple[np.ndarray, np.ndarray], transform: np.ufunc) -> None:
    y, p = case
    candidates = [quality(y, p >= t) for t in np.unique(p)]
    best = max(candidates)
    # Of cuts that are equally good the one nearest to 0.5 is taken, which a transform may change.
    assume(sum(one == pytest.approx(best, abs=1e-12) for one in candidates) == 1)
    moved = transform(p)
    assert ((p >= best_threshold(y, p)) == (moved >= best_threshold(y, moved))).all()


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    p = np.array([low, np.nextafter(low, 1)])
    assert ((p >= best_threshold([0, 1], p)) == [False, True]).all()


def test_ties_go_to_balance_then_to_the_middle() -> None:
    # F1 2/3 and balanced accuracy 3/4 with the first one called, F1 2/3 and 3/4 with four called: equal.
    y = np.array([1, 0, 0, 1, 0, 0])
    p = np.array([0.95, 0.9, 0.3, 0.28, 0.1, 0.05])
    assert quality(y, p >= 0.92) == pytest.approx(quality(y, p >= 0.2))
    assert best_threshold(y, p) == pytest.approx(0.19)
    p = np.array([0.6, 0.55, 0.06, 0.05, 0.02, 0.01])
    assert best_threshold(y, p) == pytest.approx(0.575)


def test_perfect_and_inverted_classifiers() -> None:
    y = np.repeat([0, 1], 10)
    p = np.concatenate([np.linspace(0.05, 0.4, 10), np.linspace(0.6, 0.9, 10)])
    assert best_threshold(y, p) == pytest.approx(0.5)
    assert set(scores(y, p, 0.5).values()) == {1.0}
    assert set(bootstrap_intervals(y, p, p >= 0.5, seed=1, n=200).values()) == {None}
    wrong = bootstrap_intervals(y, 1 - p, p < 0.5, seed=1, n=200)
    assert {name for name, interval in wrong.items() if interval is not None} == {"auprc"}
    one_wrong = np.where(p == p.max(), 0.2, p)
    found = bootstrap_intervals(y, one_wrong, one_wrong >= 0.5, seed=1, n=200)
    assert {name for name, interval in found.items() if interval is None} == {"specificity"}
    assert all(interval[0] < interval[1] for interval in found.values() if interval is not None)
    inverted = scores(y, 1 - p, best_threshold(y, 1 - p))
    assert inverted["auc"] == 0
    assert (inverted["sensitivity"], inverted["specificity"]) == (1, 0), "calling all is the best it can do"


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_interval_holds_the_estimate_and_repeats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(80) % 3 == 0
    p = 1 / (1 + np.exp(-rng.normal(size=80) - y))
    point, intervals = scores(y, p, 0.5), bootstrap_intervals(y, p, p >= 0.5, seed, n=400)
    for name in METRICS:
        if (interval := intervals[name]) is None:
            assert point[name] == 1, "where nothing is wrong, no replicate is"
            continue
        assert 0 <= interval[0] <= point[name] <= interval[1] <= 1
        assert interval[1] - interval[0] > 0.02
    order = rng.permutation(80)
    assert intervals == bootstrap_intervals(y[order], p[order], p[order] >= 0.5, seed, n=400)
    wider = bootstrap_intervals(y, p, p >= 0.5, seed, n=400, level=0.99)
    for own, other in ((wider[name], intervals[name]) for name in METRICS):
        assert (own is None) == (other is None)
        assert own is None or other is None or own[0] <= other[0] <= other[1] <= own[1]


def test_interval_has_the_width_of_the_binomial() -> None:
    y = np.arange(1000) % 2 == 0
    predicted = np.arange(1000) % 10 < 8
    p = predicted * 0.6
    low, high = bootstrap_intervals(y, p, predicted, seed=3)["sensitivity"] or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 500), rel=0.1)


def test_bootstrap_is_quick() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.random(1000) < 0.3, rng.random(1000)
    start = time.process_time()
    bootstrap_intervals(y, p, p >= 0.5, seed=1)
    assert time.process_time() - start < 3


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
