"""What a fold's bundle card says of its training and its results, for the model card."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from momkd_ray.crossval.fold_result import FoldResult
from momkd_ray.statistics.calibration import brier
from momkd_ray.statistics.delong import delong


def card_facts(
    result: FoldResult, bags: pd.DataFrame, tested: pd.DataFrame, classes: Sequence[str], *, balanced: bool
) -> dict[str, int | float]:
    """Collects numbers of patients, prevalence and metrics as flat entries of a card's `origin`.

    Args:
        result: of the fold.
        bags: `patient_id, role, y` of the bags that the kept model was trained with.
        tested: the test patients, `label` and `p_<class>`.
        classes: their names.
        balanced: whether classes were drawn equally often.

    Returns:
        `n_train, n_val, n_test, balanced`; `val_<metric>` and `test_<metric>` of every metric; with two classes also
        `train_prevalence`, `test_brier`, and by DeLong `test_auc_low, test_auc_high`, which takes two patients of each
        and a variance above 0.
    """
    training = bags[bags["role"] == "train"].drop_duplicates("patient_id")
    counts = {"n_train": len(training), "n_val": result.n_val, "n_test": result.n_test}
    facts: dict[str, int | float] = {**counts, "balanced": int(balanced)}
    for role, scores in (("val", result.val_scores), ("test", result.test_scores)):
        facts |= {f"{role}_{name}": float(value) for name, value in scores.items()}
    if len(classes) != 2:
        return facts
    y_N, p_N = (tested["label"] == classes[1]).to_numpy(), tested[f"p_{classes[1]}"].to_numpy(dtype=float)
    facts |= {"train_prevalence": float(training["y"].mean()), "test_brier": brier(y_N, p_N)}
    if min(y_N.sum(), (~y_N).sum()) >= 2:
        interval = delong(y_N, p_N).interval(0)
        facts |= {} if interval is None else {"test_auc_low": interval[0], "test_auc_high": interval[1]}
    return facts
