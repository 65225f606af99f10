"""What a worker is given to train one fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from momkd_ray.bags.shared_bags import BagSource
from momkd_ray.config.load import Config

ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class FoldTask:
    """All that a worker needs to train one fold."""

    config: Config
    fold: int
    bags: pd.DataFrame  # bag_id, slides, patient_id, y, role (train | val | test), patches; sorted by bag_id
    omics: dict[str, np.ndarray]  # patient -> (G,) float32, selected and scaled; training patients only
    genes: int
    width: int
    source: BagSource
    location: str  # the fold's folder in the run directory
    fingerprint: str  # of configuration, data and folds: a checkpoint of another is refused


@dataclass(frozen=True)
class RoleBags:
    """The bags of one role, as columns."""

    ids: list[str]
    slides: list[str]
    patients: list[str]
    y: list[int]
    patches: list[int]

    @classmethod
    def of(cls, bags: pd.DataFrame, role: str) -> RoleBags:
        """Those of a fold's bags that have this role."""
        own = bags[bags["role"] == role]
        return cls(*(own[name].tolist() for name in ("bag_id", "slides", "patient_id", "y", "patches")))
