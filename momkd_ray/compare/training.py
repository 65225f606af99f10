"""What a comparison trains, and of a search which setting each fold takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from momkd_ray import storage
from momkd_ray.compare.entries import Entry, folder_of
from momkd_ray.crossval.cross_validate import train_folds
from momkd_ray.crossval.search import Search, Settings
from momkd_ray.progress import ProgressReporter
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import FoldDirectory, RunDirectory
from momkd_ray.train.validation import criterion_of


class Unit(NamedTuple):
    """What is trained in every fold: its name for people, and its values by dotted key."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Choice:
    """The setting that a fold takes of a search.

    Attributes:
        trial: its number among the tried ones; None if all diverged.
        scores: of each tried setting the metric on the fold's own inner validation patients (`criterion_of`); None if
            it diverged.
        seconds: that the training of all tried settings took.
    """

    trial: int | None
    scores: tuple[float | None, ...]
    seconds: float


@dataclass(frozen=True)
class TrainedEntry:
    """An entry with the folder of each fold.

    Attributes:
        entry: what was trained.
        folders: by fold; None for a fold in which all tried settings diverged.
        choices: by fold; empty without a search.
    """

    entry: Entry
    folders: Mapping[int, FoldDirectory | None]
    choices: Mapping[int, Choice]

    @property
    def is_diverged(self) -> bool:
        """Whether a fold diverged."""
        return any(folder is None or folder.is_diverged() for folder in self.folders.values())


def train_entries(
    inputs: RunInputs, entries: Sequence[Entry], progress: ProgressReporter, *, own_cluster: bool
) -> list[TrainedEntry]:
    """Trains every unfinished fold of every entry.

    The settings of a search are tried without a refit; the setting that a fold takes is then trained as every other
    model, with one if `train.refit` is set.

    Raises:
        InputError, RunError, StoppedError: as `train_folds`.
    """
    folds = list(inputs.plan.folds)
    units: dict[str, Unit] = {}  # by folder; a search may share a unit with what is trained in the end
    for entry in entries:
        units |= dict(_tried(inputs, entry)) if entry.trials else {entry.folder: Unit(_called(entry), entry.settings)}
    _train(inputs, units, None, progress, own_cluster=own_cluster)
    choices = {entry.folder: {fold: choose(inputs, entry, fold) for fold in folds} for entry in entries if entry.trials}
    final: set[tuple[int, str]] = set()
    for entry in entries:
        for fold, choice in choices.get(entry.folder, {}).items():
            if choice.trial is not None:
                folder, settings = _final(entry, choice.trial)
                units[folder] = Unit(_called(entry), settings)
                final.add((fold, folder))
    if final:
        progress.info("Every fold has chosen its settings on its inner validation patients")
        _train(inputs, units, final, progress, own_cluster=own_cluster)
    return [_trained(inputs, entry, choices.get(entry.folder, {})) for entry in entries]


def _train(
    inputs: RunInputs,
    units: Mapping[str, Unit],
    wanted: set[tuple[int, str]] | None,
    progress: ProgressReporter,
    *,
    own_cluster: bool,
) -> None:
    inputs = replace(inputs, setting_names=tuple(units))
    search = Search(inputs.config, [unit.settings for unit in units.values()], [unit.name for unit in units.values()])
    number = {folder: i for i, folder in enumerate(units)}
    pairs = None if wanted is None else {(fold, number[folder]) for fold, folder in wanted}
    train_folds(inputs, inputs.plan.folds, progress, own_cluster=own_cluster, search=search, pairs=pairs)


def _called(entry: Entry) -> str:
    return f"{entry.label}, seed {entry.seed}"


def _tried(inputs: RunInputs, entry: Entry) -> list[tuple[str, Unit]]:
    """Returns folder, name and values of every setting that the entry's search tries."""
    refits = inputs.config.with_settings(entry.settings).train.refit
    tried: list[tuple[str, Unit]] = []
    for number, trial in enumerate(entry.trials, start=1):
        settings: dict[str, Any] = {**entry.settings, **trial} | ({"train.refit": False} if refits else {})
        name = f"{_called(entry)}, setting {number} of {len(entry.trials)}"
        tried.append((folder_of(entry.name, settings), Unit(name, settings)))
    return tried


def _final(entry: Entry, trial: int) -> tuple[str, Settings]:
    """Returns folder and values of a chosen setting."""
    settings = {**entry.settings, **entry.trials[trial]}
    return folder_of(entry.name, settings), settings


def choose(inputs: RunInputs, entry: Entry, fold: int) -> Choice:
    """Chooses a fold's setting by the metric of its own inner validation patients; of equal ones the first."""
    scores: list[float | None] = []
    seconds, key = 0.0, criterion_of(inputs.config).key
    for name, _ in _tried(inputs, entry):
        folder = RunDirectory(storage.join(inputs.config.run.dir, name)).fold(fold)
        finished = folder.is_finished()
        scores.append(storage.read_json(folder.result)["val_scores"][key] if finished else None)
        seconds += storage.read_json(folder.cost)["training_seconds"] if finished else 0.0
    known = [trial for trial, score in enumerate(scores) if score is not None]
    best = max(known, key=lambda trial: (scores[trial], -trial), default=None)
    return Choice(best, tuple(scores), seconds)


def _trained(inputs: RunInputs, entry: Entry, choices: Mapping[int, Choice]) -> TrainedEntry:
    folders: dict[int, FoldDirectory | None] = {}
    for fold in inputs.plan.folds:
        name: str | None = entry.folder
        if fold in choices:
            trial = choices[fold].trial
            name = None if trial is None else _final(entry, trial)[0]
        folders[fold] = None if name is None else RunDirectory(storage.join(inputs.config.run.dir, name)).fold(fold)
    return TrainedEntry(entry, folders, choices)
