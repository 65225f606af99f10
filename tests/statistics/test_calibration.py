"""Calibration, decision curves, proportions and heterogeneity: reference values, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest, chi2
from sklearn.calibration import calibration_curve as sklearn_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from momkd_ray.statistics.calibration import (
    brier,
    calibration_curve,
    calibration_intercept,
    calibration_slope,
    logits,
    prevalence_shift,
    recalibration,
    scaled_brier,
    smooth_curve,
)
from momkd_ray.statistics.heterogeneity import cochran
from momkd_ray.statistics.net_benefit import decision_curve, net_benefit
from momkd_ray.statistics.proportions import Counts, likelihood_ratios, predictive_values, proportion


def drawn(rng: np.random.Generator, n: int, intercept: float = 0, slope: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Patients whose probabilities are off by an intercept and a slope on the log odds."""
    p = expit(rng.normal(size=n) * 1.5)
    return (rng.random(n) < expit(intercept + slope * logit(p))).astype(int), p


def test_slope_and_brier_are_scikit_learns() -> None:
    y, p = drawn(np.random.default_rng(0), 300, 0.3, 0.7)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits(p)[:, None], y)
    assert calibration_slope(y, p).value == pytest.approx(fitted.coef_[0, 0], abs=1e-4)
    assert brier(y, p) == pytest.approx(brier_score_loss(y, p))
    assert scaled_brier(y, p) == pytest.approx(1 - brier_score_loss(y, p) / (y.mean() * (1 - y.mean())))


def test_the_intercept_is_that_with_the_slope_held_at_one() -> None:
    y, p = drawn(np.random.default_rng(1), 200, -0.5)
    found = calibration_intercept(y, p).value
    assert found is not None
    # at the maximum of the likelihood the expected number of positives is the observed one
    assert expit(found + logits(p)).sum() == pytest.approx(y.sum(), abs=1e-6)


def test_intervals_of_calibration_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = {"intercept": 0, "slope": 0}
    for _ in range(300):
        y, p = drawn(rng, 150)
        for name, estimate, truth in (
            ("intercept", calibration_intercept(y, p), 0),
            ("slope", calibration_slope(y, p), 1),
        ):
            assert estimate.interval is not None
            hits[name] += estimate.interval[0] <= truth <= estimate.interval[1]
    assert all(0.91 <= count / 300 <= 0.985 for count in hits.values()), hits


def test_the_intercept_of_probabilities_at_0_and_1_makes_them_agree_with_the_classes() -> None:
    y, p = np.repeat([0, 1, 0, 1], [7, 3, 8, 2]), np.repeat([1e-9, 1 - 1e-9], 10)
    found = calibration_intercept(y, p)
    assert found.value is not None
    assert found.interval is not None
    predicted = expit(found.value + logit(np.clip(p, 1e-6, 1 - 1e-6)))
    assert predicted.sum() == pytest.approx(5)
    sd = 1 / np.sqrt((predicted * (1 - predicted)).sum())
    assert found.interval == pytest.approx((found.value - 1.959964 * sd, found.value + 1.959964 * sd))
    assert calibration_intercept([0, 0, 0], [0.1, 0.2, 0.3]).value is None


def test_classes_that_share_one_probability_alone_have_no_slope() -> None:
    y, p = np.repeat([0, 1], 4), np.array([0.1, 0.2, 0.3, 0.5, 0.5, 0.6, 0.7, 0.8])
    for falling in (p, 1 - p):  # the likelihood rises without end
        assert calibration_slope(y, falling).value is None
    p[4] = 0.4
    assert calibration_slope(y, p).value is not None


def test_separated_classes_have_no_slope_but_a_recalibration() -> None:
    y, p = np.repeat([0, 1], 10), np.linspace(0.05, 0.95, 20)
    assert calibration_slope(y, p).value is None
    mapped = recalibration(y, p).apply(p)
    assert 0 < mapped.min() < mapped.max() < 1
    assert (np.diff(mapped) > 0).all()
    assert calibration_slope(y, np.full(20, 0.3)).value is None


