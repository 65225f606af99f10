"""DeLong, the paired bootstrap and Holm: right by definition, and right as often as they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score

from momkd_ray.statistics.delong import delong
from momkd_ray.statistics.holm import holm, holm_of_known
from momkd_ray.statistics.paired_bootstrap import paired_bootstrap
from momkd_ray.statistics.percentiles import percentile_interval


def by_definition(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and covariance by the sums over all pairs of DeLong et al. 1988, equations 3 to 6."""
    x, z = scores[:, y == 1], scores[:, y == 0]
    psi = (x[:, :, None] > z[:, None]) + 0.5 * (x[:, :, None] == z[:, None])
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    covariance = np.cov(v10) / x.shape[1] + np.cov(v01) / z.shape[1]
    return psi.mean(axis=(1, 2)), covariance


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12), st.integers(2, 6))
def test_delong_is_the_sum_over_all_pairs(seed: int, positives: int, negatives: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation([1] * positives + [0] * negatives)
    scores = rng.integers(levels, size=(3, len(y))).astype(float)
    found, (auc, covariance) = delong(y, scores), by_definition(y, scores)
    np.testing.assert_allclose(found.auc_M, auc, atol=1e-12)
    np.testing.assert_allclose(found.covariance_MM, covariance, atol=1e-12)
    np.testing.assert_allclose(found.auc_M, [roc_auc_score(y, s) for s in scores], atol=1e-12)


def test_delong_of_a_case_reckoned_by_hand() -> None:
    # positives 3 and 1, negatives 2 and 0: three of four pairs are in order; V10 = (1, 1/2), V01 = (1/2, 1)
    found = delong([1, 1, 0, 0], [[3, 1, 2, 0], [3, 2, 1, 0]])
    assert found.auc_M.tolist() == [0.75, 1.0]
    assert found.covariance_MM[0, 0] == pytest.approx(0.125 / 2 + 0.125 / 2)
    difference, _, p = found.difference(0, 1)
    assert difference == -0.25
    assert p == pytest.approx(2 * norm.sf(0.25 / 0.125**0.5))


# The 43 ovarian-cancer patients of DeLong et al. 1988 who have all three tests (albumin, total protein, Krebs-Goplerud
# score) and the outcome. Data and results are those of SAS/STAT's documentation, "Comparing Receiver Operating
# Characteristic Curves" of PROC LOGISTIC.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_delong_gives_the_published_numbers_of_the_ovarian_cancer_patients() -> None:
    albumin, protein, score, outcome = np.array(OVARIAN.split(), dtype=float).reshape(43, 4).T
    found = delong(outcome.astype(int), [albumin, -score, protein])  # a high score is a poor prognosis
    assert found.auc_M[1:] == pytest.approx([0.7258, 0.6478], abs=5e-5)
    assert np.sqrt(np.diag(found.covariance_MM))[1:] == pytest.approx([0.1028, 0.1000], abs=5e-5)
    assert found.interval(1) == pytest.approx((0.5243, 0.9273), abs=5e-5)
    assert found.interval(2) == pytest.approx((0.4518, 0.8439), abs=5e-5)
    difference, interval, p = found.difference(2, 1)
    assert (difference, *interval) == pytest.approx((-0.0780, -0.2830, 0.1271), abs=5e-5)
    assert p == pytest.approx(0.4561, abs=1e-4)
    # all three alike: the contrast of two differences to the score
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    differences = contrast @ found.auc_M
    statistic = differences @ np.linalg.solve(contrast @ found.covariance_MM @ contrast.T, differences)
    assert (statistic, chi2.sf(statistic, 2)) == pytest.approx((2.5340, 0.2817), abs=5e-5)


def test_equal_rankings_do_not_differ() -> None:
    found = delong([0, 1, 0, 1], [[1, 2, 3, 4], [10, 20, 30, 40]])
    assert found.difference(0, 1) == (0, (0, 0), 1)


def test_patients_who_say_nothing_of_others_give_no_interval_and_no_p() -> None:
    perfect, turned, constant, good = (
        [0, 1, 2, 3, 4, 5, 6, 7],
        [3, 2, 1, 0, 4, 5, 6, 7],
        [1] * 8,
        [0, 1, 2, 5, 3, 4, 6, 7],
    )
    found = delong([0] * 4 + [1] * 4, [perfect, turned, constant, good])
    assert [found.interval(model) for model in (0, 1, 2)] == [None, None, None]
    assert [found.sd(model) for model in (0, 1, 2)] == [0, 0, 0]
    assert found.difference(0, 2) == (0.5, None, None)
    assert found.difference(0, 1) == (0, None, None), "both are perfect here, and need not be alike on others"
    assert found.difference(2, 2) == (0, (0, 0), 1)
    difference, interval, p = found.difference(0, 3)
    assert interval is not None and interval[0] < difference < interval[1] and p is not None and 0 < p < 1


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 12), st.integers(1, 4))
def test_no_interval_of_an_auc_has_the_width_0(seed: int, positives: int, negatives: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], [positives, negatives])
    scores = rng.integers(levels, size=(2, len(y))) + rng.integers(2, size=(2, 1)) * y
    found, (_, covariance) = delong(y, scores), by_definition(y, scores)
    interval = found.interval(0)
    assert (interval is None) == (covariance[0, 0] < 1e-12)
    assert interval is None or interval[0] < interval[1]
    _, interval, p = found.difference(0, 1)
    if not np.array_equal(*found.rank_MN):
        assert (interval is None) == (p is None) == (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] < 1e-12)
        assert interval is None or interval[0] < interval[1]


