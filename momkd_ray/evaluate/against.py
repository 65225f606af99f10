"""The ensemble against other predictions of the same patients: AUCs by DeLong and bootstrap, calls by McNemar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from momkd_ray.errors import InputError
from momkd_ray.statistics.delong import delong
from momkd_ray.statistics.holm import holm_of_known
from momkd_ray.statistics.paired_bootstrap import paired_bootstrap
from momkd_ray.statistics.percentiles import listed


def compare_with(
    table: pd.DataFrame, others: Mapping[str, pd.DataFrame], threshold: float, seed: int
) -> list[dict[str, Any]]:
    """Compares AUCs and calls on the patients that both have; differences are this ensemble's minus the other's.

    Args:
        table: index `patient_id`, `y`, `p`.
        others: of each file its predictions, index `patient_id`, `p`.
        threshold: at which both are called.
        seed: of the bootstrap.

    Raises:
        InputError: a file has fewer than two of a class's patients.
    """
    check_shared(table, others)
    found: list[dict[str, Any]] = []
    for path, other in others.items():
        shared = table.index.intersection(other.index)
        y = table.loc[shared, "y"].to_numpy(dtype=bool)
        own, its = table.loc[shared, "p"].to_numpy(), other.loc[shared, "p"].to_numpy()
        by_delong = delong(y, np.stack([own, its]))
        difference, interval, p = by_delong.difference(0, 1)
        bootstrap = paired_bootstrap(y, {"own": [own], "other": [its]}, seed)
        b_difference, b_interval, b_p = bootstrap.difference("own", "other")
        found.append(
            {
                "file": path,
                "patients": len(shared),
                "only_in_cohort": sorted(map(str, table.index.difference(other.index))),
                "only_in_file": len(other.index.difference(table.index)),
                "auc": [float(value) for value in by_delong.auc_M],
                "delong": {"difference": difference, "interval": listed(interval), "p": p},
                "bootstrap": {"difference": b_difference, "interval": listed(b_interval), "p": b_p},
                "calls": {
                    "sensitivity": _mcnemar(own[y] >= threshold, its[y] >= threshold),
                    "specificity": _mcnemar(own[~y] < threshold, its[~y] < threshold),
                },
            }
        )
    for key in ("delong", "bootstrap"):
        corrected = holm_of_known([one[key]["p"] for one in found])
        for one, p in zip(found, corrected, strict=True):
            one[key]["p_holm"] = p
    return found


def check_shared(table: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> None:
    """Checks that every file predicts enough of the patients.

    Args:
        table: index `patient_id`, `y`.
        others: by file, index `patient_id`.

    Raises:
        InputError: a file has fewer than two of a class's patients.
    """
    for path, other in others.items():
        y = table.loc[table.index.intersection(other.index), "y"].to_numpy(dtype=bool)
        if min(y.sum(), (~y).sum()) < 2:
            raise InputError(
                f"--against {path} has {len(y)} of the cohort's patients, {int(y.sum())} of them positive, but a "
                "comparison takes two of each class: give predictions of this cohort"
            )


def _mcnemar(own_right: np.ndarray, other_right: np.ndarray) -> dict[str, Any]:
    """Compares shares of rightly called patients by the exact test of those on whom the two differ."""
    better, worse = int((own_right & ~other_right).sum()), int((~own_right & other_right).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {
        "own": float(own_right.mean()),
        "other": float(other_right.mean()),
        "only_own_right": better,
        "only_other_right": worse,
        "p": p,
    }
