"""Where distillation pays: models on generated cohorts whose signal, noise and omics are stated.

    python benchmarks/truth.py --out truth                 # one factor at a time, every model, three seeds; resumes
    python benchmarks/truth.py --out truth --seeds 1 2 3 4 5 --only patients missing
    python benchmarks/truth.py --out truth --table         # only prints what is there

A patient has a biology t ~ N(0, 1). The label is t > 0, of which a share is wrong in training (`label_noise`), never
in the test. A fifth of the genes carry t, the rest are noise: gene = `omics` * t + N(0, 1). A share of the training
patients has none (`missing`). A slide has 24 patches in four kinds of tissue; a share is `background`, and in one of
the kinds the features shift by `histology` * (t + N(0, 1)) along two directions. 1,000 test patients have neither noise
nor omics, so the standard error of an AUC is about .015 a seed, and differences are of the same patients. All models
have one recipe, the default's (20 epochs, 32 bags a step, one cycle), and choose nothing on the test patients.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from generated_cohort import config_of
from published import published
from sklearn.metrics import roc_auc_score
from table import machine, print_table

from momkd_ray import storage
from momkd_ray.cohort.genes import fit_genes
from momkd_ray.config.load import Config
from momkd_ray.crossval.teacher import cross_fitted_targets
from momkd_ray.formats.bag import Bag
from momkd_ray.model.registry import model_class
from momkd_ray.seeds import derive_seed
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker

PATCHES, WIDTH, GENES, KINDS = 24, 32, 60, 4
VALIDATED, TESTED = 40, 1000


@dataclass(frozen=True)
class Truth:
    """The amounts of a generated cohort."""

    histology: float = 0.5
    omics: float = 0.5
    label_noise: float = 0.1
    patients: int = 200
    missing: float = 0.0
    background: float = 0.5


FACTORS: dict[str, tuple[Any, ...]] = {
    "histology": (0.25, 1.0),
    "omics": (0.1, 1.0),
    "label_noise": (0.0, 0.25),
    "patients": (60, 600),
    "missing": (0.5, 0.9),
    "background": (0.0, 0.85),
}
_PUBLISHED = published()
MODELS: dict[str, dict[str, Any]] = {
    "momkd": {},
    "momkd, no omics": {"omics.fraction": 0},
    "published network": {
        "model.pooling": "attention",
        "omics.teacher": "none",
        **{f"loss.{name}": value for name, value in _PUBLISHED["loss"].items()},
    },
    "published, no omics": {"model.pooling": "attention", "omics.fraction": 0},
    "batch_alignment": {"model.name": "batch_alignment"},
    "soft_labels": {"model.name": "soft_labels"},
    "gated_abmil": {"model.name": "gated_abmil"},
    "mean_pool": {"model.name": "mean_pool"},
    "omics_only": {"model.name": "omics_only"},
}


@dataclass(frozen=True)
class Bags:
    """The slides of a cohort, made from the patient's biology when they are read."""

    truth: Truth
    t: dict[str, float]
    seed: int

    def read(self, slide_id: str) -> Bag:
        world = np.random.default_rng(0)
        directions_2D = np.linalg.qr(world.standard_normal((WIDTH, 2)))[0].T
        kinds_KD = 2 * world.standard_normal((KINDS + 1, WIDTH)) / np.sqrt(WIDTH) * np.sqrt(4)
        rng = np.random.default_rng(derive_seed("slide", self.seed, slide_id) % 2**63)
        kind_P = rng.integers(KINDS, size=PATCHES)
        kind_P[rng.random(PATCHES) < self.truth.background] = KINDS
        features_PD = kinds_KD[kind_P] + rng.standard_normal((PATCHES, WIDTH))
        shift_P = self.truth.histology * (self.t[slide_id] + rng.standard_normal()) * (kind_P == 0)
        features_PD += 2 * shift_P[:, None] * directions_2D.sum(0)
        indptr = np.zeros(PATCHES + 1, np.int32)
        return Bag(slide_id, features_PD.astype(np.float32), None, indptr, np.zeros(0, np.int32), {})


