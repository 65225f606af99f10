"""One fold from its patients to its result: genes, training, threshold, test predictions, model bundle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.config.load import Config
from momkd_ray.crossval.evaluate import FoldResult, evaluate_fold
from momkd_ray.errors import InputError, RunError, diverged_error_within
from momkd_ray.model.bundle import BundleCard, save_bundle
from momkd_ray.model.momkd import MoMKD
from momkd_ray.run.inputs import RunInputs
from momkd_ray.train.checkpoints import Checkpoints
from momkd_ray.train.fit import fit
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import CHECKPOINTS

RESULT_FILE = "result.json"
LOST_FILE = "lost.json"


def fold_is_finished(study: RunInputs, fold: int, setting: int) -> bool:
    """Whether the fold's result, written last, is there."""
    return storage.exists(storage.join(study.location(fold, setting), RESULT_FILE))


def fold_is_lost(study: RunInputs, fold: int, setting: int) -> bool:
    """Whether the fold cannot be trained with this setting of a search."""
    return storage.exists(storage.join(study.location(fold, setting), LOST_FILE))


def run_fold(
    study: RunInputs, fold: int, setting: int, values: Mapping[str, Any], stop_marker: str | None = None
) -> FoldResult | None:
    """Train, validate and test one fold from within its Tune trial, going on where an earlier try stopped.

    Args:
        study: what the run stands on.
        fold: its number.
        setting: of a search, by number; 0 without one.
        values: of the setting, by dotted key.
        stop_marker: a file that ends the fold after the epoch in which it appears.

    Returns:
        The result; None of a fold that was stopped, or that cannot be trained with this setting of a search.
    """
    task, genes = fold_task(study, fold, setting, values)
    try:
        trained = fit(task, None if stop_marker is None else partial(storage.exists, stop_marker))
    except Exception as error:
        diverged = diverged_error_within(error)
        if diverged is None or not study.config.search:
            raise
        # it would diverge again: what is lost is this setting in this fold, not the search
        storage.write_json(storage.join(task.location, LOST_FILE), {"reason": str(diverged)})
        return None
    checkpoints = Checkpoints(storage.join(task.location, CHECKPOINTS), task.fingerprint)
    if trained is None:
        checkpoints.remove_all()  # a stopped setting is never taken up again
        return None
    result, patients = _evaluate(study, task, trained["best_epoch"])
    _save_model(study, task, result, trained["val_auc"], genes, checkpoints)
    storage.write_table(storage.join(task.location, "test_predictions.parquet"), patients)
    storage.write_json(storage.join(task.location, RESULT_FILE), result.to_json())
    checkpoints.remove_all()  # the fold is never taken up again
    return result


def fold_task(
    study: RunInputs, fold: int, setting: int, values: Mapping[str, Any]
) -> tuple[FoldTask, GeneTransform | None]:
    """What the workers get: the fold's bags, and its training patients' genes, chosen and scaled on them alone."""
    config = study.config.with_settings(values)
    location = study.location(fold, setting)
    bags = study.fold_bags(fold)
    genes, omics = _teach(study, config, bags, location)
    task = FoldTask(
        config=config,
        fold=fold,
        bags=bags,
        omics=omics,
        genes=0 if genes is None else len(genes.genes),
        width=study.store.width,
        source=study.source,
        location=location,
        fingerprint=study.fingerprint,
    )
    return task, genes


def _teach(
    study: RunInputs, config: Config, bags: pd.DataFrame, location: str
) -> tuple[GeneTransform | None, dict[str, np.ndarray]]:
    omics = study.cohort.omics
    if omics is None:
        return None, {}
    training = sorted(set(bags.loc[bags["role"] == "train", "patient_id"]))
    taught = omics.loc[omics.index.isin(training)]
    if taught.empty:
        raise InputError(
            f"no training patient of {location} has omics; set cohort.omics to null to train without a teacher"
        )
    place = storage.join(location, "genes.csv")
    if storage.exists(place):
        genes = GeneTransform.load(place)
    else:
        y_N = study.cohort.patients["y"].loc[taught.index].to_numpy()
        genes = fit_genes(taught, y_N, config.genes, config.folds.seed)
        genes.save(place)
    return genes, dict(zip(taught.index, genes.apply(taught), strict=True))


def _evaluate(study: RunInputs, task: FoldTask, best_epoch: int) -> tuple[FoldResult, pd.DataFrame]:
    val, test = (storage.read_table(storage.join(task.location, f"{role}_slides.parquet")) for role in ("val", "test"))
    n_train = task.bags.loc[task.bags["role"] == "train", "patient_id"].nunique()
    return evaluate_fold(task.fold, val, test, study.cohort.classes, int(n_train), best_epoch)


def _save_model(
    study: RunInputs,
    task: FoldTask,
    result: FoldResult,
    val_auc: float,
    genes: GeneTransform | None,
    checkpoints: Checkpoints,
) -> None:
    config = task.config
    model = MoMKD(config.model, config.memory, config.loss, width=task.width, genes=task.genes)
    newest = checkpoints.newest()
    if newest is None:
        raise RunError(f"{checkpoints.folder} holds no whole checkpoint any more; run the same command again")
    model.load_state_dict(checkpoints.read(newest)["progress"]["best_weights"])
    origin: dict[str, Any] = {
        "fold": task.fold,
        "seed": config.train.seed,
        "fingerprint": study.fingerprint,
        "best_epoch": result.best_epoch,
        "val_auc": val_auc,
        "genes": None if genes is None else genes.note,
    }
    card = BundleCard(
        label=config.cohort.label,
        classes=study.cohort.classes,
        threshold=result.threshold,
        width=task.width,
        neighbors=study.store.format.neighbors,
        graph=study.store.format.graph,
        bag=config.cohort.bag,
        genes=task.genes,
        encoder=study.store.encoder,
        model=config.model,
        memory=config.memory,
        loss=config.loss,
        origin=origin,
    )
    save_bundle(storage.join(task.location, "model"), model, card)
