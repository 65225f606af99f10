"""One fold from its patients to its result: genes, training, threshold, test predictions, model bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.config.load import Config
from momkd_ray.config.model_names import DEFAULT_MODEL
from momkd_ray.crossval.card_facts import card_facts
from momkd_ray.crossval.cost import reset_peak_memory, write_cost
from momkd_ray.crossval.evaluate import evaluate_fold
from momkd_ray.crossval.fold_result import FoldResult
from momkd_ray.crossval.score_evaluate import with_scores
from momkd_ray.crossval.teacher import cross_fitted_targets
from momkd_ray.crossval.training_bags import patients_to_learn_omics_of, training_bags
from momkd_ray.errors import InputError, RunError, diverged_error_within
from momkd_ray.model.bundle import BundleCard, save_bundle
from momkd_ray.model.expected_score import ExpectedScore
from momkd_ray.model.registry import build_model, model_class
from momkd_ray.model.training_patients import TrainingPatients
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import FoldDirectory
from momkd_ray.seeds import derive_seed
from momkd_ray.train.checkpoints import Checkpoints, kept_weights
from momkd_ray.train.fit import fit
from momkd_ray.train.task import FoldTask, Target
from momkd_ray.train.validation import REGRESSION, criterion_of, expected_of_training, patient_scores


def run_fold(
    inputs: RunInputs, fold: int, setting: int, values: Mapping[str, Any], stop_file: str | None = None
) -> FoldResult | None:
    """Trains, validates and tests one fold within its Tune trial; resumes it if it was interrupted.

    Args:
        inputs: cohort, folds and bags.
        fold: its number.
        setting: number of the search's setting; 0 without a search.
        values: the setting's values by dotted key.
        stop_file: a file that ends the fold after the epoch in which it appears.

    Returns:
        The result; None if the fold was stopped, or diverged with this setting of a search.
    """
    if inputs.setting_names:
        reset_peak_memory()
    began = time.monotonic()
    task, genes = fold_task(inputs, fold, setting, values)
    final, final_genes = _refit_task(inputs, task) if task.config.train.refit else (task, genes)
    preparation_s = time.monotonic() - began
    stop = None if stop_file is None else partial(storage.exists, stop_file)
    try:
        trained = fit(task, stop, refit=None if final is task else final)
    except Exception as error:
        if not _records_divergence(inputs, task, error):
            raise
        return None
    checkpoints, final_checkpoints = (Checkpoints(t.directory.checkpoints, t.fingerprint) for t in (task, final))
    if trained is None:
        checkpoints.remove_all()  # a stopped setting is never resumed
        return None
    if final is not task:
        # the fold's test predictions are those of the model that it keeps
        storage.write_table(task.directory.slides("test"), storage.read_table(final.directory.slides("test")))
    expected = _expected_scores(task, final)
    result, patients = _evaluate(inputs, task, trained, expected)
    facts = card_facts(result, final.bags, patients, inputs.cohort.classes, balanced=task.config.train.balanced)
    facts[criterion_of(task.config).metric] = trained["best"]  # by which the epoch was chosen
    parameters = _save_model(inputs, task, final, result, facts, final_genes, final_checkpoints, expected.get("test"))
    storage.write_table(task.directory.test_predictions, patients)
    if inputs.setting_names:
        write_cost(
            task.directory,
            inputs.config.cluster,
            preparation_s=preparation_s,
            refitted=final is not task,
            bags_validated=int((task.bags["role"] == "val").sum()),
            parameters=parameters,
        )
    storage.write_json(task.directory.result, result.to_json())
    for finished in (checkpoints, final_checkpoints):
        finished.remove_all()  # a finished fold is never resumed
    return result


def _records_divergence(inputs: RunInputs, task: FoldTask, error: Exception) -> bool:
    """Writes that the fold diverged with this setting, if that is the error and there are others; returns whether."""
    diverged = diverged_error_within(error)
    if diverged is None or not (inputs.config.search or inputs.setting_names):
        return False
    # it would diverge again: this setting is out for this fold, and the search continues
    storage.write_json(task.directory.diverged, {"reason": str(diverged)})
    return True


def _refit_task(inputs: RunInputs, task: FoldTask) -> tuple[FoldTask, GeneTransform | None]:
    """Returns the task whose training patients are the fold's training and validation patients, and its genes."""
    bags = training_bags(inputs, task.config, task.fold, refit=True)
    directory = task.directory.refit
    genes, omics, targets = _fit_fold_genes(inputs, task.config, bags, directory, task.fold)
    final = replace(task, bags=bags, omics=omics, targets=targets, genes=_width(genes), location=directory.location)
    return final, genes


