"""Tables of omics as they are published all give the values of the plain table, or say what is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.written_tables import config_for, fails, reasons

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.config.data_sections import PatientColumns

N, G = 12, 9
PATIENTS = [f"TCGA-A{i % 3}-{1000 + i}" for i in range(N)]
GENES = [f"GENE{i}" for i in range(G)]


def logs(seed: int = 0) -> pd.DataFrame:
    values = np.clip(np.random.default_rng(seed).normal(5, 2, (N, G)), 0, 14).astype(np.float32)
    return pd.DataFrame(values, index=PATIENTS, columns=GENES)


def study(folder: Path, patients: list[str] | None = None, **omics: Any) -> Callable[[str], Any]:
    patients = patients or PATIENTS
    label = np.where(np.arange(len(patients)) % 2, "positive", "negative")
    pd.DataFrame({"PATIENT": patients, "PR": label}).to_csv(folder / "clinical.csv", index=False)
    slides = pd.DataFrame({"PATIENT": patients, "FILENAME": [f"{name}.h5" for name in patients]})
    slides.to_csv(folder / "slides.csv", index=False)
    return lambda name, **more: config_for(folder, cohort={"omics": str(folder / name)}, omics=omics | more)


def told(cohort: Cohort) -> str:
    return "\n".join(entry.sentence() for entry in cohort.understood)


def same_values(cohort: Cohort, expected: pd.DataFrame) -> None:
    assert cohort.omics is not None
    pd.testing.assert_frame_equal(
        cohort.omics,
        expected.sort_index(),
        check_names=False,
        check_column_type=False,
        check_index_type=False,
        rtol=1e-6,
    )
    assert not cohort.rejected


def samples(name: str) -> str:
    return f"{name}-01A"


def xena(t: pd.DataFrame) -> str:
    return t.T.rename(columns=samples).rename_axis("sample").to_csv(sep="\t")


def cbioportal(t: pd.DataFrame) -> str:
    frame = t.T.rename(columns="{}-01".format).rename_axis("Hugo_Symbol").reset_index()
    frame.insert(1, "Entrez_Gene_Id", range(100, 100 + G))
    return frame.to_csv(sep="\t", index=False)


def entrez_first(t: pd.DataFrame) -> str:
    frame = t.T.rename_axis("Hugo_Symbol").reset_index()
    frame.insert(0, "Entrez_Gene_Id", range(100, 100 + G))
    return frame.to_csv(sep="\t", index=False)


def gistic(t: pd.DataFrame) -> str:
    frame = t.T.rename(columns=samples).rename_axis("Gene Symbol").reset_index()
    frame.insert(1, "Locus ID", range(100, 100 + G))
    frame.insert(2, "Cytoband", "1p36.33")
    return frame.to_csv(sep="\t", index=False)


def gct_2(t: pd.DataFrame) -> str:
    frame = t.T.rename_axis("Name")
    frame.insert(0, "Description", "na")
    return f"#1.2\n{G}\t{N}\n" + frame.to_csv(sep="\t")


def gct_3(t: pd.DataFrame) -> str:
    frame = t.T.rename_axis("id")
    frame.insert(0, "pr_type", "coding")
    meta = pd.DataFrame([["na", *range(N)]], columns=frame.columns, index=["batch"])
    return f"#1.3\n{G}\t{N}\t1\t1\n" + pd.concat([meta, frame]).rename_axis("id").to_csv(sep="\t")


def gdc(t: pd.DataFrame) -> str:
    frame = t.T.rename(columns="{}-01A-11R-A12P-07".format).rename_axis("gene_id").reset_index()
    frame.insert(1, "gene_name", [f"N{i}" for i in range(G)])
    frame.insert(2, "gene_type", "protein_coding")
    lost = frame[:4].assign(gene_id=["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"], gene_name=None)
    lost["gene_type"] = None
    return "# gene-model: GENCODE v36\n" + pd.concat([lost, frame]).to_csv(sep="\t", index=False)


def htseq(t: pd.DataFrame) -> str:
    frame = t.T.rename_axis("Ensembl_ID").reset_index()
    return pd.concat([frame, frame[:2].assign(Ensembl_ID=["__no_feature", "__ambiguous"])]).to_csv(
        sep="\t", index=False
    )


def firehose(t: pd.DataFrame) -> str:
    frame = t.T.rename(columns="{}-01A-11R-A12P-07".format).rename_axis("Hybridization REF").reset_index()
    second = pd.DataFrame([["gene_id", *["normalized_count"] * N]], columns=frame.columns)
    return pd.concat([second, frame]).to_csv(sep="\t", index=False)


def r_rownames(t: pd.DataFrame) -> str:
    """As R's write.table: the header has no name for the row names, and dots for hyphens."""
    rows = [line.split("\t", 1) for line in t.T.to_csv(sep="\t").splitlines()]
    header = rows[0][1].replace("-", ".")
    return "\n".join([header, *("\t".join(row) for row in rows[1:])]) + "\n"


