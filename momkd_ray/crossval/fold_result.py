"""`FoldResult`: what a fold's model reached on its validation and its test patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from momkd_ray.statistics.percentiles import listed


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold; counts are of patients.

    Attributes:
        threshold: on the probability of the positive class; None with more than two classes, where the likeliest class
            is predicted.
        epochs: number of epochs that were trained, without those of a refit; None in runs of earlier versions.
        device: on which the fold was trained: `CPU`, or the GPU's name.
        precision: of the matrix products: `fp32` or `bf16`.
        machines: the hardware of each worker (`describe_hardware`), equal ones once with their number as `workers`;
            after an interruption, of the last start.
    """

    fold: int
    threshold: float | None
    n_train: int
    n_val: int
    n_test: int
    best_epoch: int
    val_scores: dict[str, float]
    test_scores: dict[str, float]
    epochs: int | None = None
    device: str = ""
    precision: str = ""
    machines: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the values as a JSON file gives them back."""
        return asdict(self) | {"machines": [dict(machine) for machine in self.machines]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """Reads what `to_json` returned."""
        return cls(**value | {"machines": tuple(value.get("machines", ()))})


def summarise_metrics(
    names: Iterable[str],
    results: Sequence[FoldResult],
    pooled: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float] | None],
) -> dict[str, dict[str, Any]]:
    """Summarises each metric of the test patients over the folds.

    Args:
        names: of the metrics.
        results: sorted by fold.
        pooled: the metrics of all folds' test patients together.
        intervals: theirs; None of a metric that has none.

    Returns:
        For each metric `mean` and `sd` (of a sample, n - 1; None of one fold) over folds, `pooled`, `interval` and the
        `folds`' values.
    """
    summaries = {}
    for name in names:
        values = [result.test_scores[name] for result in results]
        summaries[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "pooled": pooled[name],
            "interval": listed(intervals[name]),
            "folds": values,
        }
    return summaries
