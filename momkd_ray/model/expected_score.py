"""The number that the probabilities of quantile classes stand for: their expectation.

Shapes: N bags or patients, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from momkd_ray.config.dotted_keys import Section

SCORE = "score"  # the column of predictions


class ExpectedScore(Section):
    """What each class of a regression stands for, learnt from the training patients.

    Attributes:
        values: (Y,) the mean number of the training patients of each class.
        weights: (Y,) by which probabilities are multiplied before they are scaled to a sum of 1: how much more common a
            class is among the training patients than in the bags that were drawn, 1 unless classes were drawn equally
            often.
    """

    values: tuple[float, ...] = Field(min_length=2)
    weights: tuple[float, ...] = Field(min_length=2)

    @classmethod
    def of_training(cls, number_N: ArrayLike, y_N: ArrayLike, classes: int, *, balanced: bool) -> ExpectedScore:
        """Learns it from the training patients.

        Args:
            number_N: (N,) their numbers.
            y_N: (N,) their classes, each of which has a patient.
            classes: Y.
            balanced: whether classes were drawn equally often.

        >>> ExpectedScore.of_training([0, 2, 9, 11, 11, 13], [0, 0, 1, 1, 1, 1], 2, balanced=True).values
        (1.0, 11.0)
        """
        number, y = np.asarray(number_N, dtype=float), np.asarray(y_N, dtype=np.int64)
        counts = np.bincount(y, minlength=classes)
        weights = counts * classes / len(y) if balanced else np.ones(classes)
        return cls(values=_plain(np.bincount(y, number, minlength=classes) / counts), weights=_plain(weights))

    def of(self, p_NY: ArrayLike) -> NDArray[np.float64]:
        """Computes the expected number (N,) of probabilities (N, Y).

        >>> ExpectedScore(values=(1.0, 11.0), weights=(1.0, 1.0)).of([[0.5, 0.5], [0.1, 0.9]]).tolist()
        [6.0, 10.0]
        """
        weighted_NY = np.asarray(p_NY, dtype=float) * np.asarray(self.weights)
        # not as a matrix product, whose rounding depends on the rows beside it, so that equal rows would rank
        sum_N: NDArray[np.float64] = (weighted_NY * np.asarray(self.values)).sum(axis=1)
        expected_N: NDArray[np.float64] = sum_N / weighted_NY.sum(axis=1)
        return expected_N


def _plain(values: NDArray[np.float64]) -> Sequence[float]:
    return tuple(values.tolist())
