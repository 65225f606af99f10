"""Genes chosen and scaled on a fold's training patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from momkd_ray.cohort import genes
from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.config.sections import GenesConfig
from momkd_ray.errors import InputError


def expression(n: int = 60, genes: int = 40, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Counts in which genes 0 to 3 follow the label, and gene 5 does not vary."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    log = rng.normal(6, 1, (n, genes))
    log[:, :4] += 2.0 * y[:, None]
    log[:, 5] = 3
    names = [f"G{i:02d}" for i in range(genes)]
    return pd.DataFrame(np.exp2(log).astype(np.float32), columns=names, index=[f"P{i}" for i in range(n)]), y


@pytest.mark.parametrize("select", ["xgboost", "anova", "variance", "all"])
def test_training_values_come_out_standardised(select: str) -> None:
    omics, y = expression()
    transform = fit_genes(omics, y, GenesConfig(select=select, n=12), seed=1)
    scaled = transform.apply(omics)
    assert transform.log.all()
    assert len(transform.genes) == len(set(transform.genes)) == (39 if select == "all" else 12)
    assert "G05" not in transform.genes
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    assert np.isfinite(transform.importance).all()


@pytest.mark.parametrize("select", ["xgboost", "anova"])
def test_informative_genes_are_found_and_importance_falls(select: str) -> None:
    omics, y = expression(n=200)
    transform = fit_genes(omics, y, GenesConfig(select=select, n=30), seed=1)
    assert set(transform.genes[:3]) <= {"G00", "G01", "G02", "G03"}
    assert (np.diff(transform.importance) <= 0).all()


def test_the_number_of_threads_does_not_change_the_choice() -> None:
    from threadpoolctl import threadpool_limits

    omics, y = expression(n=150, genes=300)
    coarse = omics.round(-2)  # many splits are equally good
    for table in (omics, coarse):
        found = []
        for threads in (1, 2, 5):
            genes._GAINS.clear()
            with threadpool_limits(threads, user_api="openmp"):
                found.append(fit_genes(table, y, GenesConfig(n=100), seed=1))
        assert found[0].genes == found[1].genes == found[2].genes
        assert len({one.importance.tobytes() for one in found}) == 1


def test_gains_are_remembered_for_the_same_patients_classes_and_seed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    fit = genes._fit_xgboost
    monkeypatch.setattr(genes, "_GAINS", {})
    monkeypatch.setattr(genes, "_fit_xgboost", lambda *inputs: computed.append(inputs) or fit(*inputs))
    omics, y = expression(n=30)
    others = omics.copy()
    others.iloc[0, 0] += 1
    asked = [(omics, y, 10, 1), (omics, y, 20, 1), (omics, y, 10, 2), (omics, 1 - y, 10, 1), (others, y, 10, 1)]
    for table, classes, n, seed in [*asked, *asked]:
        found = fit_genes(table, classes, GenesConfig(n=n), seed)
        found.importance[:] = -1  # what a caller does with it is no concern of the next one
    assert len(computed) == 4
    assert fit_genes(omics, y, GenesConfig(n=10), 1).importance.min() >= 0
    monkeypatch.setattr(genes, "MOST_GAINS", 2)
    for seed in range(5):
        fit_genes(omics, y, GenesConfig(n=10), seed)
    assert len(genes._GAINS) == 2


def test_genes_xgboost_leaves_at_zero_are_filled_by_anova_and_said() -> None:
    omics, y = expression(n=24)
    transform = fit_genes(omics, y, GenesConfig(select="xgboost", n=39), seed=1)
    by_anova = fit_genes(omics, y, GenesConfig(select="anova", n=39), seed=1).genes
    filled = [gene for gene, value in zip(transform.genes, transform.importance, strict=True) if value == 0]
    assert len(filled) > 0
    assert filled == [gene for gene in by_anova if gene in filled]
    assert f"of which {len(filled)} with no gain" in transform.note


def test_only_the_rows_handed_in_are_seen() -> None:
    omics, y = expression()
    train = omics.iloc[:40]
    before = fit_genes(train.copy(), y[:40], GenesConfig(select="xgboost", n=10), seed=1)
    omics.iloc[40:] = 1e9
    after = fit_genes(omics.iloc[:40], y[:40], GenesConfig(select="xgboost", n=10), seed=1)
    assert before.genes == after.genes
    assert before.mean.tolist() == after.mean.tolist()


@pytest.mark.parametrize(("change", "log"), [("counts", True), ("logged", False), ("scaled", False)])
def test_the_scale_of_the_values_is_detected(change: str, log: bool) -> None:
    omics, y = expression()
    values = {"counts": omics, "logged": np.log2(omics + 1), "scaled": omics - omics.mean()}[change]
    assert fit_genes(values, y, GenesConfig(select="anova", n=5), seed=1).log.all() == log


def test_counts_and_their_logarithm_give_the_same_answer() -> None:
    omics, y = expression()
    logged = np.log2(omics.astype(np.float64) + 1)
    one, two = (fit_genes(frame, y, GenesConfig(select="anova", n=8), seed=1) for frame in (omics, logged))
    assert one.genes == two.genes
    np.testing.assert_allclose(one.apply(omics), two.apply(logged), atol=1e-5)


@pytest.mark.parametrize("select", ["xgboost", "anova", "variance"])
def test_a_transform_survives_its_file_exactly(tmp_path: Path, select: str) -> None:
    omics, y = expression()
    omics.columns = ["NA", 'quo"te,d', *omics.columns[2:]]
    transform = fit_genes(omics, y, GenesConfig(select=select, n=39), seed=1)
    path = str(tmp_path / "genes.csv")
    transform.save(path)
    loaded = GeneTransform.load(path)
    for name in ("importance", "mean", "sd", "log"):
        assert getattr(loaded, name).tobytes() == getattr(transform, name).tobytes()
    for name in ("genes", "method", "note"):
        assert getattr(loaded, name) == getattr(transform, name)
    (tmp_path / "other.csv").write_text("gene,mean\nA,1\n")
    with pytest.raises(InputError, match=r"other\.csv"):
        GeneTransform.load(str(tmp_path / "other.csv"))


@pytest.mark.parametrize(
    ("name", "text"), [("g.txt", "G07\n\nG05\nG01\n"), ("g.csv", "rank,gene\n1,G07\n2,G05\n3,G01\n")]
)
def test_a_list_is_taken_in_its_order_less_what_does_not_vary(tmp_path: Path, name: str, text: str) -> None:
    omics, y = expression()
    (tmp_path / name).write_text(text)
    transform = fit_genes(omics, y, GenesConfig(select=str(tmp_path / name), n=1), seed=1)
    assert transform.genes == ("G07", "G01")
    assert "2 of the 3 genes listed" in transform.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("G01\nTP53\nMYC\n", "2 genes.*TP53, MYC"),
        ("G01\nG01\n", "'G01' twice"),
        ("\n", "no genes"),
        ("a,b\nc,d\n", "none named 'gene'"),
        ("G05\n", "no gene of .* varies"),
    ],
)
def test_a_bad_list_says_why(tmp_path: Path, text: str, message: str) -> None:
    omics, y = expression()
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        fit_genes(omics, y, GenesConfig(select=str(tmp_path / "g.txt")), seed=1)


def test_what_cannot_be_fitted_or_applied_says_why() -> None:
    omics, y = expression()
    with pytest.raises(InputError, match="did you mean 'xgboost'"):
        fit_genes(omics, y, GenesConfig(select="xgbost"), seed=1)
    with pytest.raises(InputError, match="one class"):
        fit_genes(omics, np.ones_like(y), GenesConfig(), seed=1)
    with pytest.raises(InputError, match="no gene varies"):
        fit_genes(omics * 0 + 1, y, GenesConfig(), seed=1)
    transform = fit_genes(omics, y, GenesConfig(select="anova", n=5), seed=1)
    with pytest.raises(InputError, match="lack 1 of the chosen genes: G0"):
        transform.apply(omics.drop(columns=transform.genes[0]))
    spoiled = omics.copy()
    spoiled.loc["P7", transform.genes[2]] = -1
    with pytest.raises(InputError, match=f"'{transform.genes[2]}' of patient 'P7' is -1"):
        transform.apply(spoiled)


def test_a_family_in_counts_and_one_of_copy_numbers_are_scaled_each_in_its_way() -> None:
    omics, y = expression()
    copies = np.random.default_rng(1).integers(-2, 3, (len(y), 5))
    both = omics.assign(**{f"G{i:02d}_cnv": copies[:, i].astype(np.float32) for i in range(5)})
    transform = fit_genes(both, y, GenesConfig(select="all"), seed=1)
    alone = fit_genes(omics, y, GenesConfig(select="all"), seed=1)
    log = dict(zip(transform.genes, transform.log, strict=True))
    assert {name for name, logged in log.items() if not logged} == {f"G{i:02d}_cnv" for i in range(5)}
    assert transform.mean[:39].tolist() == alone.mean.tolist()
    assert "copy numbers" in transform.note


def with_blanks(omics: pd.DataFrame, share: float) -> pd.DataFrame:
    blank = np.random.default_rng(2).random(omics.shape) < share
    return omics.mask(blank)


@pytest.mark.parametrize("select", ["xgboost", "anova", "variance", "all"])
def test_blanks_count_as_the_mean_of_the_training_patients_and_of_nobody_else(select: str) -> None:
    omics, y = expression()
    gaps = with_blanks(omics, 0.1)
    train, rest = gaps.iloc[:40], gaps.iloc[40:]
    transform = fit_genes(train, y[:40], GenesConfig(select=select, n=12), seed=1)
    for gene, mean in zip(transform.genes, transform.mean, strict=True):
        np.testing.assert_allclose(mean, np.log2(train[gene].astype(float) + 1).mean(), rtol=1e-6)
    scaled = transform.apply(rest)
    blank = rest[list(transform.genes)].isna().to_numpy()
    assert (scaled[blank] == 0).all()
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(transform.apply(train).std(axis=0), 1, atol=1e-5)
    assert "blank values are filled" in transform.note


def test_a_gene_blank_in_all_training_patients_is_never_chosen() -> None:
    omics, y = expression()
    omics["G00"] = np.where(np.arange(60) < 40, np.nan, omics["G00"])
    transform = fit_genes(omics.iloc[:40], y[:40], GenesConfig(select="all"), seed=1)
    assert "G00" not in transform.genes


def test_a_list_may_have_versions_where_the_omics_have_none(tmp_path: Path) -> None:
    omics, y = expression()
    omics.columns = [f"ENSG{i:011d}" for i in range(omics.shape[1])]
    (tmp_path / "g.txt").write_text("ENSG00000000007.3\nENSG00000000001\n")
    transform = fit_genes(omics, y, GenesConfig(select=str(tmp_path / "g.txt")), seed=1)
    assert transform.genes == ("ENSG00000000007", "ENSG00000000001")
