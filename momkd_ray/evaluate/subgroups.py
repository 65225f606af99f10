"""Discrimination and decisions in subgroups of patients, and whether they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import MISSING
from momkd_ray.evaluate.decisions import counts_of, plain
from momkd_ray.evaluate.options import Subgroups
from momkd_ray.statistics.delong import NO_VARIANCE, delong
from momkd_ray.statistics.heterogeneity import cochran
from momkd_ray.statistics.holm import holm
from momkd_ray.statistics.proportions import proportion

MOST_LEVELS = 20  # of a column of text; more are no subgroups but names
FEW_VALUES = 5  # a numeric column with no more distinct values is taken as it is: stages, grades


def levels_of(values: pd.Series[Any], asked: Subgroups) -> tuple[list[str], pd.Series[Any]]:
    """Divides patients into the levels of a column.

    A column of numbers is cut at the given values, or into tertiles if it has more than five distinct ones. Blank cells
    are a level of their own.

    Returns:
        The levels in order, and each patient's.

    Raises:
        InputError: cuts are given for text, all cells are blank, or there are too many levels.
    """
    present = values != MISSING
    numbers = pd.to_numeric(values.where(present), errors="coerce")
    numeric = bool(present.any()) and bool(numbers[present].notna().all())
    name = asked.column
    if not present.any():
        raise InputError(f"--subgroups {name}: the cells of all evaluated patients are blank: name another column")
    if asked.cuts is not None and not numeric:
        text = values[present & numbers.isna()].iloc[0]
        raise InputError(f"--subgroups {name}: it is cut at numbers, but a patient has '{text}': give no cuts for text")
    if numeric and (asked.cuts is not None or numbers.nunique() > FEW_VALUES):
        cuts = asked.cuts or tuple(dict.fromkeys(numbers.quantile([1 / 3, 2 / 3], interpolation="higher").tolist()))
        names = _intervals(cuts)
        place = np.searchsorted(cuts, numbers.to_numpy(), side="right")
        levels = pd.Series(np.where(present, np.array(names, dtype=object)[place], MISSING), index=values.index)
        order = names
    else:
        levels = values.astype(object)
        order = sorted(set(values[present].tolist()), key=lambda v: (float(v), v) if numeric else (0.0, str(v)))
        if len(order) > MOST_LEVELS:
            raise InputError(
                f"--subgroups {name}: it has {len(order)} different values, more than {MOST_LEVELS}: group them first"
            )
    order = [level for level in order if (levels == level).any()]
    return order + ([MISSING] if not present.all() else []), levels


def _intervals(cuts: Sequence[float]) -> list[str]:
    shown = [f"{cut:g}" for cut in cuts]
    middle = [f"{low} to below {high}" for low, high in pairwise(shown)]
    return [f"below {shown[0]}", *middle, f"{shown[-1]} or more"]


def compare_subgroups(
    table: pd.DataFrame, probability: str, threshold: float, asked: Sequence[Subgroups]
) -> list[dict[str, Any]]:
    """Evaluates every level of every column, and tests whether the levels' AUCs differ.

    The test is Cochran's Q of the levels' AUCs, weighted by DeLong's variance. Blank cells are not part of it, nor are
    levels without an AUC or with a variance of 0. Its p-values are corrected over the columns by Holm.

    Args:
        table: of the evaluated patients: `y`, `p` (uncorrected), the probability to average, the columns.
        probability: column whose mean is compared with the observed share.
        threshold: on `p`.
        asked: the columns.

    Returns:
        Of each column `column`, `cuts`, `levels`; `heterogeneity`, the test, None if fewer than two levels can be
        tested; and `not_tested`, the `level` and the `reason` of those that cannot.
    """
    found: list[dict[str, Any]] = []
    for one in asked:
        order, levels = levels_of(table[one.column], one)
        rows = [_level(table[levels == level], level, probability, threshold) for level in order]
        reasons = [_not_tested(row) for row in rows]
        tested = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        test = cochran([row["auc"]["value"] for row in tested], [row["auc"]["sd"] for row in tested])
        found.append(
            {
                "column": one.column,
                "cuts": None if one.cuts is None else list(one.cuts),
                "levels": rows,
                "heterogeneity": None if test is None else asdict(test),
                "not_tested": [
                    {"level": row["level"], "reason": reason}
                    for row, reason in zip(rows, reasons, strict=True)
                    if reason is not None
                ],
            }
        )
    tests = [one["heterogeneity"] for one in found if one["heterogeneity"] is not None]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return found


def _not_tested(row: dict[str, Any]) -> str | None:
    """Returns why a level is no part of the test of heterogeneity; None if it is."""
    if row["level"] == MISSING:
        return "the value of its patients is not known"
    if row["auc"]["value"] is None:
        return "it has fewer than two patients of a class"
    return None if row["auc"]["sd"] > 0 else f"{NO_VARIANCE} for its AUC of {row['auc']['value']:.3f}"


def _level(own: pd.DataFrame, level: str, probability: str, threshold: float) -> dict[str, Any]:
    y, p = own["y"].to_numpy(dtype=bool), own["p"].to_numpy(dtype=float)
    counts = counts_of(y, p >= threshold)
    auc: dict[str, Any] = {"value": None, "interval": None, "sd": None}
    if min(y.sum(), (~y).sum()) >= 2:
        result = delong(y, p)
        interval = result.interval(0)
        auc = {
            "value": float(result.auc_M[0]),
            "interval": None if interval is None else list(interval),
            "sd": result.sd(0),
        }
    return {
        "level": level,
        "patients": len(own),
        "positives": int(y.sum()),
        "auc": auc,
        "sensitivity": plain(proportion(counts.tp, counts.tp + counts.fn)),
        "specificity": plain(proportion(counts.tn, counts.tn + counts.fp)),
        "predicted": float(own[probability].mean()),
        "observed": plain(proportion(int(y.sum()), len(own))),
    }