def fold_of(truth: Truth, settings: dict[str, Any], seed: int, folder: Path) -> FoldTask:
    """Returns the fold of one model on one cohort."""
    tree = config_of(folder, train={"refit": False, "precision": "fp32"}, model={"hidden": 64})
    cohort = {"clinical": "none.csv", "slides": "none.csv", "omics": "none.csv", "label": "LABEL"}
    config = Config.model_validate(tree | {"cohort": cohort})
    config = config.with_settings({**settings, "train.seed": seed})
    rng = np.random.default_rng([seed, 1])
    counts = {"train": truth.patients, "val": VALIDATED, "test": TESTED}
    names = [f"{role}-{i:04d}" for role, count in counts.items() for i in range(count)]
    t_N = rng.standard_normal(len(names))
    y_N = (t_N > 0).astype(int)
    wrong_N = (rng.random(len(names)) < truth.label_noise) & np.array([n.startswith("train") for n in names])
    roles = [name.split("-")[0] for name in names]
    bags = pd.DataFrame({"bag_id": names, "slides": names, "patient_id": names, "y": np.where(wrong_N, 1 - y_N, y_N)})
    bags = bags.assign(role=roles, patches=PATCHES).sort_values("bag_id").reset_index(drop=True)
    genes_NG = rng.standard_normal((len(names), GENES))
    genes_NG[:, : GENES // 5] += truth.omics * t_N[:, None]
    omics = pd.DataFrame(genes_NG, index=names, columns=[f"G{i}" for i in range(GENES)])
    chosen = model_class(config.model)
    having = [n for n in names if n.startswith("train")][: max(10, round((1 - truth.missing) * truth.patients))]
    vectors, targets, width = {}, {}, 0
    if chosen.uses_omics and config.omics.fraction > 0:
        train = omics.loc[having]
        y_train = bags.set_index("patient_id")["y"].loc[having].to_numpy()
        transform = fit_genes(train, y_train, config.genes.model_copy(update={"select": "all"}), 1)
        shown = omics if chosen.needs_omics_to_predict else train
        vectors, width = dict(zip(shown.index, transform.apply(shown), strict=True)), len(transform.genes)
        if chosen.uses_teacher and config.omics.teacher == "cross_fitted":
            targets = cross_fitted_targets(train, y_train, transform, derive_seed("teacher", seed))
    source = Bags(truth, dict(zip(names, t_N.tolist(), strict=True)), seed)
    return FoldTask(
        config=config, fold=0, bags=bags, omics=vectors, genes=width, width=WIDTH, source=source,
        location=str(folder / "fold"), fingerprint="truth", targets=targets,
    )  # fmt: skip


def test_auc(truth: Truth, settings: dict[str, Any], seed: int) -> float:
    """Trains one model on one cohort and returns its AUC on the test patients."""
    folder = Path(tempfile.mkdtemp())
    try:
        task = fold_of(truth, settings, seed, folder)
        train_loop_per_worker({"task": task})
        predicted = storage.read_table(task.directory.slides("test"))
        y_N = task.bags.set_index("patient_id")["y"].loc[predicted["patient_id"]]
        return float(roc_auc_score(y_N, predicted.iloc[:, -1]))
    finally:
        shutil.rmtree(folder)


def conditions(only: Sequence[str]) -> Iterator[tuple[str, Truth]]:
    yield "base", Truth()
    for factor, values in FACTORS.items():
        if not only or factor in only:
            for value in values:
                yield f"{factor} {value:g}", replace(Truth(), **{factor: value})


def show(results: list[dict[str, Any]]) -> None:
    """Prints the mean AUCs, and paired differences over seeds."""
    table = pd.DataFrame(results)
    pivot = table.pivot_table(index=["condition", "seed"], columns="model", values="auc")
    mean = pivot.groupby("condition", sort=False).mean()
    names = [name for name in MODELS if name in mean.columns]
    order = [name for name, _ in conditions(()) if name in mean.index]
    rows = [[name, *(f"{mean.loc[name, model]:.3f}" for model in names)] for name in order]
    print_table(f"Test AUC, mean over {table['seed'].nunique()} seeds", ["cohort", *names], rows)
    pairs = (
        ("momkd", "momkd, no omics"),
        ("published network", "published, no omics"),
        ("published network", "batch_alignment"),
        ("published network", "soft_labels"),
        ("momkd", "batch_alignment"),
        ("momkd", "soft_labels"),
    )
    pairs = tuple(pair for pair in pairs if {*pair} <= {*names})
    rows = []
    for name in order:
        own = pivot.loc[name]
        differences = [own[a] - own[b] for a, b in pairs]
        rows.append([name, *(f"{d.mean():+.3f} ± {d.std(ddof=1) / len(d) ** 0.5:.3f}" for d in differences)])
    header = ["cohort", *(f"{a} - {b}" for a, b in pairs)]
    print_table("Differences: mean ± standard error over seeds", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("truth"), help="folder of results.jsonl; it is gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[], choices=list(FACTORS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(r["condition"], r["model"], r["seed"]) for r in results}
    for seed in options.seeds if not options.table else []:
        for condition, truth in conditions(options.only):
            for model in options.models:
                if (condition, model, seed) in done:
                    continue
                auc = test_auc(truth, MODELS[model], seed)
                results.append({"condition": condition, "model": model, "seed": seed, "auc": auc})
                with log.open("a") as stream:
                    stream.write(json.dumps(results[-1]) + "\n")
    print(machine())
    show(results)


if __name__ == "__main__":
    main()
