"""Cross-validation: trains all folds with all settings, chooses each fold's setting, pools the test predictions."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.layers import choose_layer
from momkd_ray.cohort.fold_checks import few_validated, few_validated_sentence
from momkd_ray.crossval.early_checks import check_training_bags
from momkd_ray.crossval.evaluate import summarise
from momkd_ray.crossval.fold_result import FoldResult
from momkd_ray.crossval.median_stopping import SettingScores, read_stop_decisions
from momkd_ray.crossval.optuna_journal import write_study
from momkd_ray.crossval.progress_callback import ProgressCallback
from momkd_ray.crossval.score_evaluate import summarise_scores
from momkd_ray.crossval.search import Search
from momkd_ray.crossval.tune_trials import (
    FoldAndSetting,
    build_tuner,
    concurrency_limit,
    pending_trials,
    threads_of_folds,
)
from momkd_ray.errors import InputError, RunError, StoppedError
from momkd_ray.model.bundle import BUNDLE_FILES, README
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import concurrent_folds, missing_resources_note
from momkd_ray.run.earlier_run import has_trained
from momkd_ray.run.inputs import RunInputs
from momkd_ray.train.validation import REGRESSION, criterion_of


def cross_validate_inputs(inputs: RunInputs, progress: ProgressReporter, *, own_cluster: bool) -> dict[str, Any]:
    """Trains every unfinished fold with every setting, pools the test predictions, and writes both with the metrics.

    Args:
        inputs: cohort, folds and bags.
        progress: receives epochs, folds and notes.
        own_cluster: whether the Ray cluster is this command's own, on this machine.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: a fold cannot be trained on these inputs, or a combination of the search is not valid.
        RunError: a fold failed more often than `cluster.max_failures`, or diverged with every setting.
        StoppedError: the user stopped it.
    """
    train_folds(inputs, inputs.plan.folds, progress, own_cluster=own_cluster)
    chosen = choose_settings(inputs)
    for fold, setting in chosen.items():
        _copy_chosen(inputs, fold, setting)
    return _write_results(inputs, chosen)


def train_folds(
    inputs: RunInputs,
    folds: Sequence[int],
    progress: ProgressReporter,
    *,
    own_cluster: bool,
    search: Search | None = None,
    pairs: Set[FoldAndSetting] | None = None,
) -> None:
    """Trains folds with every setting, as many side by side as the cluster holds; finished ones are kept.

    Args:
        inputs: cohort, folds and bags.
        folds: to train.
        progress: receives epochs, folds and notes.
        own_cluster: as of `cross_validate_inputs`.
        search: the settings, if they are not those of the configuration.
        pairs: the folds and settings to train, if they are not all.

    Raises:
        InputError, RunError, StoppedError: as `cross_validate_inputs`; InputError also if Optuna is to draw settings,
            and not all folds are trained.
    """
    search = search or Search(inputs.config)
    if len(search.settings) < search.total and set(folds) != set(inputs.plan.folds):
        raise InputError(
            "tuning.method is optuna, which draws settings from means over all folds: run crossval instead"
        )
    scores = SettingScores(inputs, search)
    total, left = search.total * len(folds) if pairs is None else len(pairs), _folds_left(scores, folds, pairs)
    if done := total - left.total():
        progress.info(f"{done} of {total} folds are finished already and are kept")
    if not left:
        return
    check_training_bags(inputs, search.settings, folds)
    if own_cluster:
        concurrent_folds(inputs.config.cluster, own=True)
    elif note := missing_resources_note(inputs.config.cluster):
        progress.info(note)
    slides = inputs.cohort.slides["slide_id"].tolist()
    source, chosen = choose_layer(inputs.store, slides, inputs.config.store, inputs.config.cluster)
    progress.info(chosen)
    inputs = replace(inputs, slides=source)
    reporter = ProgressCallback(progress, inputs.config.train.epochs, left, search, scores)
    results = build_tuner(
        inputs,
        search,
        scores,
        (trial for trial in pending_trials(search, scores, folds) if pairs is None or trial in pairs),
        threads=threads_of_folds(inputs, own_cluster),
        limit=concurrency_limit(inputs.config.cluster),
        callbacks=[reporter, *_trackers(inputs, progress)],
    ).fit()
    _raise_failures(results, inputs, left.total())
    # after Ctrl-C, Tune returns as if it had finished
    if _folds_left(scores, folds, pairs):
        raise StoppedError("interrupted; finished folds and epochs are kept: run the same command again to resume")


def _trackers(inputs: RunInputs, progress: ProgressReporter) -> list[Any]:
    """Returns Tune's loggers for the services of the section `watch`."""
    trackers: list[Any] = []
    if inputs.config.watch.mlflow is not None:
        from momkd_ray.crossval.mlflow_callback import mlflow_trackers  # it imports mlflow, wherever that is installed

        trackers += mlflow_trackers(inputs.config, progress, inputs.fingerprint)
    if inputs.config.watch.wandb is not None:
        from momkd_ray.crossval.wandb_callback import wandb_trackers  # and this one wandb

        trackers += wandb_trackers(inputs.config, progress, inputs.fingerprint)
    return trackers


