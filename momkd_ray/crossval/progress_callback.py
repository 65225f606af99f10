"""What a cross-validation tells while it runs: epochs, folds, and a line for every setting of a search."""

from __future__ import annotations

from typing import Any

from ray import tune

from momkd_ray.crossval.median_stopping import SettingScores
from momkd_ray.crossval.search import Search, Settings
from momkd_ray.progress import ProgressReporter


class ProgressCallback(tune.Callback):  # type: ignore[misc]  # Ray carries no types
    """Counts epochs and finished folds for the user."""

    def __init__(
        self, progress: ProgressReporter, epochs: int, total: int, search: Search, standing: SettingScores
    ) -> None:
        self.progress, self.epochs, self.total = progress, epochs, total
        self.search, self.standing = search, standing
        self.done: set[str] = set()
        self.told = set(standing.scores())

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """An epoch was validated, or a fold is finished."""
        fold, setting = trial.config["fold"], trial.config["setting"]
        name = f"fold {fold}" + (f", setting {setting}" if self.search.total > 1 else "")
        for note in result.get("notes") or ():
            self.progress.info(note)
        if result.get("finished"):
            note = f"best validation AUC {result['kept_val_auc']:.3f}"
            self.progress.update(name, self.epochs, self.epochs, note)
        elif result.get("ended_early"):
            self.progress.update(name, self.epochs, self.epochs, "ended early")
        elif "val_auc" in result:
            note = f"validation AUC {result['val_auc']:.3f}"
            self.progress.update(name, min(result["epoch"] + 1, self.epochs - 1), self.epochs, note)
            return
        else:
            return
        self.done.add(trial.trial_id)
        self.progress.update("folds of all settings" if self.search.total > 1 else "folds", len(self.done), self.total)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A setting may have come to its end with this fold."""
        if self.search.total == 1:
            return
        for number, score in sorted(self.standing.scores().items()):
            if number not in self.told:
                self.told.add(number)
                self.progress.info(
                    f"setting {number} ({described(self.search.settings[number])}): {self._end(number, score)}"
                )

    def _end(self, number: int, score: float | None) -> str:
        if score is None:
            return "it diverged in a fold, and is left out there"
        if verdict := self.standing.stopped.get(number):
            return (
                f"stopped after {verdict.epoch} epochs, its mean validation AUC {verdict.val_auc:.3f} over folds "
                f"being below {verdict.median:.3f}, the median of earlier settings"
            )
        return f"mean validation AUC {score:.3f} over folds"

    def on_trial_recover(self, **info: Any) -> None:
        """A fold is tried again."""
        self.progress.info(f"{info.get('trial')} failed and is tried again from its last checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we do without; a console cannot be pickled
        return {}


def described(setting: Settings) -> str:
    """A setting in words."""
    return ", ".join(f"{key} = {value}" for key, value in setting.items())
