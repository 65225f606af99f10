"""Median stopping: ends a search's setting in all folds if it falls behind earlier settings.

A setting is judged by its mean over folds, never by a single fold. Decisions follow from the validation figures of the
epochs alone, not from the order of training: a setting is compared only with settings of lower numbers, and only when
they have reached the same epoch. So an interrupted run, or one on a larger cluster, takes the same decisions.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from momkd_ray import storage
from momkd_ray.crossval.search import Search
from momkd_ray.run.inputs import RunInputs
from momkd_ray.train.validation import AUC, criterion_of

COMPARE_EVERY = 5  # epochs: the default of train.lr_patience
MIN_COMPARED = 3  # as many as Ray Tune's median rule asks for


@dataclass(frozen=True)
class Curve:
    """The validation metric (`criterion_of`) of one fold after each epoch.

    Attributes:
        best: the best one after each epoch.
        ended: whether the fold ended by itself, and has no more epochs to come.
        diverged: whether it ended without a result.
        worst: the lowest value of the figure, which a diverged fold counts as: it is never better than one that works.
    """

    best: tuple[float, ...] = ()
    ended: bool = False
    diverged: bool = False
    worst: float = AUC.worst

    def after(self, epochs: int) -> float | None:
        """Returns the best value of the metric in so many epochs.

        It is the last one if the fold ended earlier, the worst if it diverged earlier, and None if it has not come that
        far.
        """
        if len(self.best) >= epochs:
            return self.best[epochs - 1]
        if self.diverged:
            return self.worst
        return self.best[-1] if self.ended else None


@dataclass(frozen=True)
class StopDecision:
    """The reason why a setting was stopped.

    Attributes:
        epoch: the number of epochs after which it was compared.
        score: its mean over folds of the best validation figure (`criterion_of`).
        median: the median of the earlier settings' means.
    """

    epoch: int
    score: float
    median: float


def stop_decisions(settings: Sequence[Sequence[Curve]], grace_epochs: int) -> dict[int, StopDecision]:
    """Decides which settings to stop, as far as the curves tell.

    Args:
        settings: for each setting by number, the curves of all folds.
        grace_epochs: number of epochs before the first comparison.

    Returns:
        The decisions by number of the setting.
    """
    stopped: dict[int, StopDecision] = {}
    undecided_from: list[float] = []  # of each setting, the first epoch at which it may still be stopped
    for number, folds in enumerate(settings):
        for epoch in itertools.count(grace_epochs, COMPARE_EVERY):
            # one that ends at this very epoch is compared, too: until it is over nobody knows that it ends here
            if all(fold.ended and len(fold.best) < epoch for fold in folds):
                undecided_from.append(math.inf)
                break
            own, others = _mean(folds, epoch), _earlier_means(settings[:number], stopped, undecided_from, epoch)
            if own is None or others is None:
                undecided_from.append(epoch)
                break
            if len(others) >= MIN_COMPARED and own < median(others):
                stopped[number] = StopDecision(epoch, own, median(others))
                undecided_from.append(math.inf)
                break
    return stopped


def _earlier_means(
    earlier: Sequence[Sequence[Curve]],
    stopped: Mapping[int, StopDecision],
    undecided_from: Sequence[float],
    epoch: int,
) -> list[float] | None:
    """Returns the means at an epoch of the earlier settings that reach it; None if one of them is not there yet."""
    means = []
    for number, folds in enumerate(earlier):
        # the number of epochs that a stopped setting's folds still trained depends on timing
        if number in stopped and stopped[number].epoch < epoch:
            continue
        mean = _mean(folds, epoch)
        if undecided_from[number] < epoch or mean is None:
            return None
        means.append(mean)
    return means


def _mean(folds: Sequence[Curve], epoch: int) -> float | None:
    values = [fold.after(epoch) for fold in folds]
    present = [value for value in values if value is not None]
    return fmean(present) if len(present) == len(values) else None


class SettingScores:
    """The curves of all settings, read from the folds' files, and the stop decisions, kept in the settings' folders.

    Args:
        inputs: cohort, folds and bags.
        search: the settings.
    """

    def __init__(self, inputs: RunInputs, search: Search) -> None:
        self.inputs, self.search = inputs, search
        self.curves: dict[tuple[int, int], Curve] = {}
        self.stopped: dict[int, StopDecision] = {}
        for setting in range(len(search.settings)):
            for fold in inputs.plan.folds:
                self._read(fold, setting)
        self._decide()

    def update(self, fold: int, setting: int) -> None:
        """Reads the curve of a fold again, and records the decisions that follow."""
        self._read(fold, setting)
        self._decide()

    def is_done(self, fold: int, setting: int) -> bool:
        """Returns whether a fold needs no more training with a setting: it is finished, diverged or stopped."""
        directory = self.inputs.fold_directory(fold, setting)
        return setting in self.stopped or directory.is_finished() or directory.is_diverged()

    def compares_after(self, epochs: int) -> bool:
        """Returns whether settings are compared after this number of epochs."""
        tuning = self.inputs.config.tuning
        beyond = epochs - tuning.grace_epochs
        return tuning.stop == "median" and beyond >= 0 and beyond % COMPARE_EVERY == 0

    def scores(self) -> dict[int, float | None]:
        """Returns the score of each setting that ended: the mean over folds of the best validation metric.

        It is None if the setting diverged in a fold. A stopped setting has its mean when it was stopped.
        """
        scores: dict[int, float | None] = {number: decision.score for number, decision in self.stopped.items()}
        for number in range(len(self.search.settings)):
            folds = self._folds(number)
            if number not in self.stopped and all(fold.ended for fold in folds):
                diverged = any(fold.diverged for fold in folds)
                scores[number] = None if diverged else fmean(fold.best[-1] for fold in folds)
        return scores

    def _folds(self, setting: int) -> list[Curve]:
        return [self.curves.get((fold, setting), Curve()) for fold in self.inputs.plan.folds]

    def _read(self, fold: int, setting: int) -> None:
        directory = self.inputs.fold_directory(fold, setting)
        lines = storage.read_text(directory.metrics).splitlines() if storage.exists(directory.metrics) else []
        criterion = criterion_of(self.inputs.config)
        best = tuple(itertools.accumulate((json.loads(line)[criterion.metric] for line in lines), max))
        diverged = directory.is_diverged()
        self.curves[fold, setting] = Curve(best, diverged or directory.is_finished(), diverged, criterion.worst)

    def _decide(self) -> None:
        if self.inputs.config.tuning.stop == "none":
            return
        settings = [self._folds(number) for number in range(len(self.search.settings))]
        for number, decision in stop_decisions(settings, self.inputs.config.tuning.grace_epochs).items():
            if number not in self.stopped:
                storage.write_json(stop_file(self.inputs, number), asdict(decision))
                self.stopped[number] = decision


def stop_file(inputs: RunInputs, setting: int) -> str:
    """Returns the file that stops a setting in all its folds."""
    return inputs.directory.stop_decision(inputs.setting_number(setting))


def read_stop_decisions(inputs: RunInputs, settings: int) -> dict[int, dict[str, Any]]:
    """Reads the stop decisions of the first so many settings, by number of the setting."""
    files = {number: stop_file(inputs, number) for number in range(settings)}
    return {number: storage.read_json(file) for number, file in files.items() if storage.exists(file)}
