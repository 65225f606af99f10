"""All statistics of an ensemble on an external cohort, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from momkd_ray.crossval.metrics import Bools, bootstrap_intervals, scores
from momkd_ray.crossval.trained_run import TrainedRun
from momkd_ray.errors import InputError
from momkd_ray.evaluate.against import compare_with
from momkd_ray.evaluate.decisions import at_fixed, decisions, plain
from momkd_ray.evaluate.options import EvaluationOptions
from momkd_ray.evaluate.predictions import FOLD, patients_of_run
from momkd_ray.evaluate.subgroups import compare_subgroups
from momkd_ray.statistics.calibration import (
    LogisticMap,
    brier,
    calibration_intercept,
    calibration_slope,
    scaled_brier,
)
from momkd_ray.statistics.delong import delong
from momkd_ray.statistics.percentiles import listed

PROBABILITIES = {
    "raw": "as the models give it",
    "corrected": "corrected to the training prevalence",
    "recalibrated": "recalibrated on the run's validation patients",
}


def with_probabilities(predictions: pd.DataFrame, run: TrainedRun, recalibrate: LogisticMap) -> pd.DataFrame:
    """Adds the corrected and the recalibrated probability of the positive class to the models' own `p`.

    Both are monotone functions of `p`, so they change no ranking; calls at the frozen threshold on `p` stay as they
    are.
    """
    return predictions.assign(
        raw=predictions["p"],
        corrected=run.shift.apply(predictions["p"]) if run.shift.intercept else predictions["p"],
        recalibrated=recalibrate.apply(predictions["p"]),
    )


def evaluate_patients(
    table: pd.DataFrame,
    run: TrainedRun,
    options: EvaluationOptions,
    others: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """Computes the statistics of labelled and predicted patients.

    Args:
        table: index `patient_id`; `y`, `p`, `raw`, `corrected`, `recalibrated`, `fold=<k>` if known, and a column of
            text for each subgroup.
        run: of the models.
        options: fixed points and subgroups.
        others: predictions to compare with, by file.

    Raises:
        InputError: a class has fewer than two patients.
    """
    y, p = table["y"].to_numpy(dtype=bool), table["p"].to_numpy(dtype=float)
    if min(y.sum(), (~y).sum()) < 2:
        raise InputError(
            f"{int(y.sum())} of the evaluated patients are {run.classes[1]} and {int((~y).sum())} {run.classes[0]}, "
            "but an evaluation takes two of each class: label or predict more patients"
        )
    cohort = _counts(table, y, run)
    prevalences = list(dict.fromkeys([cohort["prevalence"], *options.prevalences]))
    fixed = [("sensitivity", at) for at in options.sensitivities] + [
        ("specificity", at) for at in options.specificities
    ]
    at_thresholds = [_named("the frozen threshold", decisions(y, p, run.threshold, prevalences))]
    at_thresholds += [
        _named(
            f"the threshold with {measure} {at:g} on the validation patients",
            decisions(y, p, run.threshold_at(measure, at), prevalences),
        )
        for measure, at in fixed
    ]
    return {
        "label": run.label,
        "classes": list(run.classes),
        "run": {"dir": run.location, "fingerprint": run.fingerprint, "folds": list(run.thresholds)},
        "cohort": cohort,
        "prevalence_shift": {
            "training_prevalence": run.train_prevalence,
            "balanced_sampling": run.shift.intercept != 0,
            "added_to_log_odds": run.shift.intercept,
        },
        "discrimination": _discrimination(y, p, run.threshold, options.seed),
        "calibration": _calibration(table, y, run),
        "decisions": at_thresholds,
        "on_this_cohort": [at_fixed(y, p, measure, at, options.seed) for measure, at in fixed],
        "subgroups": compare_subgroups(table, "recalibrated", run.threshold, options.subgroups),
        "comparisons": compare_with(table, others or {}, run.threshold, options.seed),
        "folds": fold_disagreement(table, y, run),
    }


def _counts(table: pd.DataFrame, y: Bools, run: TrainedRun) -> dict[str, Any]:
    """Counts the patients of each class, and those who are in the run's folds."""
    overlap = patients_of_run(table.index, run)
    return {
        "patients": len(table),
        "positives": int(y.sum()),
        "negatives": int((~y).sum()),
        "prevalence": float(y.mean()),
        "also_in_the_run": {"patients": len(overlap), "examples": overlap[:3]},
    }


def _named(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, **values}


def _discrimination(y: np.ndarray, p: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    by_delong = delong(y, p)
    interval = by_delong.interval(0)
    bootstrap = bootstrap_intervals(y, p, p >= threshold, seed)
    return {
        "auc": {
            "value": float(by_delong.auc_M[0]),
            "delong_interval": listed(interval),
            "bootstrap_interval": listed(bootstrap["auc"]),
        },
        "average_precision": {
            "value": scores(y, p, threshold)["auprc"],
            "bootstrap_interval": listed(bootstrap["auprc"]),
            "prevalence": float(y.mean()),
        },
    }


def _calibration(table: pd.DataFrame, y: np.ndarray, run: TrainedRun) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, meaning in PROBABILITIES.items():
        p = table[name].to_numpy(dtype=float)
        found[name] = {
            "meaning": meaning,
            "mean": float(p.mean()),
            "intercept": plain(calibration_intercept(y, p)),
            "slope": plain(calibration_slope(y, p)),
            "brier": brier(y, p),
            "scaled_brier": scaled_brier(y, p),
        }
    recalibrate = run.recalibration()
    found["recalibrated"]["map"] = {
        "intercept": recalibrate.intercept,
        "slope": recalibrate.slope,
        "fitted_on": int(run.validation["patient_id"].nunique()),
    }
    return found


def fold_disagreement(table: pd.DataFrame, y: np.ndarray, run: TrainedRun) -> dict[str, Any] | None:
    """Describes how far the folds' models disagree about the patients; None if their probabilities are not known.

    Returns:
        `auc` of each model; `rank_correlation`, the mean of Spearman's over pairs of models; `sd`, of a patient's
        probability over models, its mean and largest; `calls`: patients by the number of models that call them
        positive at their own threshold; `split_accuracy`, the ensemble's accuracy where they are not unanimous.
    """
    folds = [fold for fold in run.thresholds if f"{FOLD}{fold}" in table.columns]
    if len(folds) < 2:
        return None
    p_NF = table[[f"{FOLD}{fold}" for fold in folds]].to_numpy(dtype=float)
    votes_N = (p_NF >= np.array([run.thresholds[fold] for fold in folds])).sum(axis=1)
    right_N = (table["p"].to_numpy() >= run.threshold) == y
    split_N = (votes_N > 0) & (votes_N < len(folds))
    with np.errstate(invalid="ignore"):
        pairs = np.corrcoef(rankdata(p_NF, axis=0).T)[np.triu_indices(len(folds), 1)]
    return {
        "auc": {str(fold): float(roc_auc_score(y, p_NF[:, i])) for i, fold in enumerate(folds)},
        "rank_correlation": float(pairs.mean()) if np.isfinite(pairs).all() else None,
        "sd": {"mean": float(p_NF.std(axis=1, ddof=1).mean()), "largest": float(p_NF.std(axis=1, ddof=1).max())},
        "calls": {str(votes): int((votes_N == votes).sum()) for votes in range(len(folds) + 1)},
        "unanimous": int((~split_N).sum()),
        "unanimous_accuracy": float(right_N[~split_N].mean()) if (~split_N).any() else None,
        "split_accuracy": float(right_N[split_N].mean()) if split_N.any() else None,
    }
