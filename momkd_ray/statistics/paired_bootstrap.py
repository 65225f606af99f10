"""A bootstrap of AUCs over patients and training seeds, paired between models.

Shapes: N patients, M models, S seeds of a model, R replicates, G distinct scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from momkd_ray.statistics.percentiles import Interval, percentile_interval

Floats = NDArray[np.float64]
_REPLICATES_PER_PASS = 100  # keeps the weights of a pass in tens of megabytes up to 100,000 patients


@dataclass(frozen=True)
class PairedBootstrap:
    """Replicates of each model's mean AUC, or other metric, over its seeds, all on the same resampled patients.

    Attributes:
        value: of each model, the mean over its seeds.
        replicates_R: the same of resampled patients and seeds.
    """

    value: Mapping[str, float]
    replicates_R: Mapping[str, Floats]

    def interval(self, model: str, level: float = 0.95) -> Interval | None:
        """Returns the percentile interval of a model's value; None where it has no width."""
        return percentile_interval(self.replicates_R[model], level)

    def difference(self, first: str, second: str, level: float = 0.95) -> tuple[float, Interval | None, float | None]:
        """Returns the difference of two models' values (first minus second), its interval, and a two-sided p-value.

        The p-value is twice the smaller share of replicates on either side of 0, never 0 itself. Two models whose
        values vary over the replicates but never differ have difference 0 and p-value 1. Others whose difference is the
        same in every replicate, such as a perfect and a constant one, have neither interval nor p-value.
        """
        drawn_R = self.replicates_R[first] - self.replicates_R[second]
        n = len(drawn_R)
        difference, interval = self.value[first] - self.value[second], percentile_interval(drawn_R, level)
        if interval is None:
            alike = difference == 0 and not drawn_R.any() and self.interval(first, level) is not None
            return (0.0, (0.0, 0.0), 1.0) if alike else (difference, None, None)
        tail = min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (n + 1))
        return difference, interval, p


def paired_bootstrap(
    y_N: ArrayLike, scores: Mapping[str, Sequence[ArrayLike]], seed: int, replicates: int = 2000
) -> PairedBootstrap:
    """Resamples patients, stratified by class, and each model's seeds.

    Every replicate draws as many patients of each class as there are, the same for all models, and for each model as
    many of its seeds as there are, with replacement. Seeds are a random effect: a model that gains by a lucky seed has
    a wide interval. With one seed only patients are resampled.

    Args:
        y_N: (N,) classes, 0 or 1, or of more classes their numbers.
        scores: for each model its scores (N,) with each seed; of more than two classes those of all (N, Y), whose AUCs
            against the rest are averaged.
        seed: of the draws.
        replicates: R.

    Raises:
        ValueError: a class has no patient.
    """
    y = np.asarray(y_N).astype(np.int64)
    if len(np.unique(y)) < 2:
        raise ValueError("the bootstrap takes patients of both classes")
    rng = np.random.default_rng(seed)
    ranked = {
        model: [_ranked(y, np.asarray(s, dtype=np.float64)) for s in of_seeds] for model, of_seeds in scores.items()
    }
    once_1N = np.ones((1, len(y)))
    auc = {m: float(np.mean([r.auc(once_1N)[0] for r in of_seeds])) for m, of_seeds in ranked.items()}
    drawn: dict[str, list[Floats]] = {model: [] for model in scores}
    for done in range(0, replicates, _REPLICATES_PER_PASS):
        size = min(_REPLICATES_PER_PASS, replicates - done)
        weights_RN = _resample(y, size, rng)
        for model, of_seeds in ranked.items():
            auc_SR = np.stack([r.auc(weights_RN) for r in of_seeds])
            seeds_SR = rng.integers(len(of_seeds), size=auc_SR.shape)
            drawn[model].append(np.take_along_axis(auc_SR, seeds_SR, axis=0).mean(axis=0))
    return PairedBootstrap(auc, {model: np.concatenate(parts) for model, parts in drawn.items()})


class _Ranked:
    """Scores sorted once, so that the AUC under many patient weights is a few sums."""

    def __init__(self, y_N: NDArray[np.bool_], score_N: Floats) -> None:
        self.order_N = np.argsort(score_N, kind="stable")
        self.y_N = y_N[self.order_N]
        self.first_G = np.unique(score_N[self.order_N], return_index=True)[1]

    def auc(self, weights_RN: Floats) -> Floats:
        """Computes the AUC (R,) of patients counted `weights_RN` times (Mann-Whitney, ties counting half)."""
        sorted_RN = weights_RN[:, self.order_N]
        positive_RG = np.add.reduceat(sorted_RN * self.y_N, self.first_G, axis=1)
        negative_RG = np.add.reduceat(sorted_RN * ~self.y_N, self.first_G, axis=1)
        beaten_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
        wins_R: Floats = (positive_RG * beaten_RG).sum(axis=1)
        auc_R: Floats = wins_R / (positive_RG.sum(axis=1) * negative_RG.sum(axis=1))
        return auc_R


class _RankedClasses:
    """The scores of several classes, each sorted once: the mean of their AUCs against the rest."""

    def __init__(self, y_N: NDArray[np.int64], score_NY: Floats) -> None:
        self.classes = [_Ranked(y_N == y, score_NY[:, y]) for y in range(score_NY.shape[1])]

    def auc(self, weights_RN: Floats) -> Floats:
        """Computes the mean AUC (R,) of patients counted `weights_RN` times."""
        auc_R: Floats = np.mean([ranked.auc(weights_RN) for ranked in self.classes], axis=0)
        return auc_R


def _ranked(y_N: NDArray[np.int64], score: Floats) -> _Ranked | _RankedClasses:
    return _Ranked(y_N == 1, score) if score.ndim == 1 else _RankedClasses(y_N, score)


def _resample(y_N: NDArray[np.int64], size: int, rng: np.random.Generator) -> Floats:
    """Draws how often each patient counts in each replicate (R, N)."""
    weights_RN = np.zeros((size, len(y_N)))
    for of_class in (np.flatnonzero(y_N == y) for y in np.unique(y_N)):
        count = len(of_class)
        weights_RN[:, of_class] = rng.multinomial(count, np.full(count, 1 / count), size=size)
    return weights_RN
