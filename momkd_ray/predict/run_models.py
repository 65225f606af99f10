"""The model bundles that the user names: each by itself, by the folder of its fold, or all of a run directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.model.bundle import is_bundle
from momkd_ray.run.finished import read_finished
from momkd_ray.run.layout import FoldDirectory, RunDirectory


def named_bundles(locations: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Returns the locations of model bundles, each once, with those of its folds for a run directory.

    Args:
        locations: of bundles, folders of folds, or run directories.
        tell: receives a sentence for each run directory.

    Raises:
        InputError: a run is not finished.
    """
    bundles: list[str] = []
    for location in locations:
        own = FoldDirectory(location).model
        if is_bundle(location):
            bundles.append(location)
        elif is_bundle(own):
            bundles.append(own)
        elif storage.exists(RunDirectory(location).configuration):
            of_run = _models_of_run(RunDirectory(location))
            models = "model of its fold" if len(of_run) == 1 else f"models of its {len(of_run)} folds"
            tell(f"{location} is a run directory: the {models} predict together")
            bundles += of_run
        else:
            bundles.append(location)
    return list(dict.fromkeys(bundles))


def _models_of_run(run: RunDirectory) -> list[str]:
    if storage.exists(run.leaderboard):
        raise InputError(
            f"{run.location} is a comparison of several models: name the bundles of one, the folders named model in it"
        )
    try:
        metrics = read_finished(run, run.metrics, json.loads)
        folds = sorted(int(one["fold"]) for one in metrics["folds"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run.metrics} is damaged: run momkd-ray crossval again") from error
    except InputError as error:
        if finished := [own.model for own in run.all_folds() if is_bundle(own.model)]:
            raise InputError(f"{error}, or name the models of finished folds, such as {finished[0]}") from error
        raise
    return [run.fold(fold).model for fold in folds]
