"""The metrics of a number on the leaderboard: Spearman's correlation, R2 and mean absolute error of each model.

Shapes: N patients, S seeds of a model, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from momkd_ray.crossval.score_metrics import SCORE_METRICS, weighted_score_metrics
from momkd_ray.statistics.holm import holm_of_known
from momkd_ray.statistics.paired_bootstrap import PairedBootstrap

Floats = NDArray[np.float64]
_REPLICATES, _PER_PASS = 2000, 100


@dataclass(frozen=True)
class ScoredModel:
    """The scores of a model.

    Attributes:
        score_SN: pooled score of each patient with each seed.
        folds: of each metric its value of each seed (rows) and fold (columns).
    """

    score_SN: Floats
    folds: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class ScoreSummary:
    """One metric of a model.

    Attributes:
        folds: its value of each seed (rows) and fold (columns).
        mean, sd: of the test patients, over folds and seeds; no sd of one fold with one seed.
        pooled, interval: mean over seeds of the metric of all folds' patients together, with its bootstrap interval
            over patients and seeds.
        difference, difference_interval, p, p_holm: to the reference, by the paired bootstrap, corrected by Holm over
            the models; None for the reference itself. An interval without width is None, and so are then the p-values.
    """

    folds: Sequence[Sequence[float]]
    mean: float
    sd: float | None
    pooled: float
    interval: tuple[float, float] | None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None


def score_summaries(
    true_N: Floats, models: Mapping[str, ScoredModel], reference: str, seed: int
) -> dict[str, dict[str, ScoreSummary]]:
    """Computes every metric of every model, by label and metric.

    Args:
        true_N: the patients' numbers.
        models: by label, of the same patients in the same order.
        reference: label of the model that the others are compared with.
        seed: of the bootstrap.
    """
    bootstraps = paired_score_bootstrap(true_N, {label: model.score_SN for label, model in models.items()}, seed)
    found: dict[str, dict[str, ScoreSummary]] = {label: {} for label in models}
    for name in SCORE_METRICS:
        bootstrap, summaries = bootstraps[name], {}
        for label, model in models.items():
            values = np.asarray(model.folds[name], dtype=float)
            own = ScoreSummary(
                folds=model.folds[name],
                mean=float(values.mean()),
                sd=float(values.std(ddof=1)) if values.size > 1 else None,
                pooled=bootstrap.value[label],
                interval=bootstrap.interval(label),
            )
            if label != reference:
                difference, interval, p = bootstrap.difference(label, reference)
                own = replace(own, difference=difference, difference_interval=interval, p=p)
            summaries[label] = own
        others = [label for label in models if label != reference]
        corrected = holm_of_known([summaries[label].p for label in others])
        for label, p_holm in zip(others, corrected, strict=True):
            summaries[label] = replace(summaries[label], p_holm=p_holm)
        for label, summary in summaries.items():
            found[label][name] = summary
    return found


def paired_score_bootstrap(true_N: Floats, scores: Mapping[str, Floats], seed: int) -> dict[str, PairedBootstrap]:
    """Resamples patients, the same for all models, and each model's seeds; returns the replicates of each metric.

    Patients are drawn with replacement whatever their class. Seeds are a random effect, as in `paired_bootstrap`.

    Args:
        true_N: the patients' numbers.
        scores: for each model its scores (S, N).
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    count = len(true_N)
    drawn: dict[str, dict[str, list[Floats]]] = {name: {label: [] for label in scores} for name in SCORE_METRICS}
    for done in range(0, _REPLICATES, _PER_PASS):
        size = min(_PER_PASS, _REPLICATES - done)
        weights_RN = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        for label, score_SN in scores.items():
            of_seeds = [weighted_score_metrics(true_N, score_N, weights_RN) for score_N in score_SN]
            seeds_SR = rng.integers(len(score_SN), size=(len(score_SN), size))
            for name in SCORE_METRICS:
                value_SR = np.stack([own[name] for own in of_seeds])
                drawn[name][label].append(np.take_along_axis(value_SR, seeds_SR, axis=0).mean(axis=0))
    once_1N = np.ones((1, count))
    values: dict[str, dict[str, float]] = {name: {} for name in SCORE_METRICS}
    for label, score_SN in scores.items():
        measured = [weighted_score_metrics(true_N, score_N, once_1N) for score_N in score_SN]
        for name in SCORE_METRICS:
            values[name][label] = float(np.mean([own[name][0] for own in measured]))
    return {
        name: PairedBootstrap(values[name], {label: np.concatenate(parts) for label, parts in drawn[name].items()})
        for name in SCORE_METRICS
    }
