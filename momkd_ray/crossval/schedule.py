"""Folds (and settings) as Ray Tune trials: resources, concurrency, going on after an interruption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from ray import tune

from momkd_ray import storage
from momkd_ray.bags.share import share_bags
from momkd_ray.cluster import folds_side_by_side
from momkd_ray.crossval.evaluate import FoldResult, summarise
from momkd_ray.crossval.fold import RESULT_FILE, fold_is_finished, run_fold
from momkd_ray.crossval.study import Study
from momkd_ray.crossval.track import trackers
from momkd_ray.errors import InputError, RunError, StoppedError, input_error_within, run_error_within
from momkd_ray.progress import Narrator
from momkd_ray.train.fit import TRAIN_ENVIRONMENT

Unit = tuple[int, int]  # fold, setting


def cross_validate(study: Study, narrator: Narrator, *, own_cluster: bool) -> dict[str, Any]:
    """Train every unfinished fold (with every setting), pool the test predictions, write metrics and predictions.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the input does not allow a fold to be trained.
        RunError: a fold failed more often than `cluster.max_failures`.
        StoppedError: the user stopped it.
    """
    units = [(fold, setting) for setting in range(len(study.settings)) for fold in study.plan.folds]
    train_folds(study, units, narrator, own_cluster=own_cluster)
    chosen = choose_settings(study)
    for fold, setting in chosen.items():
        _adopt(study, fold, setting)
    return _conclude(study, chosen)


def train_folds(study: Study, units: Sequence[Unit], narrator: Narrator, *, own_cluster: bool) -> None:
    """Run the units that have no result yet, as many side by side as the cluster holds."""
    missing = [unit for unit in units if not fold_is_finished(study, *unit)]
    if len(missing) < len(units):
        narrator.say(f"{len(units) - len(missing)} of {len(units)} folds are finished already and stay")
    if not missing:
        return
    slides = study.cohort.slides["slide_id"].tolist()
    study = replace(study, slides=share_bags(study.store, slides, study.config.store.memory_share))
    results = _tuner(study, missing, narrator, folds_side_by_side(study.config.cluster, own_cluster)).fit()
    for result in results:
        if result.metrics and result.metrics.get("bad_input"):
            raise InputError(result.metrics["bad_input"])
    failed = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
    failed += [result.metrics["run_failed"] for result in results if "run_failed" in (result.metrics or {})]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(missing)} folds failed, the first with: {failed[0]}; finished folds are kept: "
            "the same command goes on with the others"
        )
    # Tune takes Ctrl-C for a wish to end early and returns
    if not all(fold_is_finished(study, *unit) for unit in missing):
        raise StoppedError("interrupted; finished folds and epochs are kept: the same command goes on from there")


def _trial(params: dict[str, Any], study: Study) -> None:
    """One Tune trial: one fold with one setting."""
    unit = params["unit"]
    try:
        result = run_fold(study, unit["fold"], unit["setting"])
    except Exception as error:
        # told as a metric: raised, Tune would try again what cannot end better
        if wrong := input_error_within(error):
            tune.report({"bad_input": str(wrong), **unit})
            return
        if failed := run_error_within(error):
            tune.report({"run_failed": str(failed), **unit})
            return
        raise
    tune.report({**unit, "finished": True, "epoch": result.best_epoch, "val_auc": result.val_scores["auc"]})


def _tuner(study: Study, units: Sequence[Unit], narrator: Narrator, side_by_side: int) -> Any:
    os.environ.update(TRAIN_ENVIRONMENT)
    config = study.config
    file_system, path = storage.arrow_filesystem(config.run.dir)
    space = [{"fold": fold, "setting": setting} for fold, setting in units]
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, study=study), _trial_resources(study)),
        param_space={"unit": tune.grid_search(space)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=side_by_side,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=file_system,
            verbose=0,
            callbacks=[
                _Told(narrator, config.train.epochs, len(units), len(study.settings)),
                *trackers(config, narrator, study.fingerprint),
            ],
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )


def _trial_resources(study: Study) -> dict[str, float]:
    """What a trial itself holds.

    With one worker the trial is the worker. With more it only drives Ray Train's workers; a driver that held a CPU
    would keep it from them, and two such drivers wait for ever, so it takes a sliver of the head node instead.
    """
    cluster = study.config.cluster
    if cluster.workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.01}
    return {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus_per_worker}


def _trial_name(trial: Any) -> str:
    """Folds first, by which TensorBoard, sorting its runs by name, groups them."""
    unit = trial.config["unit"]
    return f"fold={unit['fold']}-setting={unit['setting']}-{trial.trial_id}"


class _Told(tune.Callback):  # type: ignore[misc]  # Ray carries no types
    """Counts epochs and finished folds for the user."""

    def __init__(self, narrator: Narrator, epochs: int, total: int, settings: int) -> None:
        self.narrator, self.epochs, self.total, self.settings = narrator, epochs, total, settings
        self.finished: set[str] = set()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """An epoch was validated, or a fold is finished."""
        unit = trial.config["unit"]
        name = f"fold {unit['fold']}" + (f", setting {unit['setting']}" if self.settings > 1 else "")
        if result.get("finished"):
            self.finished.add(trial.trial_id)
            note = f"best validation AUC {result['val_auc']:.3f}"
            self.narrator.count(name, self.epochs, self.epochs, note)
            self.narrator.count("folds", len(self.finished), self.total)
        elif "val_auc" in result:
            note = f"validation AUC {result['val_auc']:.3f}"
            self.narrator.count(name, min(result["epoch"] + 1, self.epochs - 1), self.epochs, note)

    def on_trial_recover(self, **info: Any) -> None:
        """A fold is tried again."""
        self.narrator.say(f"{info.get('trial')} failed and is tried again from its last checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we do without; a console cannot be pickled
        return {}


def choose_settings(study: Study) -> dict[int, int]:
    """For each fold the setting with the highest AUC on that fold's own inner validation patients.

    Other folds' validation patients are this fold's test patients, so they have no say in its choice.
    """
    return {
        fold: max(range(len(study.settings)), key=lambda s: (_result(study, fold, s).val_scores["auc"], -s))
        for fold in study.plan.folds
    }


def _result(study: Study, fold: int, setting: int) -> FoldResult:
    place = storage.join(study.location(fold, setting), RESULT_FILE)
    return FoldResult.from_json(storage.read_json(place))


def _adopt(study: Study, fold: int, setting: int) -> None:
    """Copy the files of the chosen setting's fold to where a fold without a search has them."""
    source, target = study.location(fold, setting), storage.join(study.config.run.dir, f"fold={fold}")
    if source == target:
        return
    names = [n for n in storage.names_below(source) if n.endswith((".csv", ".jsonl", ".parquet", ".json"))]
    files = [*names, "model/weights.safetensors", "model/model.json"]
    for name in files:
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def _conclude(study: Study, chosen: dict[int, int]) -> dict[str, Any]:
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
        metrics["search"] = {
            "settings": [dict(s) for s in study.settings],
            "chosen": {str(fold): setting for fold, setting in chosen.items()},
            "val_auc": [
                [_result(study, fold, s).val_scores["auc"] for fold in study.plan.folds]
                for s in range(len(study.settings))
            ],
        }
    storage.write_table(storage.join(run_dir, "predictions.parquet"), pooled)
    storage.write_json(storage.join(run_dir, "metrics.json"), metrics)
    return metrics