@pytest.mark.parametrize("bad", [([1, 1, 0], [[1, 2, 3]]), ([1, 1, 0, 0], [[1, 2, 3, np.nan]]), ([1, 0], [[1, 2, 3]])])
def test_delong_refuses_what_has_no_variance(bad: tuple[list[int], list[list[float]]]) -> None:
    with pytest.raises(ValueError, match=r"two patients of each class|not a finite number|3 scores, but 2"):
        delong(*bad)


def drawn(rng: np.random.Generator, n: int, shifts: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Patients whose scores share a part; the true AUC of shift d is Phi(d / sqrt 2)."""
    y = rng.permutation(np.arange(n) % 2)
    shared = rng.standard_normal(n)
    return y, np.stack([d * y + 0.8 * shared + 0.6 * rng.standard_normal(n) for d in shifts])


def test_delongs_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    shifts, hits, gain = (0.8, 1.2), [], []
    truth = [norm.cdf(d / 2**0.5) for d in shifts]
    for _ in range(600):
        found = delong(*drawn(rng, 120, shifts))
        low, high = found.interval(0) or (1, 0)
        hits.append(low <= truth[0] <= high)
        low, high = found.difference(1, 0)[1] or (1, 0)
        gain.append(low <= truth[1] - truth[0] <= high)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert 0.92 <= np.mean(gain) <= 0.98


def test_delong_rejects_equal_models_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(1)
    rejected = [(delong(*drawn(rng, 120, (0.9, 0.9))).difference(0, 1)[2] or 0) < 0.05 for _ in range(600)]
    assert 0.025 <= np.mean(rejected) <= 0.08


def with_seeds(
    rng: np.random.Generator, n: int, seeds: int, luck: float
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Two equally good models whose seeds are more and less lucky."""
    y, (shared, _) = drawn(rng, n, (0.9, 0.9))
    runs = {
        model: [shared + rng.normal(0, luck) * y + 0.3 * rng.standard_normal(n) for _ in range(seeds)] for model in "ab"
    }
    return y, runs


def test_the_bootstraps_intervals_count_the_luck_of_seeds() -> None:
    rng = np.random.default_rng(2)
    covered, ignored = [], []
    for trial in range(150):
        y, runs = with_seeds(rng, 100, 5, 0.4)
        low, high = paired_bootstrap(y, runs, trial, 400).difference("a", "b")[1] or (1, 0)
        covered.append(low <= 0 <= high)
        means = {model: [np.mean(of, axis=0)] for model, of in runs.items()}
        low, high = paired_bootstrap(y, means, trial, 400).difference("a", "b")[1] or (1, 0)
        ignored.append(low <= 0 <= high)
    # five seeds resampled give a spread a little too small, which is far better than none
    assert np.mean(covered) >= 0.85
    assert np.mean(ignored) < np.mean(covered) - 0.1


def test_the_bootstraps_interval_of_one_auc_covers() -> None:
    rng = np.random.default_rng(3)
    truth = norm.cdf(0.9 / 2**0.5)
    hits = []
    for trial in range(300):
        y, scores = drawn(rng, 100, (0.9,))
        low, high = paired_bootstrap(y, {"a": [scores[0]]}, trial, 400).interval("a") or (1, 0)
        hits.append(low <= truth <= high)
    assert 0.90 <= np.mean(hits) <= 0.98


def test_the_bootstrap_is_paired_and_repeatable() -> None:
    y, scores = drawn(np.random.default_rng(4), 60, (0.9, 1.0))
    runs = {"a": [scores[0]], "same": [scores[0].copy()], "b": [scores[1]]}
    found = paired_bootstrap(y, runs, 7)
    assert found.difference("a", "same") == (0, (0, 0), 1)
    assert found.value["b"] == pytest.approx(roc_auc_score(y, scores[1]))
    again = paired_bootstrap(y, runs, 7)
    assert found.difference("a", "b") == again.difference("a", "b")


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(2, 8), st.integers(1, 3))
def test_no_interval_of_the_bootstrap_has_the_width_0(seed: int, positives: int, negatives: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], [positives, negatives])
    scores = rng.integers(levels, size=(2, len(y))) + rng.integers(2, size=(2, 1)) * 2 * y
    found, by_delong = paired_bootstrap(y, {"a": [scores[0]], "b": [scores[1]]}, seed, 400), delong(y, scores)
    interval = found.interval("a")
    assert (interval is None) == (by_delong.interval(0) is None), "where DeLong's variance is 0"
    assert interval is None or interval[0] < interval[1]
    difference, interval, p = found.difference("a", "b")
    assert (interval is None) == (p is None)
    assert interval is None or interval[0] < interval[1] or (difference, interval, p) == (0, (0, 0), 1)


