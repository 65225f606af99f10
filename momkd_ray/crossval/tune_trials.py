"""Folds with settings as Ray Tune trials: their order, their number side by side, and their resources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune
from ray.air._internal import usage
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from momkd_ray import storage
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval.fold import run_fold
from momkd_ray.crossval.median_stopping import SettingScores, stop_file
from momkd_ray.crossval.search import Search
from momkd_ray.errors import diverged_error_within, input_error_within, run_error_within
from momkd_ray.ray_runtime import environment
from momkd_ray.ray_runtime.cluster import concurrent_folds
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import TUNE
from momkd_ray.train.validation import criterion_of

FoldAndSetting = tuple[int, int]
_LIMIT_UPDATED_EVERY_S = 5.0


def pending_trials(search: Search, scores: SettingScores, folds: Sequence[int]) -> Iterator[FoldAndSetting]:
    """Yields the folds and settings that need training, all folds of a setting before those of the next.

    A setting is drawn when its first fold is requested, from the scores at that time.
    """
    for setting in range(search.total):
        if setting == len(search.settings):
            search.draw(scores.scores())
        for fold in folds:
            if not scores.is_done(fold, setting):
                yield fold, setting


def build_tuner(
    inputs: RunInputs,
    search: Search,
    scores: SettingScores,
    trials: Iterator[FoldAndSetting],
    *,
    threads: Mapping[int, float],
    limit: Callable[[], int],
    callbacks: Sequence[tune.Callback],
) -> Any:
    """Returns the Tuner that trains folds with settings.

    Args:
        inputs: cohort, folds and bags.
        search: the settings.
        scores: their scores and stop decisions.
        trials: the folds and settings to train.
        threads: of each fold, as `threads_of_folds` returns them.
        limit: returns the largest number of trials at a time.
        callbacks: of Tune.
    """
    environment.override(environment.TUNE)
    _resume_after_lack_of_memory()
    usage.tag_callbacks = lambda callbacks: False  # it would import MLflow and W&B, wherever they are installed
    config = inputs.config
    file_system, path = storage.pyarrow_filesystem(config.run.dir)

    return tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, inputs=inputs), trial_resources(config.cluster)),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until `trials` is exhausted
            search_alg=FoldSearcher(trials, search, threads, limit),
            scheduler=MedianStopScheduler(scores),
            reuse_actors=True,  # a process takes seconds to start and to import what training needs
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=path,
            storage_filesystem=file_system,
            verbose=0,
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )


def _resume_after_lack_of_memory() -> None:
    """Makes Tune resume a fold whose process was ended for lack of memory, as that of any other lost process.

    Tune 2.60 does not know this kind of a lost process, and ends the whole experiment with an exception of its own.
    """
    failed = actor_manager.RayActorManager._actor_task_failed
    if failed.__module__ == __name__:
        return

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception).splitlines()[0])
        failed(self, tracked_actor_task=tracked_actor_task, exception=exception)

    actor_manager.RayActorManager._actor_task_failed = actor_task_failed


def threads_of_folds(inputs: RunInputs, own_cluster: bool) -> dict[int, float]:
    """Returns the number of threads of each fold's process: as many as its CPUs, or more.

    On a cluster of this machine alone, the last folds share the CPUs that would be idle: of five folds on two CPUs, the
    last one takes both. This depends only on the folds and the machine, so a resumed fold has as many threads as
    before, which its last digits depend on. Ray counts the same CPUs for all folds, so that they can follow each other
    in one process.
    """
    cluster, folds = inputs.config.cluster, list(inputs.plan.folds)
    threads = dict.fromkeys(folds, cluster.cpus_per_worker)
    single = not inputs.config.search and not inputs.setting_names
    if own_cluster and cluster.most_workers == 1 and not cluster.gpus and single:
        side_by_side = concurrent_folds(cluster, own=True)
        last = folds[len(folds) - len(folds) % side_by_side :]
        threads |= {fold: cluster.cpus_per_worker * (side_by_side // len(last)) for fold in last}
    return threads


def trial_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Returns the resources of a trial's own process.

    With one worker the trial is the worker. With more it only drives Ray Train's workers. A driver with a CPU of its
    own would withhold it from them, and two such drivers could wait forever, so it takes 1 % of the head node instead.
    """
    if cluster.most_workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.01}
    return {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus}


