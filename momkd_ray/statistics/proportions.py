"""Intervals of proportions, of likelihood ratios, and of predictive values at another prevalence.

Sources: Wilson 1927, JASA 22:209; Simel, Samsa, Matchar 1991, J Clin Epidemiol 44:763 (likelihood ratios); Mercaldo,
Lau, Zhou 2007, Stat Med 26:2170 (predictive values). A cell that is 0 makes a logarithm infinite: then the ratios add
half a patient to every cell, and the predictive values z²/2 patients to each of a class's cells, as in these sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; None where it is not defined, as a share of no patients."""

    value: float | None
    interval: Interval | None

    @property
    def text(self) -> str:
        """The value with its interval, `0.812 (0.744 to 0.866)`."""
        if self.value is None:
            return "not defined"
        shown = f"{self.value:.3f}"
        return shown if self.interval is None else f"{shown} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


@dataclass(frozen=True)
class Counts:
    """Patients by true and called class: true positives, false positives, false negatives, true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int


def proportion(successes: int, of: int, level: float = 0.95) -> Estimate:
    """Estimates a proportion with Wilson's interval.

    >>> proportion(81, 263).text
    '0.308 (0.255 to 0.366)'
    """
    if of == 0:
        return Estimate(None, None)
    low, high = proportion_confint(successes, of, alpha=1 - level, method="wilson")
    return Estimate(successes / of, (max(0.0, float(low)), min(1.0, float(high))))


def likelihood_ratios(counts: Counts, level: float = 0.95) -> tuple[Estimate, Estimate]:
    """Estimates the positive and the negative likelihood ratio.

    Returns:
        sensitivity / (1 - specificity) and (1 - sensitivity) / specificity; not defined without patients of a class.
    """
    cells = (counts.tp, counts.fn, counts.fp, counts.tn)
    if counts.tp + counts.fn == 0 or counts.fp + counts.tn == 0:
        return Estimate(None, None), Estimate(None, None)
    tp, fn, fp, tn = (cell + 0.5 for cell in cells) if 0 in cells else cells
    z = float(norm.ppf((1 + level) / 2))

    def ratio(of_positives: float, of_negatives: float) -> Estimate:
        log = math.log(of_positives / (tp + fn)) - math.log(of_negatives / (fp + tn))
        sd = math.sqrt(1 / of_positives - 1 / (tp + fn) + 1 / of_negatives - 1 / (fp + tn))
        return Estimate(math.exp(log), (math.exp(log - z * sd), math.exp(log + z * sd)))

    return ratio(tp, fp), ratio(fn, tn)


def predictive_values(counts: Counts, prevalence: float, level: float = 0.95) -> tuple[Estimate, Estimate]:
    """Estimates the predictive values of a positive and of a negative call where the prevalence is another.

    Sensitivity and specificity are taken to be the same there.

    Args:
        counts: of this cohort.
        prevalence: share of positive patients where the model would be used, between 0 and 1.
        level: of the intervals.

    Raises:
        ValueError: the prevalence is not between 0 and 1.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence lies between 0 and 1, but it is {prevalence}")
    positives, negatives = float(counts.tp + counts.fn), float(counts.fp + counts.tn)
    if not positives or not negatives:
        return Estimate(None, None), Estimate(None, None)
    z = float(norm.ppf((1 + level) / 2))
    hit, spared = float(counts.tp), float(counts.tn)
    if 0 in (counts.tp, counts.fn, counts.fp, counts.tn):
        hit, spared, positives, negatives = hit + z * z / 2, spared + z * z / 2, positives + z * z, negatives + z * z
    se, sp, odds = hit / positives, spared / negatives, prevalence / (1 - prevalence)

    def estimate(logit: float, sd: float) -> Estimate:
        low, middle, high = (1 / (1 + math.exp(-(logit + k * sd))) for k in (-z, 0, z))
        return Estimate(middle, (low, high))

    ppv = estimate(math.log(se / (1 - sp) * odds), math.sqrt((1 - se) / (se * positives) + sp / ((1 - sp) * negatives)))
    npv = estimate(math.log(sp / (1 - se) / odds), math.sqrt(se / ((1 - se) * positives) + (1 - sp) / (sp * negatives)))
    return ppv, npv