def aliquots(t: pd.DataFrame) -> str:
    return t.rename(index="{}-01A-11R-A12P-07".format).rename_axis("sample").to_csv()


def unnamed(t: pd.DataFrame) -> str:
    return t.to_csv()


def semicolons(t: pd.DataFrame) -> str:
    return t.rename_axis("PATIENT").to_csv(sep=";", decimal=",")


LAYOUTS = [xena, cbioportal, entrez_first, gistic, gct_2, gct_3, gdc, htseq, firehose, r_rownames, aliquots, unnamed]
SUFFIX = {gct_2: "gct", gct_3: "gct", aliquots: "csv", unnamed: "csv", semicolons: "csv"}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def packed_zip(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("packing", [*PACKED, ".zip"])
@pytest.mark.parametrize("layout", [*LAYOUTS, semicolons], ids=lambda layout: layout.__name__)
def test_every_published_layout_gives_the_plain_tables_values(
    tmp_path: Path, layout: Callable[[pd.DataFrame], str], packing: str
) -> None:
    config = study(tmp_path)
    name = f"omics.{SUFFIX.get(layout, 'tsv')}"
    content = layout(logs()).encode()
    packed = packed_zip(name, content) if packing == ".zip" else PACKED[packing](content)
    (tmp_path / f"{name}{packing}").write_bytes(packed)
    cohort = load_cohort(config(f"{name}{packing}"))
    same_values(cohort, logs())
    assert ("a row a gene" if layout not in (aliquots, unnamed, semicolons) else "a row a sample") in told(cohort)
    assert [family.scale for family in cohort.gene_families or ()] == ["logarithms"]


def test_the_text_file_of_a_portal_may_be_named_txt(tmp_path: Path) -> None:
    config = study(tmp_path)
    (tmp_path / "data_mrna_seq_v2_rsem.txt").write_text(cbioportal(logs()))
    same_values(load_cohort(config("data_mrna_seq_v2_rsem.txt")), logs())


@hypothesis_settings(max_examples=40, deadline=None)
@given(genes=st.permutations(range(G)), columns=st.permutations(range(N)), transposed=st.booleans())
def test_neither_the_order_of_genes_nor_of_samples_matters(
    tmp_path_factory: pytest.TempPathFactory, genes: list[int], columns: list[int], transposed: bool
) -> None:
    folder = tmp_path_factory.mktemp("study")
    config = study(folder)
    table = logs().iloc[columns, genes]
    (folder / "o.tsv").write_text(xena(table) if transposed else table.rename_axis("PATIENT").to_csv(sep="\t"))
    same_values(load_cohort(config("o.tsv")), logs()[[GENES[g] for g in genes]])


# --- .h5ad


def write_h5ad(path: Path, table: pd.DataFrame, form: str = "dense", names: str = "index") -> None:
    """As AnnData writes it."""
    with h5py.File(path, "w") as file:
        for group, index in (("obs", table.index), ("var", table.columns)):
            frame = file.create_group(group)
            frame.attrs.update({"_index": "_index", "encoding-type": "dataframe"})
            frame["_index"] = [str(i) for i in range(N)] if group == "obs" and names != "index" else list(index)
        if names != "index":
            donors = file["obs"].create_group("donor_id")
            donors["categories"], donors["codes"] = sorted(table.index), np.argsort(np.argsort(table.index))
        if form == "dense":
            file["X"] = table.to_numpy()
            return
        sparse = (scipy.sparse.csr_array if form == "csr" else scipy.sparse.csc_array)(table.to_numpy())
        x = file.create_group("X")
        x.attrs.update({"encoding-type": f"{form}_matrix", "shape": sparse.shape})
        x["data"], x["indices"], x["indptr"] = sparse.data, sparse.indices, sparse.indptr


@pytest.mark.parametrize("names", ["index", "donor_id"])
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
def test_h5ad_files_are_read(tmp_path: Path, form: str, names: str) -> None:
    config = study(tmp_path)
    write_h5ad(tmp_path / "o.h5ad", logs(), form, names)
    same_values(load_cohort(config("o.h5ad")), logs())


def test_bad_h5ad_files_say_why(tmp_path: Path) -> None:
    config = study(tmp_path)
    (tmp_path / "o.h5ad").write_bytes(b"no")
    fails(config("o.h5ad"), "o.h5ad cannot be read as .h5ad")
    write_h5ad(tmp_path / "o.h5ad", logs().rename(index=lambda name: f"other-{name}"))
    fails(config("o.h5ad"), "omics of none of the 12 patients", "'other-")
    write_h5ad(tmp_path / "o.h5ad", pd.concat([logs(i) for i in range(21)]))
    fails(config("o.h5ad"), "they are cells")
    write_h5ad(tmp_path / "o.h5ad", logs(), names="donor_id")
    asked = config("o.h5ad").cohort.model_copy(update={"columns": PatientColumns(omics="donor")})
    fails(
        config("o.h5ad").model_copy(update={"cohort": asked}),
        "o.h5ad has no column 'donor' in obs: set cohort.columns.omics to one of its columns, ",
        "'donor_id'",
    )


# --- which way round


def test_a_table_that_could_be_either_way_round_is_refused_with_a_cure(tmp_path: Path) -> None:
    numbers = [str(i) for i in range(1, N + 1)]
    config = study(tmp_path, numbers)
    table = pd.DataFrame(logs().to_numpy(), index=numbers, columns=[str(i) for i in range(5, 5 + G)])
    table.rename_axis("gene").to_csv(tmp_path / "o.csv")
    said = fails(config("o.csv"), "omics.orientation to patients_in_rows", "genes_in_rows")
    assert "8 patients in its header" in said
    same_values(load_cohort(config("o.csv", orientation="patients_in_rows")), table)
    turned = load_cohort(config("o.csv", orientation="genes_in_rows"))
    assert turned.omics is not None
    assert turned.omics.shape == (8, N)


def test_strangers_are_told_whichever_way_round(tmp_path: Path) -> None:
    config = study(tmp_path)
    for name, text in (("o.tsv", xena(logs().rename(index="Z{}".format))), ("o.csv", "case_id,A\nZ1,2\nZ2,3\n")):
        (tmp_path / name).write_text(text)
        fails(config(name), name, "TCGA-A0-1000" if name == "o.csv" else "no column that names the patients")
    more = pd.concat([logs(), logs(1).rename(index=lambda name: name.replace("TCGA-A", "TCGA-Z"))])
    (tmp_path / "o.tsv").write_text(xena(more))
    cohort = load_cohort(config("o.tsv"))
    same_values(cohort, logs())
    assert sum(kind == "omics" for kind, _ in reasons(cohort)) == N


@pytest.mark.parametrize("transposed", [True, False])
def test_identifiers_of_two_kinds_are_refused(tmp_path: Path, transposed: bool) -> None:
    patients = [f"P{i:03d}" for i in range(N)]
    config = study(tmp_path, patients)
    table = logs().set_axis([f"{name}_1" if i % 2 else name for i, name in enumerate(patients)])
    (tmp_path / "o.csv").write_text((table.T if transposed else table).rename_axis("PATIENT").to_csv())
    fails(config("o.csv"), "6 others begin with one", "'P001_1'")


# --- samples of a patient


def test_samples_of_normal_tissue_are_left_out_and_told(tmp_path: Path) -> None:
    config = study(tmp_path)
    table = logs().rename(index=samples)
    normal = logs(1).iloc[:3].rename(index="{}-11A".format)
    (tmp_path / "o.tsv").write_text(pd.concat([normal, table]).T.rename_axis("sample").to_csv(sep="\t"))
    cohort = load_cohort(config("o.tsv"))
    same_values(cohort, logs())
    assert "3 samples of normal tissue" in told(cohort)
    alone = pd.concat([table.iloc[3:], normal])
    (tmp_path / "o.tsv").write_text(alone.T.rename_axis("sample").to_csv(sep="\t"))
    same_values(load_cohort(config("o.tsv")), logs().iloc[3:])


@pytest.mark.parametrize("transposed", [True, False])
def test_samples_that_agree_count_once_and_those_that_differ_are_a_fault_with_a_cure(
    tmp_path: Path, transposed: bool
) -> None:
    config = study(tmp_path)

    def written(second: pd.DataFrame) -> None:
        table = pd.concat([logs().rename(index=samples), second.iloc[:2].rename(index="{}-06A".format)])
        (tmp_path / "o.csv").write_text((table.T if transposed else table).rename_axis("sample").to_csv())

    written(logs())
    cohort = load_cohort(config("o.csv"))
    same_values(cohort, logs())
    assert "2 patients have several rows that agree" in told(cohort)
    written(logs(1))
    names = [f"{name}-06A" for name in PATIENTS[:2]]
    fails(config("o.csv"), "has 2 samples that differ", f"'omics.leave_out: [{', '.join(names)}]'")
    same_values(load_cohort(config("o.csv", leave_out=names)), logs())
    same_values(load_cohort(config("o.csv", leave_out=["*-06A"])), logs())


# --- genes


def in_rows(genes: list[str], table: pd.DataFrame | None = None) -> str:
    table = logs() if table is None else table
    return table.T.set_axis(genes).rename_axis("gene").to_csv(sep="\t")


def test_versions_of_ensembl_identifiers_are_cut_where_that_is_unambiguous(tmp_path: Path) -> None:
    config = study(tmp_path)
    names = [f"ENSG{i:011d}" for i in range(G)]
    (tmp_path / "o.tsv").write_text(in_rows([f"{name}.{i + 1}" for i, name in enumerate(names)]))
    cohort = load_cohort(config("o.tsv"))
    same_values(cohort, logs().set_axis(names, axis=1))
    assert "versions of 9 Ensembl identifiers are cut, as of 'ENSG00000000000.1'" in told(cohort)
    both = ["ENSG00000000001.1", "ENSG00000000001.2", *(f"{name}.4" for name in names[2:])]
    (tmp_path / "o.tsv").write_text(in_rows(both))
    omics = load_cohort(config("o.tsv")).omics
    assert omics is not None
    assert omics.columns.tolist() == [*both[:2], *names[2:]]


@pytest.mark.parametrize("transposed", [True, False])
def test_genes_of_one_name_count_once_or_the_highest_is_taken(tmp_path: Path, transposed: bool) -> None:
    config = study(tmp_path)
    table = logs()
    table["GENE1"], table["GENE3"] = table["GENE0"], table["GENE2"] + 1
    twice = table.set_axis(["A", "A", "B", "B", *GENES[4:]], axis=1)
    text = twice.T.rename_axis("gene").to_csv(sep="\t") if transposed else twice.rename_axis("PATIENT").to_csv(sep="\t")
    (tmp_path / "o.tsv").write_text(text)
    cohort = load_cohort(config("o.tsv"))
    same_values(cohort, table[["GENE0", "GENE3", *GENES[4:]]].set_axis(["A", "B", *GENES[4:]], axis=1))
    assert "1 gene stands in several" in told(cohort)
    assert "highest mean" in told(cohort)


def test_a_gene_without_a_symbol_has_the_name_of_its_other_identifier(tmp_path: Path) -> None:
    config = study(tmp_path)
    frame = logs().T.rename_axis("Hugo_Symbol").reset_index()
    frame.loc[2, "Hugo_Symbol"] = None
    frame.insert(1, "Entrez_Gene_Id", range(100, 100 + G))
    frame.to_csv(tmp_path / "o.tsv", sep="\t", index=False)
    same_values(load_cohort(config("o.tsv")), logs().rename(columns={"GENE2": "102"}))
    frame.drop(columns="Entrez_Gene_Id").to_csv(tmp_path / "o.tsv", sep="\t", index=False)
    cohort = load_cohort(config("o.tsv"))
    same_values(cohort, logs().drop(columns="GENE2"))
    assert "1 row without the name of a gene" in told(cohort)


def test_names_that_a_spreadsheet_made_dates_of_are_told(tmp_path: Path) -> None:
    config = study(tmp_path)
    (tmp_path / "o.tsv").write_text(in_rows(["1-Mar", "2-Sep", *GENES[2:]]))
    assert "2 genes have a date as name" in told(load_cohort(config("o.tsv")))


def test_a_text_among_the_values_of_a_gene_in_a_row_is_named(tmp_path: Path) -> None:
    config = study(tmp_path)
    lines = in_rows(GENES).splitlines()
    cells = lines[4].split("\t")
    cells[2] = "low"
    (tmp_path / "o.tsv").write_text("\n".join([*lines[:4], "\t".join(cells), *lines[5:]]) + "\n")
    fails(config("o.tsv"), f"gene 'GENE3' of patient '{PATIENTS[1]}' is 'low', not a number")
