"""Metrics of predicted numbers against scipy and scikit-learn, counted once or as a bootstrap counts them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score

from momkd_ray.crossval.score_metrics import score_intervals, score_metrics, weighted_score_metrics
from momkd_ray.model.expected_score import ExpectedScore
from momkd_ray.train.validation import expected_of_training, patient_scores


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), min_size=3, max_size=40))
def test_patients_counted_often_are_as_many_patients(rows: list[tuple[int, int, int]]) -> None:
    true, predicted, weight = np.array(rows, dtype=float).T
    repeated = [np.repeat(values, weight.astype(int)) for values in (true, predicted)]
    if len(set(repeated[0])) < 2 or len(set(repeated[1])) < 2:
        return
    found = {name: own[0] for name, own in weighted_score_metrics(true, predicted, weight[None]).items()}
    assert found["spearman"] == pytest.approx(spearmanr(*repeated).statistic, abs=1e-12)
    assert found["r2"] == pytest.approx(r2_score(*repeated), abs=1e-12)
    assert found["mae"] == pytest.approx(mean_absolute_error(*repeated), abs=1e-12)


def test_intervals_lie_around_the_value_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=80)
    predicted = true + rng.normal(size=80)
    values, intervals = score_metrics(true, predicted), score_intervals(true, predicted, seed=1, n=300)
    assert all(intervals[name][0] < value < intervals[name][1] for name, value in values.items())
    order = rng.permutation(80)
    assert score_intervals(true[order], predicted[order], seed=1, n=300) == intervals


def test_equal_predictions_rank_nobody_and_equal_numbers_are_refused() -> None:
    assert score_metrics([1, 2, 3], [2, 2, 2]) == {"spearman": 0.0, "r2": 0.0, "mae": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="all the same"):
        score_metrics([1, 1], [1, 2])


def test_classes_stand_for_the_mean_of_the_training_patients_alone() -> None:
    bags = pd.DataFrame(
        {
            "patient_id": ["A", "A", "B", "C", "D"],
            "y": [0, 0, 0, 1, 1],
            "role": ["train", "train", "train", "train", "test"],
            "number": [1.0, 1.0, 2.0, 10.0, 1000.0],
        }
    )
    expected = expected_of_training(bags, 2, balanced=False)
    assert expected == ExpectedScore(values=(1.5, 10.0), weights=(1.0, 1.0))
    slides = pd.DataFrame(
        {"slide_id": ["s1", "s2", "s3"], "patient_id": ["E", "E", "F"], "p_low": [1, 0.5, 0], "p_high": [0, 0.5, 1]}
    )
    assert patient_scores(slides, ("low", "high"), expected).to_dict() == {"E": (1.5 + 5.75) / 2, "F": 10.0}


@given(st.integers(0, 2**32 - 1))
def test_a_balanced_model_that_knows_nothing_predicts_the_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(4), rng.integers(4, size=30)])
    number = rng.normal(size=len(y))
    expected = ExpectedScore.of_training(number, y, 4, balanced=True)
    assert expected.of([[0.25] * 4])[0] == pytest.approx(number.mean(), abs=1e-9)