def test_recalibration_is_platts_and_mends_what_is_off() -> None:
    y, p = drawn(np.random.default_rng(3), 4000, -0.8, 0.5)
    found = recalibration(y, p)
    assert found.slope == pytest.approx(0.5, abs=0.06)
    assert found.intercept == pytest.approx(-0.8, abs=0.1)
    y, p = drawn(np.random.default_rng(4), 60)
    found, targets = recalibration(y, p), np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    fitted = sm.GLM(targets, sm.add_constant(logit(p)), family=sm.families.Binomial()).fit()
    assert [found.intercept, found.slope] == pytest.approx(list(fitted.params), abs=1e-6)
    level = recalibration(y, np.full(60, 0.5))
    assert level.slope == 1
    assert level.apply([0.5])[0] == pytest.approx(targets.mean())


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.7), (0, 1), (0.7, 0.2)])
def test_classes_that_two_probabilities_separate_are_recalibrated_to_platts_targets(low: float, high: float) -> None:
    y = np.repeat([0, 1], 10)
    mapped = recalibration(y, np.where(y, high, low)).apply([low, high])
    assert mapped == pytest.approx([1 / 12, 11 / 12])
    assert calibration_slope(y, np.where(y, high, low)).value is None


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.01, 0.99))
def test_the_shift_of_prevalence_is_bayes(trained_at: float, prevalence: float, p: float) -> None:
    # the posterior by Bayes' rule with the classes' densities unchanged
    positive, negative = p / trained_at * prevalence, (1 - p) / (1 - trained_at) * (1 - prevalence)
    assert prevalence_shift(trained_at, prevalence).apply([p])[0] == pytest.approx(positive / (positive + negative))


def test_balanced_sampling_is_undone_by_the_shift() -> None:
    rng = np.random.default_rng(5)
    y = (rng.random(20_000) < 0.1).astype(int)
    x = rng.normal(size=len(y)) + y
    balanced = expit(x - 0.5)  # the posterior where both classes are as frequent
    found = calibration_intercept(y, prevalence_shift(0.5, 0.1).apply(balanced))
    assert found.interval is not None
    assert found.interval[0] <= 0 <= found.interval[1]
    assert (calibration_intercept(y, balanced).value or 0) < -1.5


def test_the_curve_has_scikit_learns_bins() -> None:
    y, p = drawn(np.random.default_rng(6), 200)
    found = calibration_curve(y, p, bins=10)
    share, mean = sklearn_curve(y, p, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(found["observed"], share)
    np.testing.assert_allclose(found["predicted"], mean)
    assert found["patients"].sum() == 200
    assert len(calibration_curve([0, 1, 1], [0.1, 0.2, 0.9])) == 1
    assert len(calibration_curve([0, 1] * 20, [0.3] * 40)) == 1


@pytest.mark.slow
def test_the_smooth_curve_covers_the_truth() -> None:
    rng = np.random.default_rng(7)
    inside = []
    for seed in range(25):
        y, p = drawn(rng, 300)
        curve = smooth_curve(y, p, seed, replicates=100)
        middle = curve[(curve["predicted"] > 0.15) & (curve["predicted"] < 0.85)]
        inside.append(((middle["low"] <= middle["predicted"]) & (middle["predicted"] <= middle["high"])).mean())
    assert np.mean(inside) > 0.85
    assert smooth_curve([0, 1, 1], [0.1, 0.1, 0.2], 0).empty


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilsons_interval_is_scipys(successes: int, of: int) -> None:
    successes = min(successes, of)
    found, expected = proportion(successes, of), binomtest(successes, of).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((max(expected.low, 0), min(expected.high, 1)), abs=1e-9)
    assert proportion(0, 0).value is None


def test_likelihood_ratios_are_those_of_statsmodels() -> None:
    # the liver scans of Altman and Bland 1994, BMJ 308:1552: 231 of 258 and 54 of 86 patients called rightly
    positive, negative = likelihood_ratios(Counts(tp=231, fp=32, fn=27, tn=54))
    assert positive.value == pytest.approx(0.8953 / (1 - 0.6279), abs=0.005)
    assert negative.value == pytest.approx((1 - 0.8953) / 0.6279, abs=0.001)
    # the ratio of two shares, as risk ratios of a table of exposure
    for found, table in ((positive, [[231, 27], [32, 54]]), (negative, [[27, 231], [54, 32]])):
        reference = sm.stats.Table2x2(np.array(table))
        assert found.value == pytest.approx(reference.riskratio)
        assert found.interval == pytest.approx(reference.riskratio_confint())
    empty = likelihood_ratios(Counts(0, 1, 0, 1))[0]
    assert empty.value is None


@pytest.mark.parametrize("counts", [Counts(20, 0, 5, 40), Counts(0, 3, 10, 30), Counts(10, 0, 0, 10)])
def test_cells_of_zero_give_finite_intervals(counts: Counts) -> None:
    for estimate in (*likelihood_ratios(counts), *predictive_values(counts, 0.3)):
        assert estimate.value is not None
        assert estimate.interval is not None
        assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1] < np.inf


