"""Calibration of numbers against statsmodels' least squares."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from momkd_ray.statistics.linear_calibration import group_means, linear_calibration


def test_line_and_intervals_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(20, 5, 60)
    true = 3 + 0.8 * predicted + rng.normal(size=60)
    found = linear_calibration(true, predicted)
    fitted = sm.OLS(true, sm.add_constant(predicted)).fit()
    for place, own in enumerate((found.intercept, found.slope)):
        assert own.value == pytest.approx(fitted.params[place])
        assert own.interval == pytest.approx(tuple(fitted.conf_int()[place]))
    assert found.mean_error.value == pytest.approx((predicted - true).mean())


def test_without_spread_there_is_no_line() -> None:
    found = linear_calibration([1, 2, 3], [2, 2, 2])
    assert found.slope.value is None and found.intercept.value is None and found.mean_error.value == 0


def test_groups_are_of_equal_size_and_keep_equal_predictions_together() -> None:
    table = group_means(np.arange(20.0), np.arange(20.0))
    assert table["patients"].tolist() == [4] * 5 and table["true"].tolist() == table["predicted"].tolist()
    assert len(group_means([1, 2, 3], [5, 5, 5])) == 1
    assert group_means([1, 2, 3, 4], [0, 0, 0, 9])["patients"].sum() == 4