def _width(genes: GeneTransform | None) -> int:
    return 0 if genes is None else len(genes.genes)


def fold_task(
    inputs: RunInputs, fold: int, setting: int, values: Mapping[str, Any]
) -> tuple[FoldTask, GeneTransform | None]:
    """Returns the task for the workers of a fold, and the genes selected on its training patients (None: no omics)."""
    config = inputs.config.with_settings(values)
    directory = inputs.fold_directory(fold, setting)
    bags = training_bags(inputs, config, fold)
    genes, omics, targets = _fit_fold_genes(inputs, config, bags, directory, fold)
    task = FoldTask(
        config=config,
        fold=fold,
        bags=bags,
        omics=omics,
        genes=_width(genes),
        width=inputs.store.width,
        source=inputs.source,
        location=directory.location,
        fingerprint=inputs.fingerprint,
        setting=setting,
        targets=targets,
    )
    return task, genes


def _fit_fold_genes(
    inputs: RunInputs, config: Config, bags: pd.DataFrame, directory: FoldDirectory, fold: int
) -> tuple[GeneTransform | None, dict[str, np.ndarray], dict[str, Target]]:
    """Selects and scales genes on the fold's training patients with omics, or reads the earlier selection.

    Returns:
        The genes, the patients' selected genes, and the teacher's targets for training patients with omics; None and
        nothing without omics.
    """
    omics, chosen = inputs.cohort.omics, model_class(config.model)
    if not chosen.uses_omics:
        return None, {}, {}
    if omics is None:
        if config.model.name != DEFAULT_MODEL:
            raise InputError(
                f"model.name is {config.model.name}, which learns from omics, but cohort.omics is null: name the table"
            )
        return None, {}, {}
    if config.omics.fraction == 0:
        return None, {}, {}
    training = patients_to_learn_omics_of(bags, omics.index, config, fold)
    with_omics = omics.loc[omics.index.isin(training)]
    y_N, families = inputs.cohort.patients["y"].loc[with_omics.index].to_numpy(), inputs.cohort.gene_families
    if storage.exists(directory.genes):
        genes = GeneTransform.load(directory.genes)
    else:
        genes = fit_genes(with_omics, y_N, config.genes, config.folds.seed, families)
        genes.save(directory.genes)
    targets: dict[str, Target] = {}
    if chosen.uses_teacher and config.omics.teacher == "cross_fitted":
        all_genes = config.genes.model_copy(update={"select": "all"})
        every_gene = fit_genes(with_omics, y_N, all_genes, config.folds.seed, families)
        seed, classes = derive_seed("teacher", config.train.seed, fold), len(inputs.cohort.classes)
        targets = cross_fitted_targets(with_omics, y_N, every_gene, seed, classes)
    if chosen.needs_omics_to_predict:
        tested = bags.loc[bags["role"] != "train", "patient_id"]
        with_omics = omics.loc[omics.index.isin([*training, *tested])]
    return genes, dict(zip(with_omics.index, genes.apply(with_omics), strict=True)), targets


