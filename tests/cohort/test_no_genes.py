"""Columns that are no genes are found and named, and genes are not taken for such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.written_tables import config_for, fails

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.no_genes import Label, no_genes
from momkd_ray.config.load import Config

N = 30
Y = np.arange(N) % 2
PATIENTS = [f"P{i:02d}" for i in range(N)]


def genes(columns: int = 15, seed: int = 0) -> pd.DataFrame:
    values = np.clip(np.random.default_rng(seed).normal(5, 2, (N, columns)) + Y[:, None], 0, 14).astype(np.float32)
    return pd.DataFrame(values, index=PATIENTS, columns=[f"GENE{i}" for i in range(columns)])


def study(folder: Path, omics: pd.DataFrame, **settings: object) -> Config:
    label = np.where(Y, "positive", "negative")
    pd.DataFrame({"PATIENT": PATIENTS, "HER2": label}).to_csv(folder / "clinical.csv", index=False)
    slides = pd.DataFrame({"PATIENT": PATIENTS, "FILENAME": [f"{name}.h5" for name in PATIENTS]})
    slides.to_csv(folder / "slides.csv", index=False)
    omics.rename_axis("PATIENT").to_csv(folder / "omics.csv")
    return config_for(folder, cohort={"omics": str(folder / "omics.csv"), "label": "HER2"}, omics=settings)


def told(cohort: Cohort) -> str:
    return "\n".join(entry.sentence() for entry in cohort.understood)


RNG = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("AGE", RNG.integers(35, 85, N), "clinical fact"),
        ("age_at_diagnosis", RNG.integers(35, 85, N), "clinical fact"),
        ("OS_MONTHS", RNG.exponential(30, N), "clinical fact"),
        ("days_to_death", RNG.integers(10, 3000, N), "clinical fact"),
        ("Unnamed: 0", np.arange(N), "counts the rows"),
        ("nr", np.arange(N), "counts the rows"),
        ("nr", RNG.permutation(N) + 1, "counts the rows"),
        ("X", np.arange(1, N + 1), "counts the rows"),
        ("patient_number", RNG.integers(10**5, 10**6, N), "identifier"),
        ("sample_id", RNG.integers(10**5, 10**6, N), "identifier"),
        ("taken", RNG.integers(1, 28, N) + 20190500, "dates"),
        ("biopsy_date", ["2019-05-03"] * N, "is a date by its name"),
        ("HER2", Y, "name of the label"),
        ("HER2", np.where(Y, "positive", "negative"), "name of the label"),
        ("target_copy", Y, "copy of the label 'HER2'"),
        ("target_copy", 1 - Y, "copy of the label 'HER2'"),
        ("target_copy", Y * 3.5 + 1, "copy of the label 'HER2'"),
        ("zone", ["II"] * N, "holds text such as 'II'"),
    ],
)
def test_a_column_that_is_no_gene_is_left_out_and_named(tmp_path: Path, name: str, values: object, said: str) -> None:
    table = genes()
    config = study(tmp_path, table.assign(**{name: values}))
    cohort = load_cohort(config)
    assert cohort.omics is not None
    assert cohort.omics.columns.tolist() == table.columns.tolist()
    assert f"'{name}'" in told(cohort)
    assert said in told(cohort)
    plain = load_cohort(study(tmp_path, table))
    assert cohort.fingerprint() == plain.fingerprint()
    assert "no gene" not in told(plain)


def test_what_looks_like_no_gene_can_be_kept(tmp_path: Path) -> None:
    table = genes().assign(AGE=RNG.integers(35, 85, N))
    cohort = load_cohort(study(tmp_path, table, keep=["AGE"]))
    assert cohort.omics is not None
    assert cohort.omics.columns.tolist() == table.columns.tolist()
    scales = {family.name: family.scale for family in cohort.gene_families or ()}
    assert scales == {"": "logarithms", "omics.keep": "counts"}


def test_columns_without_the_mark_of_the_others_are_left_out(tmp_path: Path) -> None:
    table = genes().rename(columns="{}_rnaseq".format).assign(weird_score=RNG.normal(size=N))
    cohort = load_cohort(study(tmp_path, table))
    assert "'weird_score' lacks the mark of the other columns" in told(cohort)


def test_a_setting_that_names_nothing_is_refused(tmp_path: Path) -> None:
    fails(study(tmp_path, genes(), leave_out=["GENE77"]), "omics.leave_out names 'GENE77'", "did you mean 'GENE7'")
    fails(study(tmp_path, genes(), keep=["AGE"]), "omics.keep names 'AGE'")
    cohort = load_cohort(study(tmp_path, genes(), leave_out=["GENE1", "GENE1?"]))
    assert cohort.omics is not None
    assert cohort.omics.columns.tolist() == ["GENE0", *(f"GENE{i}" for i in range(2, 10))]
    assert "6 columns are left out by omics.leave_out" in told(cohort)


def test_a_table_of_nothing_but_clinical_facts_is_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"AGE": RNG.integers(35, 85, N), "OS_MONTHS": RNG.exponential(30, N)}, index=PATIENTS)
    fails(study(tmp_path, table), "has no gene columns", "'AGE'")


SYMBOLS = (
    "SET IDS OSM OS9 AGER STAG2 KIT MAX TARDBP DAXX SEXX GRB2 RACK1 EVI1 CASP3 SITX ALIVEX HAS1 HAS2 IDH1 MSI1 MSI2"
)


@given(st.integers(0, 10_000))
def test_genes_are_taken_for_nothing_else(seed: int) -> None:
    names = SYMBOLS.split()
    rng = np.random.default_rng(seed)
    label = Label("HER2", {p: str(y) for p, y in zip(PATIENTS, Y, strict=True)})
    for values in (
        rng.normal(5, 2, (N, len(names))),
        rng.integers(0, 2, (N, len(names))),
        rng.negative_binomial(2, 0.02, (N, len(names))),
    ):
        assert no_genes(pd.DataFrame(values, index=PATIENTS, columns=names), frozenset(), label) == {}
