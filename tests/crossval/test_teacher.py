"""The cross-fitted teacher: no patient's target depends on the patient's own label."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.config.sections import GenesConfig
from momkd_ray.crossval.teacher import cross_fitted_targets, teacher_trust


def cohort(signal: float, patients: int = 80, genes: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    y_N = np.arange(patients) % 2
    values_NG = rng.standard_normal((patients, genes))
    values_NG[:, :20] += signal * y_N[:, None]
    return pd.DataFrame(values_NG, [f"P{i}" for i in range(patients)], [f"G{i}" for i in range(genes)]), y_N


def every_gene(omics: pd.DataFrame, y_N: np.ndarray) -> GeneTransform:
    return fit_genes(omics, y_N, GenesConfig(select="all"), 1)


def test_informative_genes_teach_and_noise_leaves_the_labels() -> None:
    for signal, least, most in ((1.5, 0.1, 1.0), (0.0, 0.0, 0.05)):
        omics, y_N = cohort(signal)
        targets = cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)
        assert list(targets) == list(omics.index)
        away_N = np.abs(np.array(list(targets.values())) - y_N)
        assert least <= away_N.mean() <= most
        assert roc_auc_score(y_N, list(targets.values())) > 0.9


@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_a_teacher_is_trusted_as_far_as_it_orders_patients(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y_N = rng.permutation(np.arange(400) % classes)
    perfect_NY = np.eye(classes)[y_N]
    assert teacher_trust(perfect_NY, y_N) == 1
    assert teacher_trust(1 - perfect_NY, y_N) == 0
    assert teacher_trust(np.full((400, classes), 1 / classes), y_N) == 0
    noise_NY = rng.dirichlet(np.ones(classes), 400)
    assert teacher_trust(noise_NY, y_N) < 0.5
    assert 0.25 < teacher_trust(0.5 * perfect_NY + 0.5 * noise_NY, y_N) <= 1


def test_a_patients_target_comes_from_a_model_that_never_saw_its_label() -> None:
    """With one patient a class in each split, each target follows from the others' labels alone."""
    omics, y_N = cohort(1.5, patients=10)
    before = cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)
    assert all(0 < abs(t - y) < 1 for t, y in zip(before.values(), y_N, strict=True))
    assert before == cross_fitted_targets(omics, y_N, every_gene(omics, y_N), seed=3)


@pytest.mark.parametrize("positives", [0, 1])
def test_without_two_patients_of_each_class_there_is_no_teacher(positives: int) -> None:
    omics, _ = cohort(1.0, patients=12)
    y_N = (np.arange(12) < positives).astype(int)
    transform = every_gene(omics, np.arange(12) % 2)
    assert cross_fitted_targets(omics, y_N, transform, seed=3) == {}
