"""The ridge start: scikit-learn's ridge regression with the penalty of the smallest leave-one-out error, calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_predict

from momkd_ray.model.ridge import FEWEST_DEGREES, PENALTIES, fit_classes_ridge, fit_ridge


def noisy(seed: int, n: int = 60, width: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_NF = rng.standard_normal((n, width))
    x_NF -= x_NF.mean(0)
    return x_NF, 1 / (1 + np.exp(-x_NF[:, :5].sum(1) - rng.standard_normal(n)))


@pytest.mark.parametrize("seed", range(3))
def test_weights_point_where_ridge_regression_says(seed: int) -> None:
    x_NF, target_N = noisy(seed)
    fitted = fit_ridge(x_NF, target_N)
    p_N = target_N.clip(0.05, 0.95)
    ridge = Ridge(fitted.penalty).fit(x_NF, np.log(p_N / (1 - p_N)))
    cosine = fitted.weight_F @ ridge.coef_ / np.linalg.norm(fitted.weight_F) / np.linalg.norm(ridge.coef_)
    assert cosine == pytest.approx(1, abs=1e-9)


def test_the_penalty_is_that_of_the_smallest_leave_one_out_error() -> None:
    x_NF, target_N = noisy(7)
    p_N = target_N.clip(0.05, 0.95)
    odds_N = np.log(p_N / (1 - p_N))
    errors = [
        np.square(cross_val_predict(Ridge(penalty), x_NF, odds_N, cv=LeaveOneOut()) - odds_N).mean()
        for penalty in PENALTIES[::2]
    ]
    chosen = np.log10(fit_ridge(x_NF, target_N).penalty)
    assert abs(chosen - np.log10(PENALTIES[::2][int(np.argmin(errors))])) <= 0.5


def test_a_patients_slides_are_left_out_together() -> None:
    x_NF, target_N = noisy(11)
    rng = np.random.default_rng(11)
    patients = np.sort(rng.integers(25, size=len(x_NF)))
    x_NF = x_NF[patients] + 0.3 * rng.standard_normal(x_NF.shape)
    x_NF -= x_NF.mean(0)
    target_N = target_N[patients]
    p_N = target_N.clip(0.05, 0.95)
    odds_N = np.log(p_N / (1 - p_N))
    errors = [
        np.square(
            cross_val_predict(Ridge(penalty), x_NF, odds_N, groups=patients, cv=LeaveOneGroupOut()) - odds_N
        ).mean()
        for penalty in PENALTIES
    ]
    chosen = fit_ridge(x_NF, target_N, patients.tolist())
    assert abs(np.log10(chosen.penalty) - np.log10(PENALTIES[int(np.argmin(errors))])) <= 0.25
    both_NY = np.stack([1 - target_N, target_N], axis=1)
    assert fit_classes_ridge(x_NF, both_NY, patients.tolist()).penalty == chosen.penalty


@pytest.mark.parametrize("slides", [2, 5])
@pytest.mark.parametrize("signal", [0.0, 0.25])
def test_a_patients_repeated_slides_make_the_regression_no_surer(slides: int, signal: float) -> None:
    rng = np.random.default_rng(4)
    x_NF = rng.standard_normal((50, 400))
    x_NF -= x_NF.mean(0)
    noise_N = rng.permutation(np.repeat([-1.0, 1.0], 25))
    target_N = 1 / (1 + np.exp(-(signal * x_NF[:, :60].sum(1) if signal else 5 * noise_N)))
    once = fit_ridge(x_NF, target_N)
    again = fit_ridge(np.tile(x_NF, (slides, 1)), np.tile(target_N, slides), [*range(50)] * slides)
    # so many slides of a patient are one slide with a penalty that much larger, to the next that is tried
    assert (x_NF @ again.weight_F).std() == pytest.approx((x_NF @ once.weight_F).std(), rel=0.1, abs=0.25)


def test_new_patients_are_predicted_better_than_by_the_prevalence() -> None:
    x_NF, target_N = noisy(3, n=400, width=30)
    y_N = (target_N > 0.5).astype(float)
    fitted = fit_ridge(x_NF[:200], y_N[:200])
    p_N = 1 / (1 + np.exp(-(x_NF[200:] @ fitted.weight_F + fitted.bias)))
    assert log_loss(y_N[200:], p_N) < 0.9 * log_loss(y_N[200:], np.full(200, y_N[:200].mean()))


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_choose_a_penalty_that_leaves_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_NF = rng.standard_normal((50, 400))
    x_NF -= x_NF.mean(0)
    penalty = fit_ridge(x_NF, rng.permutation(np.repeat([0.0, 1.0], 25))).penalty
    eigenvalue_N = np.linalg.eigvalsh(x_NF @ x_NF.T).clip(0)
    assert (eigenvalue_N / (eigenvalue_N + penalty)).sum() >= FEWEST_DEGREES
    assert fit_ridge(np.zeros((6, 3)), np.array([0.0, 1.0] * 3)).weight_F.tolist() == [0, 0, 0]