def concurrency_limit(cluster: ClusterConfig) -> Callable[[], int]:
    """Returns a function that gives the number of folds the cluster holds, now or after its autoscaler has reacted."""
    updated, limit = float("-inf"), 1

    def current_limit() -> int:
        nonlocal updated, limit
        if time.monotonic() - updated > _LIMIT_UPDATED_EVERY_S:
            updated, limit = time.monotonic(), concurrent_folds(cluster, own=False)
        return limit

    return current_limit


class FoldSearcher(Searcher):  # type: ignore[misc]  # Ray carries no types
    """Suggests folds with settings to Tune in their order, up to a number at a time.

    Tune cannot limit the trials that only drive Ray Train, because they hold no resources, so the limit is here. The
    resources of a fold's workers are one placement group, which Ray grants completely or not at all, so two folds
    cannot each hold a part and wait for the other.

    Args:
        trials: the folds and settings to train.
        search: the settings' values.
        threads: of each fold.
        limit: returns the largest number of trials at a time.
    """

    def __init__(
        self,
        trials: Iterator[FoldAndSetting],
        search: Search,
        threads: Mapping[int, float],
        limit: Callable[[], int],
    ) -> None:
        super().__init__()
        self.trials, self.search, self.threads, self.limit = trials, search, threads, limit
        self.live: set[str] = set()
        self.has_bad_input = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial; None if the limit is reached, `Searcher.FINISHED` if no more are to start."""
        if self.has_bad_input:
            return str(Searcher.FINISHED)
        if len(self.live) >= self.limit():
            return None
        trial = next(self.trials, None)
        if trial is None:
            return str(Searcher.FINISHED)
        self.live.add(trial_id)
        fold, setting = trial
        values = dict(self.search.settings[setting])
        return {"fold": fold, "setting": setting, "values": values, "threads": self.threads[fold]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Counts a trial as ended. After bad input no other starts; after a failed fold the others still do."""
        self.live.discard(trial_id)
        self.has_bad_input |= "bad_input" in (result or {})

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the state of a run is in the folds' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its components for its own restore, which is not used
        return {}


class MedianStopScheduler(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in their order; a setting that falls behind is stopped by a file that all its folds look for.

    They end by themselves after the current epoch. If the scheduler stopped a trial, the placement group of its nested
    workers could remain, and the next trial would wait for it.

    Args:
        scores: the settings' curves and stop decisions.
    """

    def __init__(self, scores: SettingScores) -> None:
        super().__init__()
        self.scores = scores

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compares the settings, if this is an epoch after which they are compared."""
        if "epoch" in result and self.scores.compares_after(result["epoch"] + 1):
            self.scores.update(trial.config["fold"], trial.config["setting"])
        return str(FIFOScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Compares the settings after the end of a fold."""
        self.scores.update(trial.config["fold"], trial.config["setting"])

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _trial(params: dict[str, Any], inputs: RunInputs) -> None:
    """Trains and tests one fold with one setting, as a Tune trial."""
    fold, setting = params["fold"], params["setting"]
    cluster = inputs.config.cluster.model_copy(update={"cpus_per_worker": params["threads"]})
    inputs = replace(inputs, config=inputs.config.model_copy(update={"cluster": cluster}))
    stop = stop_file(inputs, setting) if inputs.config.tuning.stop != "none" else None
    try:
        result = run_fold(inputs, fold, setting, params["values"], stop)
    except Exception as error:
        # reported as a metric: if it were raised, Tune would retry an error that would come again
        if wrong := input_error_within(error):
            tune.report({"bad_input": str(wrong)})
            return
        if failed := run_error_within(error):
            tune.report({"run_failed": str(failed), "diverged": diverged_error_within(error) is not None})
            return
        raise
    if result is None:
        tune.report({"ended_early": True})
    else:
        # not as val_auc, which would add a point to the curve over epochs
        kept = result.val_scores[criterion_of(inputs.config).key]
        tune.report({"finished": True, "kept": kept, "epochs_trained": result.epochs})


def _trial_name(trial: Any) -> str:
    # fold first: TensorBoard then lists a fold's settings together, and the regular expression fold=0 selects them
    setting = f"-setting={trial.config['setting']}" if trial.config["values"] else ""
    return f"fold={trial.config['fold']}{setting}"
