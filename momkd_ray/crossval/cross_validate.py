"""All folds with all settings: trained, the settings chosen, the test predictions pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.shared_bags import share_bags
from momkd_ray.crossval.evaluate import FoldResult, summarise
from momkd_ray.crossval.fold import RESULT_FILE, fold_is_finished, fold_is_lost
from momkd_ray.crossval.median_stopping import SettingScores, read_stopped
from momkd_ray.crossval.mlflow_callback import trackers
from momkd_ray.crossval.progress_callback import ProgressCallback
from momkd_ray.crossval.search import Search
from momkd_ray.crossval.tune_trials import build_tuner, room_on_cluster, threads_of_folds, units_to_train
from momkd_ray.errors import InputError, RunError, StoppedError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import concurrent_folds, missing_resources_note
from momkd_ray.run.inputs import RunInputs


def cross_validate(study: RunInputs, progress: ProgressReporter, *, own_cluster: bool) -> dict[str, Any]:
    """Train every unfinished fold (with every setting), pool the test predictions, write metrics and predictions.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the input does not allow a fold to be trained, or a combination of the search is not valid.
        RunError: a fold failed more often than `cluster.max_failures`, or diverged with every setting.
        StoppedError: the user stopped it.
    """
    train_folds(study, study.plan.folds, progress, own_cluster=own_cluster)
    chosen = choose_settings(study)
    for fold, setting in chosen.items():
        _adopt(study, fold, setting)
    return _conclude(study, chosen)


def train_folds(study: RunInputs, folds: Sequence[int], progress: ProgressReporter, *, own_cluster: bool) -> None:
    """Train these folds with every setting where that is not done yet, as many side by side as the cluster holds.

    Raises:
        InputError, RunError, StoppedError: as `cross_validate`; InputError also where settings are still to be drawn
            from means over folds, and not all folds are trained.
    """
    search = Search(study.config)
    if len(search.settings) < search.total and set(folds) != set(study.plan.folds):
        raise InputError("tuning.method is optuna, which draws settings from means over all folds: cross-validate")
    standing = SettingScores(study, search)
    total, done = search.total * len(folds), _n_done(study, search, standing, folds)
    if done:
        progress.info(f"{done} of {total} folds are finished already and stay")
    if done == total:
        return
    if own_cluster:
        concurrent_folds(study.config.cluster, own=True)
    elif wait := missing_resources_note(study.config.cluster):
        progress.info(wait)
    slides = study.cohort.slides["slide_id"].tolist()
    study = replace(study, slides=share_bags(study.store, slides, study.config.store.memory_share))
    units = units_to_train(study, search, standing, folds)
    told = ProgressCallback(progress, study.config.train.epochs, total - done, search, standing)
    callbacks = [told, *trackers(study.config, progress, study.fingerprint)]
    room = room_on_cluster(study.config.cluster)
    threads = threads_of_folds(study, own_cluster)
    results = build_tuner(study, search, standing, units, threads=threads, room=room, callbacks=callbacks).fit()
    for result in results:
        if result.metrics and result.metrics.get("bad_input"):
            raise InputError(result.metrics["bad_input"])
    failed = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
    failed += [result.metrics["run_failed"] for result in results if "run_failed" in (result.metrics or {})]
    if failed:
        raise RunError(
            f"{len(failed)} of {total - done} folds failed, the first with: {failed[0]}; finished folds are kept: "
            "the same command goes on with the others"
        )
    # Tune takes Ctrl-C for a wish to end early and returns
    if _n_done(study, search, standing, folds) < total:
        raise StoppedError("interrupted; finished folds and epochs are kept: the same command goes on from there")


def _n_done(study: RunInputs, search: Search, standing: SettingScores, folds: Sequence[int]) -> int:
    """How many folds need no training any more, over all settings."""
    return sum(
        setting in standing.stopped or fold_is_finished(study, fold, setting) or fold_is_lost(study, fold, setting)
        for setting in range(len(search.settings))
        for fold in folds
    )


def choose_settings(study: RunInputs) -> dict[int, int]:
    """For each fold the setting with the highest AUC on that fold's own inner validation patients.

    Other folds' validation patients are this fold's test patients, so they have no say in its choice, unless
    `tuning.stop` lets their mean take a setting out of it.

    Raises:
        RunError: a fold has no result with any setting.
    """
    search = Search(study.config)
    stopped = read_stopped(study, len(search.settings))
    chosen = {}
    for fold in study.plan.folds:
        aucs = {
            setting: _result(study, fold, setting).val_scores["auc"]
            for setting in range(len(search.settings))
            if setting not in stopped and fold_is_finished(study, fold, setting)
        }
        if not aucs:
            raise RunError(f"fold {fold} diverged with every setting: search lower learning rates (train.lr)")
        chosen[fold] = max(aucs, key=lambda setting: (aucs[setting], -setting))
    return chosen


def _result(study: RunInputs, fold: int, setting: int) -> FoldResult:
    place = storage.join(study.location(fold, setting), RESULT_FILE)
    return FoldResult.from_json(storage.read_json(place))


def _adopt(study: RunInputs, fold: int, setting: int) -> None:
    """Copy the files of the chosen setting's fold to where a fold without a search has them."""
    source, target = study.location(fold, setting), storage.join(study.config.run.dir, f"fold={fold}")
    if source == target:
        return
    names = [n for n in storage.list_names(source) if n.endswith((".csv", ".jsonl", ".parquet", ".json"))]
    files = [*names, "model/weights.safetensors", "model/model.json"]
    for name in files:
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def _conclude(study: RunInputs, chosen: dict[int, int]) -> dict[str, Any]:
    run_dir, classes = study.config.run.dir, study.cohort.classes
    results = [_result(study, fold, setting) for fold, setting in chosen.items()]
    frames = []
    for fold, setting in chosen.items():
        place = storage.join(study.location(fold, setting), "test_predictions.parquet")
        frames.append(storage.read_table(place))
    pooled = pd.concat(frames).sort_values(["patient_id", "fold"]).reset_index(drop=True)
    metrics = summarise(results, pooled, classes, study.config.folds.seed)
    metrics |= {
        "cohort": study.cohort.summary(),
        "thresholds": {str(r.fold): r.threshold for r in results},
        "fingerprint": study.fingerprint,
    }
    if study.config.search:
        metrics["search"] = _search_report(study, chosen)
    storage.write_table(storage.join(run_dir, "predictions.parquet"), pooled)
    storage.write_json(storage.join(run_dir, "metrics.json"), metrics)
    return metrics


def _search_report(study: RunInputs, chosen: dict[int, int]) -> dict[str, Any]:
    """What was searched, how the settings came about and were chosen, and who had a say in it."""
    search, tuning = Search(study.config), study.config.tuning
    numbers = range(len(search.settings))
    stopped = read_stopped(study, len(search.settings))
    over_folds = "the mean over folds of the best AUC on their inner validation patients"
    return {
        "method": tuning.method,
        "settings": [dict(setting) for setting in search.settings],
        "chosen": {str(fold): setting for fold, setting in chosen.items()},
        "chosen_by": "each fold's AUC on its own inner validation patients",
        "drawn_by": over_folds if tuning.method == "optuna" else None,
        "stopped_by": over_folds if tuning.stop == "median" else None,
        "stopped": [{"setting": setting, **verdict} for setting, verdict in stopped.items()],
        "val_auc": [
            [None if setting in stopped else _val_auc(study, fold, setting) for fold in study.plan.folds]
            for setting in numbers
        ],
    }


def _val_auc(study: RunInputs, fold: int, setting: int) -> float | None:
    done = fold_is_finished(study, fold, setting)
    return _result(study, fold, setting).val_scores["auc"] if done else None
