"""Reports the progress of a cross-validation: epochs, folds, and a line for every setting of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune

from momkd_ray.crossval.median_stopping import SettingScores
from momkd_ray.crossval.search import Search, Settings
from momkd_ray.crossval.time_left import TimeLeft
from momkd_ray.progress import ProgressReporter
from momkd_ray.train.validation import criterion_of


class ProgressCallback(tune.Callback):  # type: ignore[misc]  # Ray carries no types
    """Counts epochs and finished folds for the user.

    Args:
        progress: shows them.
        epochs: the largest number of epochs.
        folds: number of folds to train of each model (`Search.model`), over all settings.
        search: the settings.
        scores: their scores and stop decisions.
    """

    def __init__(
        self,
        progress: ProgressReporter,
        epochs: int,
        folds: Mapping[str, int],
        search: Search,
        scores: SettingScores,
    ) -> None:
        self.progress, self.epochs = progress, epochs
        self.search, self.scores = search, scores
        self.criterion = criterion_of(scores.inputs.config)
        self.time_left = TimeLeft(folds)
        self.trained: dict[str, int] = {}  # epochs so far, by trial
        self.ended: set[str] = set()
        self.reported = set(scores.scores())

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Times the fold."""
        self.time_left.start(trial.trial_id, self.search.model(trial.config["setting"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """Shows a validated epoch or a finished fold, and passes on the fold's notes."""
        fold, setting = trial.config["fold"], trial.config["setting"]
        name = f"fold {fold}" + (f", {self.search.name(setting)}" if self.search.total > 1 else "")
        for note in result.get("notes") or ():
            self.progress.info(note)
        epochs = int((trial.config.get("values") or {}).get("train.epochs", self.epochs))
        if result.get("finished"):
            self._show_finished(name, result, epochs)
        elif result.get("ended_early"):
            trained = self.trained.get(trial.trial_id, 0)
            self.progress.end(name, f"ended after {trained} of {epochs} epochs: its setting is out")
        elif self.criterion.metric in result:
            note = f"validation {self.criterion.name} {result[self.criterion.metric]:.3f}"
            if trial.trial_id not in self.trained and result["epoch"]:
                self.time_left.resumed(trial.trial_id)
            self.trained[trial.trial_id] = trained = result["epoch"] + 1
            # how long the epochs take says too little: a refit may follow them, and a fold may stop early
            self.progress.update(name, min(trained, epochs - 1), epochs, note, left_s=None)
            if self.ended:
                self._show_count()
            return
        else:
            return
        self.ended.add(trial.trial_id)
        self.time_left.end(trial.trial_id)
        self._show_count()

    def _show_finished(self, name: str, result: Any, epochs: int) -> None:
        note = f"validation {self.criterion.name} {result['kept']:.3f} of the kept epoch"
        trained = result.get("epochs_trained") or epochs
        if trained < epochs:
            self.progress.end(name, f"stopped after {trained} of {epochs} epochs, {note}")
        else:
            self.progress.update(name, epochs, epochs, note)

    def _show_count(self) -> None:
        name = "folds" if self.search.total == 1 else f"folds of all {'models' if self.search.names else 'settings'}"
        self.progress.update(name, len(self.ended), self.time_left.total, left_s=self.time_left.seconds())

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Reports the settings that ended with this fold."""
        if self.search.total == 1:
            return
        for number, score in sorted(self.scores.scores().items()):
            if number not in self.reported:
                self.reported.add(number)
                setting = "" if self.search.names else f" ({format_setting(self.search.settings[number])})"
                self.progress.info(f"{self.search.name(number)}{setting}: {self._outcome(number, score)}")

    def _outcome(self, number: int, score: float | None) -> str:
        if score is None:
            return "it diverged in a fold, and is left out there"
        if decision := self.scores.stopped.get(number):
            return (
                f"stopped after {decision.epoch} epochs, because its mean validation {self.criterion.name} over folds "
                f"{decision.score:.3f} is below {decision.median:.3f}, the median of earlier settings"
            )
        return f"mean validation {self.criterion.name} {score:.3f} over folds"

    def on_trial_recover(self, **info: Any) -> None:
        """Reports that a failed fold is retried."""
        self.progress.info(f"{info.get('trial')} failed and is retried from its last checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for its own restore, which is not used; a console cannot be pickled
        return {}


def format_setting(setting: Settings) -> str:
    """Returns a setting as text, such as `train.lr = 0.001, genes.n = 64`."""
    return ", ".join(f"{key} = {value}" for key, value in setting.items())
