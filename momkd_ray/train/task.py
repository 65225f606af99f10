"""`FoldTask`: all that a worker needs to train one fold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from momkd_ray.bags.shared_bags import BagSource
from momkd_ray.config.load import Config
from momkd_ray.run.layout import FoldDirectory

Target = float | tuple[float, ...]
"""What a bag is trained towards: the probability of class 1 or, of more than two classes, those of all."""


@dataclass(frozen=True)
class FoldTask:
    """The configuration, bags and omics of one fold.

    Attributes:
        config: the resolved configuration.
        fold: number of the fold.
        bags: `bag_id, slides, patient_id, y, role (train | val | test), patches`, sorted by `bag_id`;
            of a regression the `number`, too.
        omics: patient -> (G,) float32, selected and scaled; training patients only.
        genes: G.
        width: D.
        source: hands out bags by identifier.
        location: the fold's folder in the run directory.
        fingerprint: of configuration, data and folds; a checkpoint with another fingerprint is refused.
        setting: number of the search's setting; 0 without a search.
        targets: patient -> what its bags are trained towards, where it is not the label.
    """

    config: Config
    fold: int
    bags: pd.DataFrame
    omics: dict[str, np.ndarray]
    genes: int
    width: int
    source: BagSource
    location: str
    fingerprint: str
    setting: int = 0
    targets: dict[str, Target] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Y, the number of classes."""
        return len(self.config.cohort.class_names)

    @property
    def directory(self) -> FoldDirectory:
        """The files of the fold."""
        return FoldDirectory(self.location)


@dataclass(frozen=True)
class RoleBags:
    """The bags of one role (train, val or test), as parallel lists."""

    ids: list[str]
    slides: list[str]
    patients: list[str]
    y: list[int]
    patches: list[int]

    @classmethod
    def of(cls, bags: pd.DataFrame, role: str) -> RoleBags:
        """Selects the bags of a role from the fold's table."""
        own = bags[bags["role"] == role]
        return cls(*(own[name].tolist() for name in ("bag_id", "slides", "patient_id", "y", "patches")))
