"""How the run was made: settings, software, durations, genes and the models' memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.config.data_sections import class_labels
from momkd_ray.config.quantile_ranges import bounds_of
from momkd_ray.model.bundle import BundleCard, load_bundle
from momkd_ray.report.finished_run import FinishedRun

NOT_RECORDED = "not recorded"
MOST_GENES = 25


def bundles_of(run: FinishedRun) -> dict[int, tuple[np.ndarray | None, BundleCard]]:
    """Reads the memory's components (Y, K, S) and the card of each fold's model that is there."""
    found = {}
    for fold in run.epochs:
        location = run.directory.fold(fold).model
        if storage.exists(storage.join(location, "model.json")):
            model, card = load_bundle(location)
            components = None if model.memory is None else model.memory.components.detach().numpy()
            found[fold] = components, card
    return found


def methods_block(run: FinishedRun, cards: list[BundleCard]) -> list[tuple[str, str]]:
    """Returns what a methods section needs, as pairs of name and value."""
    cohort, train, folds, model = (run.section(name) for name in ("cohort", "train", "folds", "model"))
    store, features, cluster = run.section("store"), run.section("features"), run.section("cluster")
    versions = {k: v for k, v in run.provenance.items() if isinstance(v, str) and k not in ("fingerprint", "system")}
    encoders = sorted({card.encoder for card in cards if card.encoder})
    magnifications = sorted({f"{card.magnification:g}x" for card in cards if card.magnification})
    predicted = ("What is predicted", _number(run)) if run.predicts_number else None
    shown: list[tuple[str, Any]] = [
        *([predicted] if predicted else []),
        ("Model", model.get("name", "momkd")),
        ("Patch encoder", ", ".join(encoders) or NOT_RECORDED),
        ("Width of the features", cards[0].width if cards else NOT_RECORDED),
        ("Feature files", features.get("dir")),
        ("Magnification", ", ".join(magnifications) or f"{NOT_RECORDED}; it is that of the feature files"),
        ("Neighbours of the patch graph", store.get("neighbors")),
        ("A bag is", {"slide": "a slide", "patient": "all slides of a patient"}.get(str(cohort.get("bag")))),
        ("Omics", cohort.get("omics") or "none"),
        ("Folds", f"{len(run.epochs)}, {_folds_sentence(folds)}"),
        ("Validation share of the training patients", folds.get("validation")),
        ("Seed of folds, genes and bootstrap", folds.get("seed")),
        ("Seed of weights, sampling and dropout", train.get("seed")),
        (
            "Sampling",
            f"{'both' if len(run.classes) == 2 else 'all'} classes equally often"
            if train.get("balanced", True)
            else "every bag once an epoch",
        ),
        ("Largest number of epochs", train.get("epochs")),
        ("Learning rate, weight decay", _joined(train.get("lr"), train.get("weight_decay"))),
        ("Bags per step", train.get("bags_per_step")),
        ("Precision", _became(train.get("precision"), run, "precision")),
        ("Trained on", _became(None, run, "device")),
        ("Machines of a fold", _machines(run)),
        ("Training and validation of a fold", _durations(list(run.seconds.values()))),
        ("Of the training time, waiting for bags", _waiting(run)),
        ("Workers, GPUs of each", _joined(cluster.get("workers"), _gpus(cluster, run.provenance))),
        ("System", run.provenance.get("system")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
        ("Fingerprint", run.provenance.get("fingerprint") or run.figures.get("fingerprint")),
    ]
    return [(name, NOT_RECORDED if value is None else str(value)) for name, value in shown]


def _number(run: FinishedRun) -> str:
    """Says how a number is predicted."""
    bounds = bounds_of(class_labels(run.section("cohort")["classes"]))
    return (
        f"the number {run.label}, as the expectation over {len(run.classes)} classes, its quantiles over all labelled "
        f"patients (cut at {', '.join(bounds)}), each of which stands for the mean of the fold's training patients"
    )


def _became(asked: str | None, run: FinishedRun, name: str) -> str | None:
    """Returns what the folds say that they were trained with, and what was asked for if it differs."""
    found = sorted({str(fold[name]) for fold in run.figures["folds"] if fold.get(name)})
    if not found:
        return asked
    return f"{', '.join(found)} ({asked})" if asked and found != [asked] else ", ".join(found)


def _machines(run: FinishedRun) -> str | None:
    """Says on which hardware the folds were trained."""
    told = {
        "; ".join(_machine_sentence(machine) for machine in fold["machines"])
        for fold in run.figures["folds"]
        if fold.get("machines")
    }
    return " or ".join(sorted(told)) or None


def _machine_sentence(machine: dict[str, Any]) -> str:
    workers = f"{machine['workers']} workers, each on " if machine["workers"] > 1 else ""
    gpu = f", GPU {machine['gpu']}" if machine["gpu"] else ""
    cores = f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"
    return f"{workers}{machine['processor']}, {cores}, {machine['memory_gib']:.0f} GiB{gpu}"


def _waiting(run: FinishedRun) -> str | None:
    """Returns the share of the training time that steps waited for their bags."""
    named = ["seconds_train", "seconds_input_wait"]
    tables = [epochs for epochs in run.epochs.values() if set(named) <= set(epochs.columns)]
    if not tables:
        return None
    total, waited = pd.concat(tables)[named].sum()
    return f"{100 * waited / total:.0f} %" if total else None


def _gpus(cluster: dict[str, Any], provenance: dict[str, Any]) -> Any:
    asked, chosen = cluster.get("gpus_per_worker"), provenance.get("gpus_per_worker")
    return asked if asked != "auto" or chosen is None else f"{chosen:g} (auto)"


def _folds_sentence(folds: dict[str, Any]) -> str:
    if folds.get("file"):
        return f"imported from {folds['file']}"
    site = f", all patients of a {folds['site']} in one fold" if folds.get("site") else ""
    return f"drawn by patient{', stratified by class' if folds.get('stratify', True) else ''}{site}"


def _joined(*values: Any) -> str | None:
    return None if any(value is None for value in values) else ", ".join(map(str, values))


def _durations(seconds: list[float | None]) -> str | None:
    known = [value for value in seconds if value is not None]
    if not known:
        return None
    median, total = float(np.median(known)), sum(known)
    return f"{_time(median)} (median), {_time(total)} in all"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def gene_frequencies(run: FinishedRun) -> pd.DataFrame:
    """Counts in how many folds each gene was chosen.

    Returns:
        `gene, folds, mean_importance` of the folds that chose it; most frequent and important first.
    """
    if not run.genes:
        return pd.DataFrame(columns=["gene", "folds", "mean_importance"])
    table = pd.concat([own.assign(fold=fold) for fold, own in run.genes.items()])
    table["importance"] = pd.to_numeric(table["importance"], errors="coerce")
    counted = table.groupby("gene").agg(folds=("fold", "nunique"), mean_importance=("importance", "mean"))
    ordered = counted.reset_index().sort_values(["folds", "mean_importance", "gene"], ascending=[False, False, True])
    return ordered.reset_index(drop=True)


def gene_overlap(run: FinishedRun) -> float | None:
    """Computes the mean share of genes that two folds have in common, of all that either chose (Jaccard)."""
    chosen = [set(own["gene"]) for own in run.genes.values()]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    return float(np.mean(pairs)) if pairs else None