def _expected_scores(task: FoldTask, final: FoldTask) -> dict[str, ExpectedScore]:
    """Returns what the classes of a regression stand for, to the models that predict `val` and `test`; else nothing."""
    config = task.config
    if config.cohort.task != REGRESSION:
        return {}
    bags, balanced = {"val": task.bags, "test": final.bags}, config.answers_balanced
    return {role: expected_of_training(own, task.classes, balanced=balanced) for role, own in bags.items()}


def _evaluate(
    inputs: RunInputs, task: FoldTask, trained: Mapping[str, Any], expected: Mapping[str, ExpectedScore]
) -> tuple[FoldResult, pd.DataFrame]:
    """Returns the fold's result and its test patients; `trained` is the result of `train_loop_per_worker`."""
    val = storage.read_table(task.directory.slides("val"))
    test = storage.read_table(task.directory.slides("test"))
    n_train = task.bags.loc[task.bags["role"] == "train", "patient_id"].nunique()
    ordered = inputs.config.cohort.ordered
    result, patients = evaluate_fold(
        task.fold, val, test, inputs.cohort.classes, int(n_train), trained["best_epoch"], ordered=ordered
    )
    if expected:
        slides = {"val": val, "test": test}
        own = {role: patient_scores(slides[role], inputs.cohort.classes, of_role) for role, of_role in expected.items()}
        result, patients = with_scores(result, patients, inputs.cohort.patients["number"], own)
    return replace(result, **{name: trained[name] for name in ("epochs", "device", "precision", "machines")}), patients


def _save_model(
    inputs: RunInputs,
    task: FoldTask,
    final: FoldTask,
    result: FoldResult,
    facts: Mapping[str, int | float],
    genes: GeneTransform | None,
    checkpoints: Checkpoints,
    expected: ExpectedScore | None,
) -> int:
    """Writes the bundle of the kept weights, from the newest checkpoint; returns its number of parameters."""
    config = task.config
    model = build_model(
        config.model, config.memory, config.loss, width=task.width, genes=final.genes, classes=task.classes
    )
    newest = checkpoints.newest()
    if newest is None:
        raise RunError(f"{checkpoints.folder} holds no intact checkpoint any more; run the same command again")
    model.load_state_dict(kept_weights(checkpoints.read(newest)))
    origin: dict[str, Any] = {
        "fold": task.fold,
        "seed": config.train.seed,
        "fingerprint": inputs.fingerprint,
        "best_epoch": result.best_epoch,
        "device": result.device,
        "precision": result.precision,
        "keep": config.train.keep,
        "refit": final is not task,
        "genes": None if genes is None else genes.note,
        **facts,
    }
    slides = inputs.cohort.slides["slide_id"].tolist()
    scales = inputs.store.scales(slides)
    card = BundleCard(
        label=config.cohort.label,
        classes=inputs.cohort.classes,
        threshold=result.threshold,
        width=task.width,
        neighbors=inputs.store.format.neighbors,
        graph=inputs.store.format.graph,
        bag=config.cohort.bag,
        genes=final.genes,
        encoder=inputs.store.encoder,
        magnification=scales[0].magnification if scales else None,
        patch_px=scales[0].patch_px if scales else None,
        scales=tuple((scale.magnification, scale.patch_px) for scale in scales) if len(scales) > 1 else (),
        feature_format=inputs.store.feature_format(slides),
        model=config.model,
        memory=config.memory,
        loss=config.loss,
        expected_score=expected,
        origin=origin,
        trained_on=_trained_on(task, inputs),
    )
    save_bundle(task.directory.model, model, card)
    return sum(p.numel() for p in model.parameters())


def _trained_on(task: FoldTask, inputs: RunInputs) -> TrainingPatients:
    """Hashes the patients whose labels the fold's model has seen: those of training, and those of validation."""
    seen = set(task.bags.loc[task.bags["role"].isin(("train", "val")), "patient_id"])
    slides = inputs.cohort.slides
    return TrainingPatients.of(seen, slides.loc[slides["patient_id"].isin(seen), "slide_id"], inputs.fingerprint)
