"""Run directories of finished cross-validations, written without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from momkd_ray import storage
from momkd_ray.crossval.evaluate import evaluate_fold, summarise
from momkd_ray.crossval.fold_result import FoldResult

CLASSES = ("negative", "positive")
EPOCHS = 18
FINGERPRINT = "0123456789abcdef"


def slides(rng: np.random.Generator, patients: list[str], classes: tuple[str, ...], spread: float = 1) -> pd.DataFrame:
    if len(classes) > 2:
        return slides_of_classes(rng, patients, classes, spread)
    rows = []
    for place, patient in enumerate(patients):
        y = place % 3 == 0
        for slide in range(1 + place % 2):
            p = 1 / (1 + np.exp(-(2 * y - 1) - rng.normal(scale=spread)))
            rows.append((f"{patient}-{slide}", patient, classes[int(y)], 1 - p, p))
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", f"p_{classes[0]}", f"p_{classes[1]}"])


def slides_of_classes(
    rng: np.random.Generator, patients: list[str], classes: tuple[str, ...], spread: float
) -> pd.DataFrame:
    rows = []
    for place, patient in enumerate(patients):
        y = place % len(classes)
        for slide in range(1 + place % 2):
            odds = np.exp(1.5 * (np.arange(len(classes)) == y) + rng.normal(scale=spread, size=len(classes)))
            rows.append((f"{patient}-{slide}", patient, classes[y], *(odds / odds.sum())))
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", *(f"p_{name}" for name in classes)])


def write_run(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    label: str = "PR",
    folds: int = 5,
    *,
    every_patient_in_every_fold: bool = False,
    balanced: bool = True,
    clinical: str | None = None,
) -> str:
    """A run whose folds each test 30 patients, a third of them positive, and validate on 24 of the others."""
    rng = np.random.default_rng(0)
    tested = {f: [f"T{0 if every_patient_in_every_fold else f}-{i:02}" for i in range(30)] for f in range(folds)}
    everybody = sorted({patient for own in tested.values() for patient in own})
    plan = pd.DataFrame(index=pd.Index(everybody, name="PATIENT"))
    if not every_patient_in_every_fold:
        plan["fold"] = [int(patient[1 : patient.index("-")]) for patient in everybody]
    results, tables = [], []
    for fold in range(folds):
        others = [patient for patient in everybody if patient not in tested[fold]]
        validated = others[:24] or [f"V{fold}-{i:02}" for i in range(24)]
        plan[f"role_{fold}"] = [
            "test" if patient in tested[fold] else "val" if patient in validated else "train" for patient in everybody
        ]
        validation = slides(rng, validated, classes)
        result, table = _write_fold(folder, fold, validation, slides(rng, tested[fold], classes), classes)
        results.append(result)
        tables.append(table)
    storage.write_text(f"{folder}/folds.csv", plan.to_csv(lineterminator="\n"))
    _write_summary(folder, results, pd.concat(tables), classes)
    named: dict[str, Any] = {"negative": classes[0], "positive": classes[1]}
    if len(classes) > 2:
        named = {"classes": {name: name for name in classes}}
    cohort = {"label": label, **named, "clinical": clinical}
    tree = {"cohort": cohort, "train": {"epochs": EPOCHS, "balanced": balanced, "seed": 1}, "folds": {"seed": 1}}
    storage.write_text(f"{folder}/run.yaml", yaml.safe_dump(tree))
    return str(folder)


def _write_fold(
    folder: Path, fold: int, validation: pd.DataFrame, test: pd.DataFrame, classes: tuple[str, ...]
) -> tuple[FoldResult, pd.DataFrame]:
    """What a fold leaves: its curves, predictions, result and genes."""
    result, table = evaluate_fold(fold, validation, test, classes, n_train=96, best_epoch=7)
    lines = [
        {"fold": fold, "epoch": e, "loss_total": 2 * 0.9**e, "lr": 2e-4, "val_auc": 0.9 - abs(e - 7) / 30}
        | {"seconds_train": 1.5, "seconds_validate": 0.5}
        for e in range(EPOCHS)
    ]
    own = f"{folder}/fold={fold}"
    storage.write_text(f"{own}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    storage.write_table(f"{own}/val_slides.parquet", validation)
    storage.write_table(f"{own}/test_slides.parquet", test)
    storage.write_json(f"{own}/result.json", result.to_json())
    genes = pd.DataFrame({"gene": [f"G{g}" for g in (1, 2, 3 + fold)], "importance": [0.5, 0.3, 0.2]})
    storage.write_text(f"{own}/genes.csv", genes.assign(method="xgboost").to_csv(index=False))
    return result, table


def _write_summary(folder: Path, results: list[FoldResult], pooled: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """What a run leaves of all its folds: metrics, pooled predictions, and who was left out."""
    metrics = summarise(results, pooled, classes, seed=1) | {
        "cohort": [f"{len(pooled)} patients have a slide and a label.", "3 patients left out (no slide)."],
        "fingerprint": FINGERPRINT,
    }
    storage.write_json(f"{folder}/metrics.json", metrics)
    pooled.to_parquet(folder / "predictions.parquet")
    excluded = [("patient", f"X{i}", "no slide", "unmatched") for i in range(3)]
    excluded.append(("slide", "X0-0", "its patient is left out", ""))
    table = pd.DataFrame(excluded, columns=["kind", "id", "reason", "problem"])
    storage.write_text(f"{folder}/excluded.csv", table.to_csv(index=False, lineterminator="\n"))
    storage.write_json(f"{folder}/provenance.json", {"fingerprint": FINGERPRINT, "torch": "2.9", "ray": "2.60"})
