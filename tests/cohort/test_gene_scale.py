"""The scale of each family of columns, and columns that stand out from theirs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.cohort.gene_scale import gene_families, tag_of
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError


def logs(n: int = 40, genes: int = 20, seed: int = 0) -> pd.DataFrame:
    values = np.clip(np.random.default_rng(seed).normal(5, 2, (n, genes)), 0, 14)
    return pd.DataFrame(values.astype(np.float32), columns=[f"GENE{i}" for i in range(genes)])


def tpm(frame: pd.DataFrame) -> pd.DataFrame:
    return np.exp2(frame) - 1


def flags(n: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (n, columns)).astype(np.float32)


def copies(n: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).integers(-2, 3, (n, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "scale", "log"),
    [
        (logs(), "logarithms", False),
        (tpm(logs()), "linear values", True),
        (tpm(logs()).round(), "counts", True),
        (logs() - 5, "scaled values", False),
        (logs() / 20, "shares", False),
        (pd.DataFrame(copies(40, 8), columns=list("ABCDEFGH")), "copy numbers", False),
        (pd.DataFrame(flags(40, 8), columns=list("ABCDEFGH")), "0 or 1", False),
        (np.log2(tpm(logs(genes=400) - 4).clip(0).round() + 1), "logarithms", False),  # of counts, most of them 0 and 1
        (tpm(logs()).assign(GENE3=lambda f: f["GENE3"].round(), GENE4=lambda f: f["GENE3"] * 0), "linear values", True),
        (np.exp2(logs(genes=200)).round(1), "linear values", True),
        (tpm(logs()) - 20, "scaled values", False),  # a background is subtracted
    ],
)
def test_the_scale_of_a_table_of_one_kind(values: pd.DataFrame, scale: str, log: bool) -> None:
    if "GENE3" in values and (values["GENE3"] % 1 == 0).all() and scale == "linear values":
        values = values.drop(columns="GENE3")
    (family,) = gene_families(values)
    assert (family.scale, family.log) == (scale, log)
    assert family.genes == tuple(values.columns)


def test_estimated_counts_are_in_part_whole_numbers() -> None:
    values = tpm(logs(genes=100))
    values.iloc[:, ::2] = values.iloc[:, ::2].round()
    values.iloc[::2] = values.iloc[::2].round()
    (family,) = gene_families(values)
    assert family.log


@pytest.mark.parametrize(
    ("base", "more", "named"),
    [
        (logs(), {"PSA": np.linspace(1, 380, 40)}, "PSA"),
        (logs(), {"KI67": np.arange(40) % 7 * 10}, "KI67"),
        (logs() - 5, {"PSA": np.linspace(1, 380, 40)}, "PSA"),
        (tpm(logs()), {"PSA": np.arange(40) % 17}, "PSA"),
        (tpm(logs()), {"SCORE": np.linspace(-1, 1, 40)}, "SCORE"),
        (logs(), {"ER": flags(40, 1)[:, 0]}, "ER"),
        (logs(), {"ER": flags(40, 1)[:, 0], "NODES": np.arange(40) % 4}, "ER"),
    ],
)
def test_a_column_that_stands_out_is_named_with_two_cures(
    base: pd.DataFrame, more: dict[str, np.ndarray], named: str
) -> None:
    mixed = base.assign(**more)
    names = ", ".join(more)
    with pytest.raises(InputError, match=f"'{named}'.*'omics.leave_out: \\[{names}\\]'.*'omics.keep: \\[{names}\\]'"):
        gene_families(mixed)
    (alone,) = gene_families(base)
    families = gene_families(mixed, OmicsConfig(keep=tuple(more)))
    assert families[0].genes == alone.genes
    assert families[0].scale == alone.scale
    assert {gene for family in families[1:] for gene in family.genes} == set(more)
    assert all(
        family.scale == "logarithms" or family.low < 0
        for family in gene_families(base, OmicsConfig())
        if not family.log
    )


@pytest.mark.parametrize("name", ["{}_cnv", "CNV_{}", "{}.cna", "{}|gistic"])
def test_families_by_name_have_scales_of_their_own(name: str) -> None:
    base = tpm(logs())
    mixed = base.assign(**{name.format(gene): column for gene, column in zip(base, copies(40, 20).T, strict=True)})
    expression, copy_numbers = sorted(gene_families(mixed), key=lambda family: not family.log)
    assert expression.genes == tuple(base.columns)
    assert (copy_numbers.scale, len(copy_numbers.genes)) == ("copy numbers", 20)


def test_copy_numbers_and_mutations_without_a_name_are_told_by_their_values() -> None:
    base = tpm(logs(genes=60))
    names = [f"C{i}" for i in range(30)]
    for values, scale in ((copies(40, 30), "copy numbers"), (flags(40, 30), "0 or 1")):
        families = gene_families(pd.concat([base, pd.DataFrame(values, columns=names)], axis=1))
        assert [family.scale for family in families] == ["linear values", scale]
        assert families[1].genes == tuple(names)


def test_a_scale_that_is_set_holds_for_all() -> None:
    mixed = logs().assign(PSA=np.linspace(1, 380, 40))
    for scale, log in (("linear", True), ("scaled", False)):
        (family,) = gene_families(mixed, OmicsConfig(scale=scale))  # type: ignore[arg-type]
        assert family.log is log


@given(order=st.permutations(range(23)), rows=st.permutations(range(40)))
def test_neither_the_order_of_columns_nor_of_patients_matters(order: list[int], rows: list[int]) -> None:
    base = tpm(logs()).assign(A_cnv=copies(40, 1)[:, 0], B_cnv=copies(40, 2)[:, 1], C_mut=flags(40, 1)[:, 0])
    found = {(f.name, f.scale, frozenset(f.genes)) for f in gene_families(base)}
    shuffled = base.iloc[rows, order]
    assert {(f.name, f.scale, frozenset(f.genes)) for f in gene_families(shuffled)} == found


@pytest.mark.parametrize(
    "gene", ["HLA-A", "MT-CO1", "MIR21", "ENSG00000141510", "TP53", "LOC100", "hsa-miR-21-5p", "DEL1"]
)
def test_a_gene_symbol_is_no_tag(gene: str) -> None:
    assert tag_of(gene) == ""
