"""What the omics add: pairs of a model without and with omics, from the leaderboard of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.run.finished import read_finished
from momkd_ray.run.layout import RunDirectory
from momkd_ray.statistics.spread import interval_text


class Compared(Protocol):
    """A row of a leaderboard, as far as it says which model it is of."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def model(self) -> str:
        """Value of `model.name`."""

    @property
    def own(self) -> Mapping[str, Any]:
        """Values by dotted key in which it differs from the configuration."""

    @property
    def label_fraction(self) -> float:
        """Share of the labelled patients that it was trained with."""

    @property
    def omics_fraction(self) -> float:
        """Share of the omics that it was trained with."""

    @property
    def seeds(self) -> Sequence[int]:
        """Of its runs."""


Row = TypeVar("Row", bound=Compared)


def omics_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Finds the pairs of rows that differ in their omics alone, without and with; of several with, that of the most."""
    pairs = []
    for without in rows:
        partners = [
            row
            for row in rows
            if _beside_omics(row) == _beside_omics(without) and row.omics_fraction > without.omics_fraction == 0
        ]
        if partners:
            pairs.append((without, max(partners, key=lambda row: row.omics_fraction)))
    return pairs


def _beside_omics(row: Compared) -> tuple[Any, ...]:
    own = {key: value for key, value in row.own.items() if key != "omics.fraction"}
    return row.model, own, row.label_fraction, row.seeds


@dataclass(frozen=True)
class _Row:
    """A row of leaderboard.json with the figure that it is ranked by: the AUC or, of a number, Spearman's correlation.

    Attributes:
        measure: name of the figure.
        folds: its value of each seed (rows) and fold (columns).
        pooled, interval: of all patients, with its bootstrap interval.
        difference_interval: that of the difference to the reference; None for the reference itself. Both intervals are
            None if they have no width.
    """

    label: str
    model: str
    own: dict[str, Any]
    label_fraction: float
    omics_fraction: float
    seeds: tuple[int, ...]
    measure: str
    folds: list[list[float]]
    pooled: float
    interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True)
class OmicsGain:
    """How much the omics add to the metric, by a comparison.

    Attributes:
        source: directory of the comparison.
        header, rows: a line for each model that was trained without and with omics; no rows if there is none.
    """

    source: str
    header: tuple[str, ...]
    rows: list[list[str]]


def read_omics_gain(run_dir: str, compared: str | None) -> OmicsGain | None:
    """Reads what the omics add from the comparison in a directory.

    Args:
        run_dir: the run directory, which may hold a comparison, too.
        compared: the directory of a comparison that the user names.

    Returns:
        The pairs; None if no comparison is named and the run directory holds none.

    Raises:
        InputError: the named directory holds no leaderboard, or it is damaged.
    """
    directory = RunDirectory(compared or run_dir)
    if not storage.exists(directory.leaderboard):
        if compared is None:
            return None
        raise InputError(f"{compared} holds no leaderboard.json: name the run.dir of a finished momkd-ray compare")
    board = read_finished(directory, directory.leaderboard, _leaderboard)
    rows = [_gain(without, having, board[1]) for without, having in omics_pairs(board[0])]
    measure = board[0][0].measure if board[0] else "AUC"
    header = (
        "model",
        f"pooled {measure} without omics (95 % interval)",
        "with omics (95 % interval)",
        "difference (95 % interval)",
        f"folds with a higher {measure}",
    )
    return OmicsGain(directory.location, header, rows)


def _leaderboard(content: bytes) -> tuple[list[_Row], str]:
    try:
        tree = json.loads(content)
        rows = [_row(row) for row in tree["rows"]]
        return rows, str(tree["reference"])
    except (TypeError, IndexError) as error:
        raise ValueError(f"it is no leaderboard: {error}") from error


def _row(row: Mapping[str, Any]) -> _Row:
    number = row.get("scores")
    if number is None:
        measure, folds, own = "AUC", row["fold_aucs"], row
        interval = None if row["difference"] is None else row["difference"]["bootstrap_interval"]
    else:
        measure, own = "Spearman", number["spearman"]
        folds, interval = own["folds"], own["difference_interval"]
    return _Row(
        label=str(row["label"]),
        model=str(row["model"]),
        own=dict(row.get("own", {})),
        label_fraction=float(row["label_fraction"]),
        omics_fraction=float(row["omics_fraction"]),
        seeds=tuple(row["seeds"]),
        measure=measure,
        folds=folds,
        pooled=float(own["pooled"]),
        interval=_ends(own["interval"]),
        difference_interval=_ends(interval),
    )


def _ends(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (float(interval[0]), float(interval[1]))


def _gain(without: _Row, having: _Row, reference: str) -> list[str]:
    low, high = _difference_interval(without, having, reference)
    known = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
    folds = len(having.folds[0])
    better = sum(b > a for a, b in zip(_mean_of_seeds(without), _mean_of_seeds(having), strict=True))
    return [
        having.label if having.label != without.label else having.model,
        f"{without.pooled:.3f} ({interval_text(without.interval)})",
        f"{having.pooled:.3f} ({interval_text(having.interval)})",
        f"{having.pooled - without.pooled:+.3f}{known}",
        f"{better} of {folds}",
    ]


def _mean_of_seeds(row: _Row) -> list[float]:
    """Returns the figure of each fold."""
    return [sum(of_fold) / len(of_fold) for of_fold in zip(*row.folds, strict=True)]


def _difference_interval(without: _Row, having: _Row, reference: str) -> tuple[float | None, float | None]:
    """Returns the paired interval of the gain, which the comparison has if either row is its reference."""
    if having.difference_interval is not None and without.label == reference:
        return having.difference_interval
    if without.difference_interval is not None and having.label == reference:
        low, high = without.difference_interval
        return -high, -low
    return None, None
