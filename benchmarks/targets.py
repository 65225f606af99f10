"""What the slides of a cohort can learn from a better target: ridge regression on labels, teacher and true score.

The default network starts from this regression (docs/method.md §9). Here it is fitted, without training anything after
it, to the labels, to the cross-fitted teacher's probabilities and, with --score, to the number that the label was cut
from, which is more than any teacher knows. All are measured by the AUC of the label.

python benchmarks/targets.py --config run.yaml [--score ODX_SCORE] [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from table import machine, print_table

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.folds import make_folds
from momkd_ray.cohort.genes import fit_genes
from momkd_ray.cohort.table_files import read_table
from momkd_ray.config.load import Config, load_config
from momkd_ray.crossval.teacher import cross_fitted_targets
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.model.ridge import fit_ridge
from momkd_ray.model.tissue_components import fit_components, pool_by_component
from momkd_ray.seeds import derive_seed
from momkd_ray.train.component_init import scale_of_pooled

SAMPLED_PATCHES = 10_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--score", help="column of the clinical table with the number behind the label")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = arguments.parse_args()
    config = load_config(options.config)
    cohort = load_cohort(config)
    assert len(cohort.classes) == 2, "two classes"
    bags = read_bags(cohort)
    score = None if options.score is None else read_score(config, cohort, options.score)
    plan = make_folds(config, cohort)
    fold_N = plan.table.loc[list(bags), "fold"].to_numpy()  # in which each patient is tested
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in options.seeds:
        for fold in plan.folds:
            learning_N = fold_N != fold
            for name, auc in evaluate(config, cohort, bags, score, learning_N, ~learning_N, seed):
                rows.setdefault(name, {}).setdefault("test", []).append(auc)
            for inner in (other for other in plan.folds if other != fold):
                for name, auc in evaluate(
                    config, cohort, bags, score, learning_N & (fold_N != inner), fold_N == inner, seed
                ):
                    rows[name].setdefault("inner", []).append(auc)
    print(machine())
    table = [[name, f"{np.mean(own['inner']):.3f}", f"{np.mean(own['test']):.3f}"] for name, own in rows.items()]
    title = f"{len(bags)} patients, {len(plan.folds)} folds, seeds {' '.join(map(str, options.seeds))}: mean AUC"
    print_table(title, ["the ridge regression learns", "inner validation", "test"], table)


def read_bags(cohort: Cohort) -> dict[str, np.ndarray]:
    """Reads the features of every patient's slides together (P, D)."""
    return {
        str(patient): np.concatenate(
            [read_bag(s.path, s.slide_id, Recipe(graph="none")).features.astype(np.float32) for s in own.itertuples()]
        )
        for patient, own in cohort.slides.groupby("patient_id", sort=True)
    }


def read_score(config: Config, cohort: Cohort, column: str) -> pd.Series:
    """Reads a number of every patient of the cohort from the clinical table."""
    table = read_table(config.cohort.clinical).set_index(cohort.patient_column)
    return table.loc[cohort.patients.index, column].astype(float)


def evaluate(
    config: Config,
    cohort: Cohort,
    bags: dict[str, np.ndarray],
    score: pd.Series | None,
    learning_N: np.ndarray,
    tested_N: np.ndarray,
    seed: int,
) -> Iterator[tuple[str, float]]:
    """Yields the AUC on the tested patients of each target, learnt from the learning ones."""
    patients = np.array(list(bags))
    learning, tested = patients[learning_N], patients[tested_N]
    x_NF, z_NF = pooled([bags[p] for p in learning], [bags[p] for p in tested], config, seed)
    y = cohort.patients["y"]
    labels = y[learning].to_numpy(float)
    targets = {"the labels": labels, "the teacher, as by default": teacher(config, cohort, learning, seed)}
    targets["half the teacher, half the label"] = (labels + targets["the teacher, as by default"]) / 2
    if score is not None:
        own = score[learning].to_numpy()
        # as a probability whose log-odds are the score, at the spread that the regression bounds log-odds to
        targets[f"{score.name}, which decides the label"] = 1 / (1 + np.exp(-1.5 * (own - own.mean()) / own.std()))
    for name, target_N in targets.items():
        yield name, float(roc_auc_score(y[tested].to_numpy(), z_NF @ fit_ridge(x_NF, target_N).weight_F))


def pooled(
    learning: list[np.ndarray], tested: list[np.ndarray], config: Config, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pools bags by tissue component, scaled on the learning ones, as the default network does (N, K D) each."""
    rng = np.random.default_rng(derive_seed("targets", seed))
    each = -(-SAMPLED_PATCHES // len(learning))
    sample_ND = np.concatenate([bag[rng.choice(len(bag), min(len(bag), each), replace=False)] for bag in learning])
    fitted = fit_components(sample_ND.astype(np.float64), config.memory.components, seed)
    direction_DJ, centre_KJ = torch.from_numpy(fitted.direction_DJ).float(), torch.from_numpy(fitted.centre_KJ).float()

    def pool(bags: list[np.ndarray]) -> np.ndarray:
        features_PD = torch.from_numpy(np.concatenate(bags))
        point_PJ = features_PD @ direction_DJ - torch.from_numpy(fitted.offset_J).float()
        sizes = [len(bag) for bag in bags]
        pooled_NKD, _ = pool_by_component(features_PD, sizes, point_PJ, centre_KJ, config.model.pooling_temperature)
        return pooled_NKD.double().numpy()

    learning_NKD, tested_NKD = pool(learning), pool(tested)
    mean_KD, scale_KD = scale_of_pooled(learning_NKD)
    x_NKD, z_NKD = (learning_NKD - mean_KD) / scale_KD, (tested_NKD - mean_KD) / scale_KD
    return x_NKD.reshape(len(x_NKD), -1), z_NKD.reshape(len(z_NKD), -1)


def teacher(config: Config, cohort: Cohort, learning: np.ndarray, seed: int) -> np.ndarray:
    """Returns the learning patients' targets by the cross-fitted teacher; the label without omics."""
    assert cohort.omics is not None, "omics"
    omics = cohort.omics.loc[cohort.omics.index.isin(learning)]
    y = cohort.patients["y"]
    every_gene = config.genes.model_copy(update={"select": "all"})
    transform = fit_genes(omics, y[omics.index].to_numpy(), every_gene, config.folds.seed, cohort.gene_families)
    found = cross_fitted_targets(omics, y[omics.index].to_numpy(), transform, derive_seed("teacher", seed, 0))
    return np.array([found.get(patient, float(y[patient])) for patient in learning])


if __name__ == "__main__":
    main()
