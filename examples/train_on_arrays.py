"""Trains one fold on NumPy arrays, without any input file: python examples/train_on_arrays.py [FOLDER]

The arrays are random here, with a shift between the classes. Replace `random_slide` by your own features and
coordinates, and `omics` by your own expression values. Checkpoints, metrics and predictions are written to the folder.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import pandas as pd

from momkd_ray import Config, storage
from momkd_ray.crossval.evaluate import evaluate_fold
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker

PATIENTS, PATCHES, WIDTH, GENES = 40, 60, 32, 12


def random_slide(slide_id: str, y: int, rng: np.random.Generator) -> Bag:
    """A slide as a bag: features (P, D), patch coordinates (P, 2) and the graph of nearest neighbours."""
    features_PD = rng.normal(0.3 * y, 1.0, (PATCHES, WIDTH)).astype(np.float32)
    coords_P2 = 256 * np.stack(np.divmod(np.arange(PATCHES), 8), axis=1).astype(np.int32)
    edge_indptr, edge_indices = knn_graph(coords_P2, 8)
    return Bag(slide_id, features_PD, coords_P2, edge_indptr, edge_indices, {})


class Slides(dict[str, Bag]):
    """The bags by slide; the workers read from it."""

    def read(self, bag_id: str) -> Bag:
        """Returns the bag of a slide."""
        return self[bag_id]


def main(folder: str) -> float:
    """Trains and tests the fold; returns the test AUC."""
    rng = np.random.default_rng(1)
    names = [f"P{i:02}" for i in range(PATIENTS)]
    labels = dict(zip(names, np.arange(PATIENTS) % 2, strict=True))
    slides = Slides({name: random_slide(name, y, rng) for name, y in labels.items()})
    omics = {name: rng.normal(labels[name], 1.0, GENES).astype(np.float32) for name in names}

    roles = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
    bags = pd.DataFrame({"bag_id": names, "slides": names, "patient_id": names, "y": labels.values(), "role": roles})
    bags["patches"] = PATCHES
    config = Config.model_validate(
        {
            # the tables' and files' names are not used: the task below has the arrays
            "cohort": {"clinical": "unused", "label": "demo", "negative": "negative", "positive": "positive"},
            "features": {"dir": "unused"},
            "model": {"hidden": 32, "shared": 16, "omics_hidden": 32, "omics_embedding": 16, "classifier_hidden": 16},
            "memory": {"components": 4},
            "train": {"epochs": 8, "lr": 1e-3, "bags_per_step": 4},
            "run": {"dir": folder},
        }
    )
    task = FoldTask(
        config=config,
        fold=0,
        bags=bags,
        omics={name: omics[name] for name, role in zip(names, roles, strict=True) if role == "train"},
        genes=GENES,
        width=WIDTH,
        source=slides,
        location=f"{folder}/fold=0",
        fingerprint="example",
    )
    end = train_loop_per_worker({"task": task, "report": lambda metrics: print(f"AUC {metrics['val_auc']:.3f}")})
    assert end is not None
    val, test = (storage.read_table(task.directory.slides(role)) for role in ("val", "test"))
    result, predictions = evaluate_fold(0, val, test, ("negative", "positive"), 24, end["best_epoch"])
    print(predictions.to_string(index=False))
    print(f"test AUC {result.test_scores['auc']:.3f} with the weights of epoch {result.best_epoch}")
    return result.test_scores["auc"]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
