"""A small fold whose bags are computed from their names, for tests of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from momkd_ray.config.load import Config
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.run.layout import FoldDirectory
from momkd_ray.train.checkpoints import Checkpoints
from momkd_ray.train.task import FoldTask

WIDTH, GENES = 12, 6

PUBLISHED = yaml.safe_load((Path(__file__).parents[2] / "jobs" / "configs" / "published.yaml").read_text())


@dataclass(frozen=True)
class GeneratedBags:
    """Bags computed from the slide's name."""

    def read(self, slide_id: str) -> Bag:
        rng = np.random.default_rng(int(slide_id.removeprefix("slide-")))
        patches = int(rng.integers(1, 40))
        coords = rng.permutation(400)[:patches, None] // np.array([[1, 20]]) % 20
        indptr, indices = knn_graph(coords, 8)
        shift = 0.5 * (int(slide_id[-1]) % 2)
        features = rng.standard_normal((patches, WIDTH), dtype=np.float32) + np.float32(shift)
        return Bag(slide_id, features, coords.astype(np.int32), indptr, indices, {})


def fold_task(location: Path, *, omics: bool = True, classes: int = 2, **train: Any) -> FoldTask:
    """14 training slides (steps of 4 leave a last one of 2), 6 to validate, 6 to test; a third without omics."""
    config = Config.model_validate(
        {
            "cohort": {"clinical": "c.csv", "slides": "s.csv", "label": "PR"}
            | ({"classes": [f"grade {y}" for y in range(classes)]} if classes > 2 else {}),
            "features": {"dir": "features"},
            "model": {
                "pooling": train.pop("pooling", "attention"),
                "hidden": 16,
                "shared": 8,
                "dropout": train.pop("dropout", 0.0),
                "omics_hidden": 10,
                "omics_embedding": 10,
                "omics_dropout": 0.0,
                "classifier_hidden": 8,
            },
            "memory": {
                "components": 4,
                "rule": train.pop("rule", "ema"),
                "init_patches": 60,
                "momentum": 0.8,
                "reseed": 0.3,
            },
            "loss": PUBLISHED["loss"],
            "train": PUBLISHED["train"]
            | {"bags_per_step": 4, "epochs": 3, "patience": 5, "patches_per_pass": 50, "precision": "fp32"}
            | train,
            "run": {"dir": str(location)},
        }
    )
    ids = [f"slide-{i:02d}" for i in range(26)]
    bags = pd.DataFrame(
        {
            "bag_id": ids,
            "slides": ids,
            "patient_id": [f"P{i:02d}" for i in range(26)],
            "y": [i % classes for i in range(26)],
            "role": ["train"] * 14 + ["val"] * 6 + ["test"] * 6,
            "patches": [GeneratedBags().read(s).n_patches for s in ids],
        }
    )
    genes = {
        p: np.random.default_rng(i).standard_normal(GENES).astype(np.float32) + i % 2
        for i, p in enumerate(bags["patient_id"][:14])
        if i % 3
    }
    return FoldTask(
        config=config,
        fold=0,
        bags=bags,
        omics=genes if omics else {},
        genes=GENES if omics else 0,
        width=WIDTH,
        source=GeneratedBags(),
        location=str(location),
        fingerprint="same",
    )


def state_of(location: Path) -> dict[str, Any]:
    """The newest checkpoint of a fold."""
    checkpoints = Checkpoints(FoldDirectory(str(location)).checkpoints, "same")
    name = checkpoints.newest()
    assert name is not None
    return checkpoints.read(name)
