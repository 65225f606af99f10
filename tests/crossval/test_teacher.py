"""The cross-fitted teacher: no patient's target depends on the patient's own label."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.config.sections import GenesConfig
from momkd_ray.crossval.teacher import cross_fitted_targets


def cohort(signal: float, patients: int = 80, genes: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    y_N = np.arange(patients) % 2
    values_NG = rng.standard_normal((patients, genes))
    values_NG[:, :20] += signal * y_N[:, None]
    return pd.DataFrame(values_NG, [f"P{i}" for i in range(patients)], [f"G{i}" for i in range(genes)]), y_N


def every_gene(omics: pd.DataFrame, y_N: np.ndarray) -> GeneTransform:
    return fit_genes(omics, y_N, GenesConfig(select="all"), 1)


def test_informative_genes_teach_and_noise_does_not_repeat_the_labels() -> None:
    for signal, low, high in ((1.5, 0.9, 1.0), (0.0, 0.2, 0.75)):
        omics, y_N = cohort(signal)
        targets = cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)
        assert list(targets) == list(omics.index)
        assert low < roc_auc_score(y_N, list(targets.values())) <= high


def test_a_patients_target_comes_from_a_model_that_never_saw_its_label() -> None:
    """With one patient a class in each split, each target follows from the others' labels alone."""
    omics, y_N = cohort(1.5, patients=10)
    before = cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)
    assert all(0 < p < 1 for p in before.values())
    assert before == cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)


@pytest.mark.parametrize("positives", [0, 1])
def test_without_two_patients_of_each_class_there_is_no_teacher(positives: int) -> None:
    omics, _ = cohort(1.0, patients=12)
    y_N = (np.arange(12) < positives).astype(int)
    transform = every_gene(omics, np.arange(12) % 2)
    assert cross_fitted_targets(omics, y_N, transform, seed=3) == {}
