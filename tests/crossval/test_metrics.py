"""Metrics of two classes, their thresholds and intervals: against scikit-learn and by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn import metrics as sk
from support.sklearn_scores import by_sklearn

from momkd_ray.crossval.metrics import (
    METRICS,
    bootstrap_intervals,
    scores,
    weighted_scores,
)
from momkd_ray.crossval.threshold import best_threshold


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Classes, both present, and probabilities with many ties."""
    n = draw(st.integers(2, 40))
    y = draw(npst.arrays(bool, n))
    assume(0 < y.sum() < n)
    steps = draw(st.sampled_from([1, 3, 10, 1000]))
    return y, draw(npst.arrays(int, n, elements=st.integers(0, steps))) / steps


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