def test_predictive_values_at_another_prevalence_are_bayes_and_cover() -> None:
    counts = Counts(tp=80, fp=10, fn=20, tn=90)
    ppv, npv = predictive_values(counts, 0.1)
    assert ppv.value == pytest.approx(0.8 * 0.1 / (0.8 * 0.1 + 0.1 * 0.9))
    assert npv.value == pytest.approx(0.9 * 0.9 / (0.9 * 0.9 + 0.2 * 0.1))
    # at this cohort's own prevalence they are its own shares
    own = predictive_values(counts, 0.5)
    assert own[0].value == pytest.approx(80 / 90)
    with pytest.raises(ValueError, match="between 0 and 1"):
        predictive_values(counts, 1.0)
    rng, hits = np.random.default_rng(8), []
    truth = 0.8 * 0.2 / (0.8 * 0.2 + 0.15 * 0.8)
    for _ in range(1000):
        tp, fp = int(rng.binomial(60, 0.8)), int(rng.binomial(90, 0.15))
        low, high = predictive_values(Counts(tp, fp, 60 - tp, 90 - fp), 0.2)[0].interval or (0, 0)
        hits.append(low <= truth <= high)
    assert 0.93 <= np.mean(hits) <= 0.98


def test_ratios_cover_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(9), []
    for _ in range(1000):
        tp, fp = int(rng.binomial(60, 0.8)), int(rng.binomial(90, 0.15))
        low, high = likelihood_ratios(Counts(tp, fp, 60 - tp, 90 - fp))[0].interval or (0, 0)
        hits.append(low <= 0.8 / 0.15 <= high)
    assert 0.93 <= np.mean(hits) <= 0.98


def test_net_benefit_by_hand_and_its_limits() -> None:
    y, p = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.6, 0.2, 0.1])
    assert net_benefit(y, p, 0.5) == pytest.approx((1 - 1 * 1) / 5)
    assert net_benefit(y, p, 0.2) == pytest.approx((2 - 2 * 0.25) / 5)
    curve = decision_curve(y, p, seed=1, replicates=200)
    assert curve["net_benefit"].to_numpy() == pytest.approx([net_benefit(y, p, t) for t in curve["threshold"]])
    assert curve["call_all"].to_numpy() == pytest.approx([net_benefit(y, np.ones(5), t) for t in curve["threshold"]])
    assert (curve["call_none"] == 0).all()
    assert (curve["low"] <= curve["high"]).all()


def test_a_calibrated_model_is_never_worse_than_calling_all_or_none() -> None:
    y, p = drawn(np.random.default_rng(10), 50_000)
    curve = decision_curve(y, p, seed=1, replicates=10)
    assert (curve["net_benefit"] >= np.maximum(curve["call_all"], 0) - 0.004).all()


def test_cochrans_q_by_hand_and_its_level() -> None:
    found = cochran([1.0, 2.0, 3.0], [0.5, 0.5, 1.0])
    assert found is not None
    weights = np.array([4.0, 4.0, 1.0])
    mean = (weights * [1, 2, 3]).sum() / 9
    q = (weights * (np.array([1, 2, 3]) - mean) ** 2).sum()
    assert (found.q, found.df, found.p) == (pytest.approx(q), 2, pytest.approx(chi2.sf(q, 2)))
    assert found.i_squared == pytest.approx((q - 2) / q)
    assert cochran([0.8], [0.1]) is None
    rng = np.random.default_rng(11)
    sds = np.array([0.5, 1.0, 2.0, 1.5])
    rejected = [(cochran(list(rng.normal(3, sds)), list(sds)) or found).p < 0.05 for _ in range(2000)]
    assert 0.035 <= np.mean(rejected) <= 0.065


@pytest.mark.parametrize("sds", [[0.1, 0.0, 0.2], [0.1, np.nan, 0.2], [0.1, 0.2]])
def test_cochrans_q_leaves_no_group_out_silently(sds: list[float]) -> None:
    with pytest.raises(ValueError, match=r"not above 0|3 values, but 2 standard errors"):
        cochran([0.8, 1.0, 0.7], sds)
