"""Folds with settings as Ray Tune trials: who comes next, how many side by side, on what resources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from momkd_ray import storage
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval.fold import fold_is_finished, fold_is_lost, run_fold
from momkd_ray.crossval.median_stopping import SettingScores, stop_marker
from momkd_ray.crossval.search import Search
from momkd_ray.errors import input_error_within, run_error_within
from momkd_ray.ray_runtime import environment
from momkd_ray.ray_runtime.cluster import concurrent_folds
from momkd_ray.run.inputs import RunInputs

Unit = tuple[int, int]  # fold, setting
_ROOM_ASKED_EVERY_S = 5.0


def units_to_train(study: RunInputs, search: Search, standing: SettingScores, folds: Sequence[int]) -> Iterator[Unit]:
    """All folds of a setting before those of the next, without those that are done.

    A setting is drawn when its first fold is asked for, from what is known by then.
    """
    for setting in range(search.total):
        if setting == len(search.settings):
            search.draw(standing.scores())
        for fold in folds:
            if setting in standing.stopped or fold_is_lost(study, fold, setting):
                continue
            if not fold_is_finished(study, fold, setting):
                yield fold, setting


def build_tuner(
    study: RunInputs,
    search: Search,
    standing: SettingScores,
    units: Iterator[Unit],
    *,
    threads: Mapping[int, float],
    room: Callable[[], int],
    callbacks: Sequence[tune.Callback],
) -> Any:
    """The Tuner that trains these units."""
    environment.override(environment.TUNE)
    config = study.config
    file_system, path = storage.pyarrow_filesystem(config.run.dir)

    return tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, study=study), trial_resources(config.cluster)),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until there is no unit left
            search_alg=FoldSearcher(units, search, threads, room),
            scheduler=MedianStopScheduler(standing),
            reuse_actors=True,  # a process takes seconds to start and to import what training needs
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=file_system,
            verbose=0,
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )


def threads_of_folds(study: RunInputs, own_cluster: bool) -> dict[int, float]:
    """The threads of the one process that trains a fold; as many as the CPUs that it holds, or more.

    Where this machine is all there is, the folds that would leave a part of it idle share that out: the last of five
    takes both of two. Plan and machine alone decide, so that a fold that goes on has as many threads as before, with
    which its last digits go. To Ray all folds hold the same, so that one can follow another in its process.
    """
    cluster, folds = study.config.cluster, list(study.plan.folds)
    threads = dict.fromkeys(folds, cluster.cpus_per_worker)
    if own_cluster and cluster.most_workers == 1 and not cluster.gpus_per_worker and not study.config.search:
        side_by_side = concurrent_folds(cluster, own=True)
        last = folds[len(folds) - len(folds) % side_by_side :]
        threads |= {fold: cluster.cpus_per_worker * (side_by_side // len(last)) for fold in last}
    return threads


def trial_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What a trial itself holds.

    With one worker the trial is the worker. With more it only drives Ray Train's workers; a driver that held a CPU
    would keep it from them, and two such drivers wait for ever, so it takes a sliver of the head node instead.
    """
    if cluster.most_workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.01}
    return {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus_per_worker}


def room_on_cluster(cluster: ClusterConfig) -> Callable[[], int]:
    """How many folds the cluster holds as it now stands, or will hold once its autoscaler has seen them wait."""
    asked, room = float("-inf"), 1

    def ask() -> int:
        nonlocal asked, room
        if time.monotonic() - asked > _ROOM_ASKED_EVERY_S:
            asked, room = time.monotonic(), concurrent_folds(cluster, own=False)
        return room

    return ask


class FoldSearcher(Searcher):  # type: ignore[misc]  # Ray carries no types
    """Hands out the units one after another, while the cluster has room.

    Drivers of Ray Train hold nothing that Tune could count, so that it is here that their number is limited: what a
    fold's workers need comes in one placement group, which is granted whole or not at all, and no two folds can hold
    a part of it and wait for each other.
    """

    def __init__(
        self, units: Iterator[Unit], search: Search, threads: Mapping[int, float], room: Callable[[], int]
    ) -> None:
        super().__init__()
        self.units, self.search, self.threads, self.room = units, search, threads, room
        self.live: set[str] = set()
        self.refused = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next unit; None while there is no room, `Searcher.FINISHED` when there is none to begin."""
        if self.refused:
            return str(Searcher.FINISHED)
        if len(self.live) >= self.room():
            return None
        unit = next(self.units, None)
        if unit is None:
            return str(Searcher.FINISHED)
        self.live.add(trial_id)
        fold, setting = unit
        values = dict(self.search.settings[setting])
        return {"fold": fold, "setting": setting, "values": values, "threads": self.threads[fold]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """There is room again. After bad input nothing begins; a fold that failed leaves the others their chance."""
        self.live.discard(trial_id)
        self.refused |= "bad_input" in (result or {})

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done lies in the folds' own folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its parts for a restore that we do without
        return {}


class MedianStopScheduler(FIFOScheduler):  # type: ignore[misc]
    """Trials in the order they come; when a setting is found hopeless, a file tells all its folds to end.

    They end by themselves after the epoch they are in. A trial that a scheduler stops can leave the placement group
    of its nested workers behind, for which the next trial then waits.
    """

    def __init__(self, standing: SettingScores) -> None:
        super().__init__()
        self.standing = standing

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch was validated: perhaps one after which settings are compared."""
        if "best_val_auc" in result and self.standing.judged_after(result["epoch"] + 1):
            self.standing.look(trial.config["fold"], trial.config["setting"])
        return str(FIFOScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A fold came to its end."""
        self.standing.look(trial.config["fold"], trial.config["setting"])

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _trial(params: dict[str, Any], study: RunInputs) -> None:
    """One Tune trial: one fold with one setting."""
    fold, setting = params["fold"], params["setting"]
    cluster = study.config.cluster.model_copy(update={"cpus_per_worker": params["threads"]})
    study = replace(study, config=study.config.model_copy(update={"cluster": cluster}))
    marker = stop_marker(study, setting) if study.config.tuning.stop != "none" else None
    try:
        result = run_fold(study, fold, setting, params["values"], marker)
    except Exception as error:
        # told as a metric: raised, Tune would try again what cannot end better
        if wrong := input_error_within(error):
            tune.report({"bad_input": str(wrong)})
            return
        if failed := run_error_within(error):
            tune.report({"run_failed": str(failed)})
            return
        raise
    if result is None:
        tune.report({"ended_early": True})
    else:
        # under a name of its own: it is no further point of the epochs' curve
        tune.report({"finished": True, "kept_val_auc": result.val_scores["auc"]})


def _trial_name(trial: Any) -> str:
    # fold first: TensorBoard lists a fold's settings together, and the regular expression fold=0 selects them; a fold
    # that goes on does so in its own folder
    setting = f"-setting={trial.config['setting']}" if trial.config["values"] else ""
    return f"fold={trial.config['fold']}{setting}"
