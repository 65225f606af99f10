"""How the settings of a search stand against each other, and which of them are hopeless.

A setting is judged by its mean over folds, never a fold by itself. The verdicts follow from the validation AUCs of
the epochs alone, not from which fold was trained when: a setting is compared with those of lower number, and only
once they have come as far. So a run that was interrupted, or that had more room, comes to the same verdicts.
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
from momkd_ray.crossval.fold import fold_is_finished, fold_is_lost
from momkd_ray.crossval.search import Search
from momkd_ray.run.inputs import RunInputs

STOPPED_FILE = "stopped.json"
COMPARE_EVERY = 5  # epochs: train.lr_patience, what a learning rate may go without a gain
MIN_COMPARED = 3  # as many as Ray Tune's median rule asks for


@dataclass(frozen=True)
class Curve:
    """One fold's best validation AUC after each of its epochs."""

    best: tuple[float, ...] = ()
    ended: bool = False  # by itself: it would not go further
    lost: bool = False  # it ended without a result

    def after(self, epochs: int) -> float | None:
        """The best of that many epochs, or of all where the fold ended earlier; None where it is not so far yet.

        A fold without a result counts as nothing from where it broke off.
        """
        if len(self.best) >= epochs:
            return self.best[epochs - 1]
        if self.lost:
            return 0.0
        return self.best[-1] if self.ended else None


@dataclass(frozen=True)
class StopDecision:
    """Why a setting was stopped: its mean over folds after `epoch` epochs, and the median of the earlier settings'."""

    epoch: int
    val_auc: float
    median: float


def stop_decisions(settings: Sequence[Sequence[Curve]], grace_epochs: int) -> dict[int, StopDecision]:
    """The settings that are hopeless, by number, as far as the curves tell.

    Args:
        settings: of each setting by number, the curves of all folds.
        grace_epochs: before the first comparison.
    """
    stopped: dict[int, StopDecision] = {}
    open_from: list[float] = []  # of each setting, the first epoch at which its fate is not known yet
    for number, folds in enumerate(settings):
        for epoch in itertools.count(grace_epochs, COMPARE_EVERY):
            if all(fold.ended and len(fold.best) <= epoch for fold in folds):
                open_from.append(math.inf)
                break
            own, rivals = _mean(folds, epoch), _rivals(settings[:number], stopped, open_from, epoch)
            if own is None or rivals is None:
                open_from.append(epoch)
                break
            if len(rivals) >= MIN_COMPARED and own < median(rivals):
                stopped[number] = StopDecision(epoch, own, median(rivals))
                open_from.append(math.inf)
                break
    return stopped


def _rivals(
    earlier: Sequence[Sequence[Curve]], stopped: Mapping[int, StopDecision], open_from: Sequence[float], epoch: int
) -> list[float] | None:
    """Means after that epoch of the earlier settings that came so far; None while that is not known of all of them."""
    means = []
    for number, folds in enumerate(earlier):
        # how far the folds of a stopped setting went on is a matter of chance
        if number in stopped and stopped[number].epoch < epoch:
            continue
        mean = _mean(folds, epoch)
        if open_from[number] < epoch or mean is None:
            return None
        means.append(mean)
    return means


def _mean(folds: Sequence[Curve], epoch: int) -> float | None:
    values = [fold.after(epoch) for fold in folds]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


class SettingScores:
    """The curves of all settings as the folds' own files have them, and the verdicts, kept with the settings."""

    def __init__(self, study: RunInputs, search: Search) -> None:
        """Read what an earlier run left."""
        self.study, self.search = study, search
        self.curves: dict[tuple[int, int], Curve] = {}
        self.stopped: dict[int, StopDecision] = {}
        for setting in range(len(search.settings)):
            for fold in study.plan.folds:
                self._read(fold, setting)
        self._settle()

    def look(self, fold: int, setting: int) -> dict[int, StopDecision]:
        """Read how far a fold came; the settings that are stopped for it."""
        self._read(fold, setting)
        return self._settle()

    def judged_after(self, epochs: int) -> bool:
        """Whether settings are compared after that many epochs."""
        tuning = self.study.config.tuning
        beyond = epochs - tuning.grace_epochs
        return tuning.stop == "median" and beyond >= 0 and beyond % COMPARE_EVERY == 0

    def scores(self) -> dict[int, float | None]:
        """Of every setting that came to its end: the mean over folds of the best validation AUC, None where one failed.

        That of a stopped setting is what it had by then.
        """
        scores: dict[int, float | None] = {number: verdict.val_auc for number, verdict in self.stopped.items()}
        for number in range(len(self.search.settings)):
            folds = self._folds(number)
            if number not in self.stopped and all(fold.ended for fold in folds):
                lost = any(fold.lost for fold in folds)
                scores[number] = None if lost else fmean(fold.best[-1] for fold in folds)
        return scores

    def _folds(self, setting: int) -> list[Curve]:
        return [self.curves.get((fold, setting), Curve()) for fold in self.study.plan.folds]

    def _read(self, fold: int, setting: int) -> None:
        place = storage.join(self.study.location(fold, setting), "metrics.jsonl")
        lines = storage.read_text(place).splitlines() if storage.exists(place) else []
        best = tuple(itertools.accumulate((json.loads(line)["val_auc"] for line in lines), max))
        lost = fold_is_lost(self.study, fold, setting)
        self.curves[fold, setting] = Curve(best, lost or fold_is_finished(self.study, fold, setting), lost)

    def _settle(self) -> dict[int, StopDecision]:
        if self.study.config.tuning.stop == "none":
            return {}
        settings = [self._folds(number) for number in range(len(self.search.settings))]
        found = stop_decisions(settings, self.study.config.tuning.grace_epochs)
        new = {number: verdict for number, verdict in found.items() if number not in self.stopped}
        for number, verdict in new.items():
            storage.write_json(stop_marker(self.study, number), asdict(verdict))
        self.stopped |= new
        return new


def stop_marker(study: RunInputs, setting: int) -> str:
    """The file that stops a setting in all its folds."""
    return storage.join(study.setting_location(setting), STOPPED_FILE)


def read_stopped(study: RunInputs, settings: int) -> dict[int, dict[str, Any]]:
    """The verdicts on the stopped ones of that many settings, by number."""
    places = {number: stop_marker(study, number) for number in range(settings)}
    return {number: storage.read_json(place) for number, place in places.items() if storage.exists(place)}
