"""Patient-level metrics of a classifier of several classes and their bootstrap intervals.

Shapes: N patients, Y classes, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from momkd_ray.crossval.metrics import Floats, percentile_intervals, weighted_scores
from momkd_ray.statistics.percentiles import Interval

Integers = NDArray[np.int64]


def class_metric_names(classes: Sequence[str], *, ordered: bool) -> tuple[str, ...]:
    """Returns the names of the metrics: the means over classes, kappa if they are ordered, and each class's AUC."""
    own = ("auc", "auprc", "macro_f1", "accuracy", "balanced_accuracy", *(("kappa",) if ordered else ()))
    return (*own, *(auc_name(name) for name in classes))


def auc_name(name: str) -> str:
    """Returns the name of the AUC of a class against the rest."""
    return f"auc_{name}"


def class_scores(
    y_N: ArrayLike, p_NY: ArrayLike, predicted_N: ArrayLike, classes: Sequence[str], *, ordered: bool
) -> dict[str, float]:
    """Computes the metrics of several classes.

    `auc` and `auprc` are the means over classes of each against the rest, `macro_f1` and `balanced_accuracy` those of
    each class's F1 and sensitivity; `kappa` is Cohen's with quadratic weights, of classes in an order.

    Args:
        y_N: (N,) the numbers of the classes.
        p_NY: (N, Y) probabilities of the classes.
        predicted_N: (N,) predicted classes.
        classes: their names.
        ordered: whether they are in an order.

    Raises:
        ValueError: a class has no patient, or a number is none of a class.

    >>> p_NY = [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]
    >>> class_scores([0, 1, 2], p_NY, [0, 1, 2], ("low", "middle", "high"), ordered=True)["kappa"]
    1.0
    """
    y, p, predicted = _checked(y_N, p_NY, predicted_N, classes)
    values = weighted_class_scores(y, p, predicted, np.ones((1, len(y))), classes, ordered=ordered)
    return {name: float(value[0]) for name, value in values.items()}


def class_intervals(
    y_N: ArrayLike,
    p_NY: ArrayLike,
    predicted_N: ArrayLike,
    classes: Sequence[str],
    seed: int,
    *,
    ordered: bool,
    n: int = 2000,
    level: float = 0.95,
) -> dict[str, Interval | None]:
    """Computes percentile intervals of `class_scores` by a bootstrap of patients; see `bootstrap_intervals`."""
    y, p, predicted = _checked(y_N, p_NY, predicted_N, classes)
    order = np.lexsort((predicted, y, *p.T[::-1]))
    y, p, predicted = y[order], p[order], predicted[order]
    return percentile_intervals(
        y,
        lambda weights_RN: weighted_class_scores(y, p, predicted, weights_RN, classes, ordered=ordered),
        seed=seed,
        n=n,
        level=level,
    )


def weighted_class_scores(
    y_N: Integers, p_NY: Floats, predicted_N: Integers, weights_RN: Floats, classes: Sequence[str], *, ordered: bool
) -> dict[str, Floats]:
    """Computes every metric (R,) with each patient counted `weights_RN` times."""
    against_rest = [weighted_scores(y_N == y, p_NY[:, y], predicted_N == y, weights_RN) for y in range(len(classes))]
    confusion_RYY = confusion_counts(y_N, predicted_N, weights_RN, len(classes))
    correct_RY = np.diagonal(confusion_RYY, axis1=1, axis2=2)
    of_class_RY, called_RY = confusion_RYY.sum(axis=2), confusion_RYY.sum(axis=1)
    found = {
        "auc": np.mean([own["auc"] for own in against_rest], axis=0),
        "auprc": np.mean([own["auprc"] for own in against_rest], axis=0),
        "macro_f1": (2 * correct_RY / (of_class_RY + called_RY)).mean(axis=1),
        "accuracy": correct_RY.sum(axis=1) / weights_RN.sum(axis=1),
        "balanced_accuracy": (correct_RY / of_class_RY).mean(axis=1),
    }
    if ordered:
        found["kappa"] = quadratic_kappa(confusion_RYY)
    return found | {auc_name(name): own["auc"] for name, own in zip(classes, against_rest, strict=True)}


def confusion_counts(y_N: Integers, predicted_N: Integers, weights_RN: Floats, classes: int) -> Floats:
    """Counts patients by true and by predicted class: (R, Y, Y)."""
    cell_N = y_N * classes + predicted_N
    cells_NC = (cell_N[:, None] == np.arange(classes**2)).astype(float)
    counts_RC: Floats = weights_RN @ cells_NC
    return counts_RC.reshape(len(weights_RN), classes, classes)


def quadratic_kappa(confusion_RYY: Floats) -> Floats:
    """Computes Cohen's kappa with quadratic weights (Cohen 1968) of confusion matrices; 0 if all are called alike."""
    classes = confusion_RYY.shape[1]
    weight_YY = np.square(np.subtract.outer(np.arange(classes), np.arange(classes)))
    of_class_RY, called_RY = confusion_RYY.sum(axis=2), confusion_RYY.sum(axis=1)
    expected_RYY = of_class_RY[:, :, None] * called_RY[:, None, :] / of_class_RY.sum(axis=1)[:, None, None]
    disagreement_R = (weight_YY * confusion_RYY).sum(axis=(1, 2))
    by_chance_R = (weight_YY * expected_RYY).sum(axis=(1, 2))
    kappa_R: Floats = np.where(by_chance_R > 0, 1 - disagreement_R / np.where(by_chance_R > 0, by_chance_R, 1), 0.0)
    return kappa_R


def _checked(
    y_N: ArrayLike, p_NY: ArrayLike, predicted_N: ArrayLike, classes: Sequence[str]
) -> tuple[Integers, Floats, Integers]:
    y, p, predicted = np.asarray(y_N), np.asarray(p_NY, dtype=float), np.asarray(predicted_N)
    if p.shape != (len(y), len(classes)) or predicted.shape != y.shape:
        raise ValueError(f"{len(y)} classes, but probabilities of shape {p.shape} and {len(predicted)} predictions")
    for values in (y, predicted):
        if not np.isin(values, np.arange(len(classes))).all():
            raise ValueError(f"a class is not a number below {len(classes)}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a probability is not within 0 and 1")
    for number, name in enumerate(classes):
        if number not in y:
            raise ValueError(f"no patient of class '{name}': its scores are not defined")
    return y.astype(np.int64), p, predicted.astype(np.int64)
