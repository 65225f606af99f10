"""`FoldResult`: what a fold's model reached on its validation and its test patients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold; counts are of patients.

    Attributes:
        threshold: on the probability of the positive class; None with more than two classes, where the likeliest class
            is predicted.
        epochs: number of epochs that were trained, without those of a refit; None in runs of earlier versions.
        device: on which the fold was trained: `CPU`, or the GPU's name.
        precision: of the matrix products: `fp32` or `bf16`.
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

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """Reads what `to_json` returned."""
        return cls(**value)