def _raise_failures(results: Iterable[Any], inputs: RunInputs, folds: int) -> None:
    """Raises what ended a fold; an input that is bad, or a network that diverged, before all else.

    Args:
        results: of Tune.
        inputs: of the run.
        folds: their number.
    """
    results = list(results)
    for result in results:
        if result.metrics and result.metrics.get("bad_input"):
            raise InputError(result.metrics["bad_input"])
        if result.metrics and result.metrics.get("diverged"):
            raise RunError(f"{result.metrics['run_failed']}{_elsewhere(inputs)}")
    failed = [_reason(result.error) for result in results if result.error]
    failed += [result.metrics["run_failed"] for result in results if "run_failed" in (result.metrics or {})]
    if failed:
        first = failed[0].removesuffix(", then run the same command again")
        raise RunError(
            f"{len(failed)} of {folds} folds failed, the first with: {first}; finished folds are kept: "
            "run the same command again to resume the others"
        )


def _reason(error: Exception) -> str:
    """Says in a sentence why Tune gave up a fold."""
    lines = str(error).strip().splitlines()
    used = re.search(r"running low on memory.* was (\S+ used / \S+) limit", str(error))
    if used is None:
        return lines[-1]
    return (
        f"the memory of its machine was full ({used[1]}), so that Ray ended its process: a larger "
        "cluster.cpus_per_worker trains fewer folds side by side"
    )


def _elsewhere(inputs: RunInputs) -> str:
    """Returns where a cure that changes the configuration can be followed; '' in this run directory."""
    directory = inputs.directory
    return f", and set run.dir to {directory.another()}: what is trained here stays" if has_trained(directory) else ""


def _folds_left(scores: SettingScores, folds: Sequence[int], pairs: Set[FoldAndSetting] | None) -> Counter[str]:
    """Returns the number of folds that need training, by what they train (`Search.model`)."""
    search = scores.search
    every = itertools.product(folds, range(len(search.settings)))
    of_drawn = every if pairs is None else pairs
    left = Counter(search.model(setting) for fold, setting in of_drawn if not scores.is_done(fold, setting))
    if pairs is None and len(search.settings) < search.total:
        left[""] += (search.total - len(search.settings)) * len(folds)
    return left


def choose_settings(inputs: RunInputs) -> dict[int, int]:
    """Chooses for each fold the setting that is best on that fold's own inner validation patients (`criterion_of`).

    Other folds' validation patients are this fold's test patients, so they do not influence its choice, unless
    `tuning.stop` lets their mean exclude a setting.

    Returns:
        The number of the setting for each fold.

    Raises:
        RunError: a fold has no result with any setting.
    """
    search = Search(inputs.config)
    stopped = read_stop_decisions(inputs, len(search.settings))
    chosen = {}
    for fold in inputs.plan.folds:
        scores = {
            setting: score
            for setting in range(len(search.settings))
            if setting not in stopped and (score := _val_score(inputs, fold, setting)) is not None
        }
        if not scores:
            sentence = f"fold {fold} diverged with every setting: search lower learning rates (train.lr)"
            raise RunError(f"{sentence}{_elsewhere(inputs)}")
        chosen[fold] = max(scores, key=lambda setting: (scores[setting], -setting))
    return chosen