def test_a_perfect_and_a_constant_model_have_no_interval_and_no_p_by_the_bootstrap() -> None:
    y, perfect = [0] * 4 + [1] * 4, list(range(8))
    models = {"perfect": perfect, "turned": [3, 2, 1, 0, 4, 5, 6, 7], "wrong": perfect[::-1], "constant": [1] * 8}
    models["good"] = [0, 1, 2, 5, 3, 4, 6, 7]
    found = paired_bootstrap(y, {name: [scores] for name, scores in models.items()}, 1)
    assert [name for name in models if found.interval(name) is None] == ["perfect", "turned", "wrong", "constant"]
    assert found.difference("perfect", "constant") == (0.5, None, None)
    assert found.difference("perfect", "turned") == (0, None, None), "both are perfect here, and need not be on others"
    difference, interval, p = found.difference("perfect", "good")
    assert interval is not None and interval[0] < difference <= interval[1] and p is not None and 0 < p <= 1


def test_an_interval_with_a_width_is_that_of_the_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=501)
    assert percentile_interval(values, 0.9) == tuple(np.quantile(values, [0.05, 0.95]))
    assert percentile_interval(np.full(9, 0.1) + np.arange(9) * 1e-17) is None, "rounding is no width"
    assert percentile_interval(np.array([1e-30, 2e-30])) is not None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(p_i <= a_i <= 1 for p_i, a_i in zip(p, adjusted, strict=True))
    for (p_i, a_i), (p_j, a_j) in itertools.permutations(zip(p, adjusted, strict=True), 2):
        assert a_i <= a_j or p_i >= p_j


def test_holm_of_a_textbook_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_counts_the_tests_that_there_are(p: list[float | None]) -> None:
    adjusted = holm_of_known(p)
    assert [one is None for one in adjusted] == [one is None for one in p]
    assert [one for one in adjusted if one is not None] == holm([one for one in p if one is not None])
