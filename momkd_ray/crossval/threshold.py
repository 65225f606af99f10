"""Chooses the threshold of a fold on its validation patients. Shapes: N patients, G distinct probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from momkd_ray.crossval.metrics import checked_classes_and_probabilities


def best_threshold(y_N: ArrayLike, p_N: ArrayLike) -> float:
    """Chooses the threshold with the highest F1 of the positive class (docs/method.md §5).

    Candidates are the midpoints between neighbouring distinct probabilities, and one below the lowest. Ties go to the
    higher balanced accuracy, then to the threshold nearest to 0.5, then to the lower one.

    Args:
        y_N: (N,) the classes, 0 or 1.
        p_N: (N,) probabilities of class 1.

    Returns:
        The threshold; class 1 is predicted if p >= threshold.

    Raises:
        ValueError: as `scores`.

    >>> best_threshold([0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9])
    0.5
    """
    y, p = checked_classes_and_probabilities(y_N, p_N)
    distinct_G, group_N = np.unique(p, return_inverse=True)
    lower_G = np.concatenate([[0.0], distinct_G[:-1]])
    middle_G = (lower_G + distinct_G) / 2
    # adjacent floats have no midpoint, and a threshold at the lower one would include it
    threshold_G = np.where(middle_G > lower_G, middle_G, distinct_G)
    positive_G = np.bincount(group_N, weights=y).astype(int)
    tp_G = np.cumsum(positive_G[::-1])[::-1]
    fp_G = np.cumsum((np.bincount(group_N) - positive_G)[::-1])[::-1]
    positives, negatives = int(y.sum()), int((~y).sum())
    f1_G = 2 * tp_G / (positives + tp_G + fp_G)
    # balanced accuracy up to constants, in integers, so that ties are exact
    balanced_G = tp_G * negatives - fp_G * positives
    best = np.lexsort((threshold_G, np.abs(threshold_G - 0.5), -balanced_G, -f1_G))[0]
    return float(threshold_G[best])