def _val_score(inputs: RunInputs, fold: int, setting: int) -> float | None:
    """Returns a finished fold's figure on its validation patients; None if it is not finished."""
    finished = inputs.fold_directory(fold, setting).is_finished()
    return _result(inputs, fold, setting).val_scores[criterion_of(inputs.config).key] if finished else None


def _result(inputs: RunInputs, fold: int, setting: int) -> FoldResult:
    return FoldResult.from_json(storage.read_json(inputs.fold_directory(fold, setting).result))


def _copy_chosen(inputs: RunInputs, fold: int, setting: int) -> None:
    """Copies the files of a fold with its chosen setting to the fold's folder in a run without a search."""
    source, target = inputs.fold_directory(fold, setting), inputs.directory.fold(fold)
    if source == target:
        return
    names = storage.list_names(source.location)
    names = [name for name in names if name.endswith((".csv", ".jsonl", ".parquet", ".json"))]
    files = [(storage.join(source.location, name), storage.join(target.location, name)) for name in names]
    files += [(storage.join(source.model, name), storage.join(target.model, name)) for name in BUNDLE_FILES]
    readme = storage.join(source.model, README)
    if storage.exists(readme):  # an earlier version wrote none
        files.append((readme, storage.join(target.model, README)))
    for original, copy in files:
        storage.write_bytes(copy, storage.read_bytes(original))


def _write_results(inputs: RunInputs, chosen: dict[int, int]) -> dict[str, Any]:
    """Writes the pooled predictions and `metrics.json`; returns the latter."""
    results = [_result(inputs, fold, setting) for fold, setting in chosen.items()]
    frames = [storage.read_table(inputs.fold_directory(fold, s).test_predictions) for fold, s in chosen.items()]
    pooled = pd.concat(frames).sort_values(["patient_id", "fold"]).reset_index(drop=True)
    cohort, config = inputs.cohort, inputs.config
    metrics = summarise(results, pooled, cohort.classes, config.folds.seed, ordered=config.cohort.ordered)
    if config.cohort.task == REGRESSION:
        metrics = summarise_scores(metrics, results, pooled, cohort.classes, config.folds.seed)
    metrics |= {
        "cohort": inputs.cohort.summary(),
        "few_validated": few_validated_sentence(few_validated(config, cohort, inputs.plan), config),
        "thresholds": {str(r.fold): r.threshold for r in results},
        "fingerprint": inputs.fingerprint,
    }
    if inputs.config.search:
        metrics["search"] = _search_report(inputs, chosen)
        write_study(inputs.config, metrics["search"], inputs.plan.folds, inputs.directory.study)
    storage.write_table(inputs.directory.predictions, pooled)
    storage.write_json(inputs.directory.metrics, metrics)
    return metrics


def _search_report(inputs: RunInputs, chosen: dict[int, int]) -> dict[str, Any]:
    """Returns the settings, the choices and stop decisions, and the validation patients that each was based on."""
    search, tuning = Search(inputs.config), inputs.config.tuning
    stopped = read_stop_decisions(inputs, len(search.settings))
    by = criterion_of(inputs.config)
    over_folds = f"the mean over folds of the best {by.name} on their inner validation patients"
    return {
        "method": tuning.method,
        "settings": [dict(setting) for setting in search.settings],
        "chosen": {str(fold): setting for fold, setting in chosen.items()},
        "chosen_by": f"each fold's {by.name} on its own inner validation patients",
        "drawn_by": over_folds if tuning.method == "optuna" else None,
        "stopped_by": over_folds if tuning.stop == "median" else None,
        "stopped": [{"setting": setting, **decision} for setting, decision in stopped.items()],
        "criterion": by.name,
        "scores": [
            [None if setting in stopped else _val_score(inputs, fold, setting) for fold in inputs.plan.folds]
            for setting in range(len(search.settings))
        ],
    }
