"""The layout of a run directory: the only module that knows the names of its files and folders.

Without a search, the folds' folders lie in the run directory itself; with one, in the folder of each setting, and the
folds with the chosen settings are copied to where they would be without a search.
"""

from __future__ import annotations

from dataclasses import dataclass

from momkd_ray import storage
from momkd_ray.input_faults import REJECTED

TUNE = "tune"  # the folder of Ray Tune's own files and TensorBoard's events

EXCLUDED = "excluded.csv"
"""The file of everybody and everything that was left out, with the reason."""


@dataclass(frozen=True)
class FoldDirectory:
    """The files of one fold, trained with one setting.

    Attributes:
        location: its folder, local or `s3://`.
    """

    location: str

    def _path(self, *names: str) -> str:
        return storage.join(self.location, *names)

    @property
    def genes(self) -> str:
        """The selected genes and their scaling."""
        return self._path("genes.csv")

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints; empty once the fold is finished."""
        return self._path("checkpoints")

    @property
    def ray_train(self) -> str:
        """The folder of Ray Train's own files."""
        return self._path("train")

    @property
    def metrics(self) -> str:
        """The metrics of each epoch, a JSON line each."""
        return self._path("metrics.jsonl")

    def steps(self, epoch: int) -> str:
        """The losses of every step of an epoch."""
        return self._path("steps", f"epoch={epoch:04d}.parquet")

    def slides(self, role: str) -> str:
        """The predictions of the slides of the `val` or `test` patients."""
        return self._path(f"{role}_slides.parquet")

    @property
    def test_predictions(self) -> str:
        """The predictions of the test patients."""
        return self._path("test_predictions.parquet")

    @property
    def model(self) -> str:
        """The folder of the model bundle."""
        return self._path("model")

    @property
    def refit(self) -> FoldDirectory:
        """The files of the training on training and validation patients together."""
        return FoldDirectory(self._path("refit"))

    @property
    def cost(self) -> str:
        """The time and memory that training the fold took."""
        return self._path("cost.json")

    @property
    def result(self) -> str:
        """The fold's result, which is written last."""
        return self._path("result.json")

    @property
    def diverged(self) -> str:
        """The reason why the fold cannot be trained with this setting of a search."""
        return self._path("lost.json")

    def is_finished(self) -> bool:
        """Returns whether the fold was trained and tested."""
        return storage.exists(self.result)

    def is_diverged(self) -> bool:
        """Returns whether the fold cannot be trained with this setting of a search."""
        return storage.exists(self.diverged)


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run.

    Attributes:
        location: the run directory (`run.dir`), local or `s3://`.

    >>> RunDirectory("runs/pr").fold(0).result
    'runs/pr/fold=0/result.json'
    >>> RunDirectory("runs/pr").fold(0, setting=3).model
    'runs/pr/setting=3/fold=0/model'
    """

    location: str

    def _path(self, *names: str) -> str:
        return storage.join(self.location, *names)

    def _setting(self, setting: int | None) -> str:
        return self.location if setting is None else self._path(f"setting={setting}")

    def fold(self, fold: int, setting: int | None = None) -> FoldDirectory:
        """The files of a fold; `setting` is the number of a search's setting, None without a search."""
        return FoldDirectory(storage.join(self._setting(setting), f"fold={fold}"))

    def all_folds(self) -> list[FoldDirectory]:
        """The folds that have a folder, also those of a search's settings and of a comparison's models."""
        parents = [name for name in storage.list_names(self.location) if name.startswith(("setting=", "model="))]
        return [
            FoldDirectory(storage.join(parent, name))
            for parent in [self.location, *(self._path(name) for name in parents)]
            for name in storage.list_names(parent)
            if name.startswith("fold=")
        ]

    def another(self) -> str:
        """A name for another run directory, for messages."""
        return f"{self.location.rstrip('/')}-2"

    def stop_decision(self, setting: int | None) -> str:
        """The file that stops a setting in all its folds, with the reason."""
        return storage.join(self._setting(setting), "stopped.json")

    @property
    def configuration(self) -> str:
        """The resolved configuration."""
        return self._path("run.yaml")

    @property
    def provenance(self) -> str:
        """The run's fingerprint, and the versions of the software."""
        return self._path("provenance.json")

    @property
    def lease(self) -> str:
        """The processes that work in the run directory."""
        return self._path("lease.json")

    @property
    def folds(self) -> str:
        """The folds of the patients."""
        return self._path("folds.csv")

    @property
    def excluded(self) -> str:
        """The patients, slides and omics that the configuration leaves out, with the reason."""
        return self._path(EXCLUDED)

    @property
    def rejected(self) -> str:
        """The bad inputs that `--on-error skip` left out, with the reason."""
        return self._path(REJECTED)

    @property
    def audit(self) -> str:
        """The folder of the audit."""
        return self._path("audit")

    @property
    def settings(self) -> str:
        """The settings of a search."""
        return self._path("settings.json")

    @property
    def study(self) -> str:
        """The finished search as the journal of an Optuna study."""
        return self._path("optuna-study.log")

    @property
    def predictions(self) -> str:
        """The pooled predictions of the test patients."""
        return self._path("predictions.parquet")

    @property
    def metrics(self) -> str:
        """The metrics of the cross-validation."""
        return self._path("metrics.json")

    @property
    def leaderboard(self) -> str:
        """The leaderboard of a comparison."""
        return self._path("leaderboard.json")

    @property
    def report(self) -> str:
        """The report."""
        return self._path("report.html")

    @property
    def figures(self) -> str:
        """The folder of the report's figures, each as PNG, SVG and CSV."""
        return self._path("figures")

    @property
    def wrong_calls(self) -> str:
        """The test patients who are called wrongly, the most confident first."""
        return self._path("wrong_calls.csv")
