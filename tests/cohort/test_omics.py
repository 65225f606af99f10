"""Omics as they are written, and the genes chosen from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.written_tables import OMICS, config_for, fails, reasons, write

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.errors import InputError


@pytest.mark.parametrize(
    ("omics", "fragments"),
    [
        (OMICS.replace("30", "inf"), ["'B'", "'P3'", "infinite"]),
        (OMICS.replace("30", ""), ["'B'", "'P3'", "blank"]),
        (OMICS.replace("30", "1e300"), ["'B'", "'P3'"]),
        (OMICS.replace("30", "low"), ["'B'", "'P3'", "'low'"]),
        (OMICS + "P1,1,11\n", ["'P1'", "more than one row"]),
        (OMICS.replace("P1", "Q1").replace("P3", "Q3"), ["none of the 4 patients", "'P1'", "'Q1'"]),
        ("PATIENT\nP1\n", ["no gene columns"]),
    ],
)
def test_bad_omics_name_patient_and_gene(tmp_path: Path, omics: str, fragments: list[str]) -> None:
    fails(write(tmp_path, omics=omics), "omics.csv", *fragments)


def test_an_entirely_blank_row_means_no_omics_and_keeps_the_patient(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS + "P2,,NA\n"))
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == ["P1", "P3"]
    assert "P2" in cohort.patients.index
    assert "entirely blank" in reasons(cohort)["omics", "P2"]


def test_parquet_csv_and_a_folder_of_vectors_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5)).astype(np.float32)
    patients, genes = ["P4", "P1", "elsewhere"], [f"G{i}" for i in range(5)]
    frame = pd.DataFrame(values, columns=genes)
    frame.insert(0, "PATIENT", patients)
    write(tmp_path)
    frame.to_csv(tmp_path / "o.csv", index=False)
    frame.to_parquet(tmp_path / "o.parquet")
    (tmp_path / "o").mkdir()
    for patient, row in zip(patients, values, strict=True):
        np.save(tmp_path / "o" / f"{patient}.npy", row)
    (tmp_path / "o" / "genes.txt").write_text("\n".join(genes))
    cohorts = [
        load_cohort(config_for(tmp_path, cohort={"omics": str(tmp_path / name)}))
        for name in ("o.csv", "o.parquet", "o")
    ]
    assert cohorts[0].omics is not None
    assert cohorts[0].omics.to_numpy().tolist() == values[[1, 0]].tolist()
    assert len({cohort.fingerprint() for cohort in cohorts}) == 1
    assert all(("omics", "elsewhere") in reasons(cohort) for cohort in cohorts)


def test_vectors_get_gene_names_and_must_agree_in_length(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "o"
    folder.mkdir()
    config = config_for(tmp_path, cohort={"omics": str(folder)})
    np.save(folder / "P1.npy", np.ones(3))
    omics = load_cohort(config).omics
    assert omics is not None
    assert omics.columns.tolist() == ["g0000", "g0001", "g0002"]
    np.save(folder / "P2.npy", np.ones(4))
    fails(config, "P2.npy has 4 values", "3")
    np.save(folder / "P2.npy", np.ones((1, 3)))
    fails(config, "P2.npy", "1-d vector")
    (folder / "P2.npy").write_bytes(b"no")
    fails(config, "P2.npy", "not a NumPy vector")
    np.save(folder / "P2.npy", np.array([1, np.nan, np.nan]))
    fails(config, "'g0001'", "'P2'", "blank")
    (folder / "P2.npy").unlink()
    (folder / "genes.txt").write_text("A\nB\n")
    fails(config, "names 2 genes", "3 values")
    (folder / "genes.txt").write_text("A\nB\nA\n")
    fails(config, "'A' twice")


def rejections(cohort: Cohort) -> dict[str, str]:
    return {fault.id: fault.problem for fault in cohort.rejected}


@pytest.mark.parametrize(
    ("row", "problem", "said"),
    [
        ("P2,,4,", "missing value", "gene 'A' of patient 'P2' is blank (2 such values in the row)"),
        ("P2,1,inf,3", "not finite", "gene 'B' of patient 'P2' is infinite"),
        ("P2,1,2,-1e300", "not finite", "gene 'C' of patient 'P2' is infinite or beyond single precision"),
        ("P2,1,few,many", "not a number", "gene 'B' of patient 'P2' is 'few', not a number (2 such values in the row)"),
        ("P2,,few,2", "not a number", "gene 'B' of patient 'P2' is 'few', not a number"),
        ("P2,4,4,4.0", "constant", "all genes of patient 'P2' are 4"),
        ("P2,1,10,9", "duplicated", "patient 'P2' has the very values of patient 'P1': find out whose they are"),
        ("P2,1,2,4\nP2,1,2,5", "duplicated", "patient 'P2' has more than one row (data rows 3 and 4), and they differ"),
        (",1,2,4", "missing value", "'PATIENT' is blank in data row 3: fill it in or remove the row"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_a_bad_row_is_named_and_skipped(tmp_path: Path, row: str, problem: str, said: str, suffix: str) -> None:
    good = "PATIENT,A,B,C\nP3,3,30,9\nP1,1,10,9\n"
    write(tmp_path, omics=good + row + "\n")
    frame = pd.read_csv(tmp_path / "omics.csv", dtype=str, keep_default_na=False)
    path = tmp_path / f"omics{suffix}"
    if suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(path, index=False)
    config = config_for(tmp_path, cohort={"omics": str(path)})
    fails(config, path.name)
    cohort = load_cohort(config, "skip")
    assert any(said in fault.reason for fault in cohort.rejected)
    assert {fault.problem for fault in cohort.rejected} == {problem}
    assert {fault.location for fault in cohort.rejected} == {str(path)}
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == (["P3"] if "very values" in said else ["P1", "P3"])
    assert cohort.omics.loc["P3"].tolist() == [3, 30, 9]
    assert len(cohort.patients) == 4, "a patient without omics stays"


def told(cohort: Cohort) -> str:
    return "\n".join(entry.sentence() for entry in cohort.understood)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_a_column_of_text_is_no_gene(tmp_path: Path, suffix: str) -> None:
    write(tmp_path)
    frame = pd.DataFrame({"PATIENT": ["P1", "P2", "P3"], "A": [1.5, 2, 3], "zone": ["II", "", "IV"], "B": [4, 6, 5]})
    path = tmp_path / f"omics{suffix}"
    kinds = {".csv": frame.to_csv, ".xlsx": frame.to_excel, ".parquet": frame.to_parquet}
    kinds[suffix](path, index=False)
    cohort = load_cohort(config_for(tmp_path, cohort={"omics": str(path)}))
    assert cohort.omics is not None
    assert cohort.omics.columns.tolist() == ["A", "B"]
    assert "1 column is no gene and left out: 'zone' holds text such as 'II'" in told(cohort)


def test_a_table_of_texts_is_refused(tmp_path: Path) -> None:
    fails(write(tmp_path, omics="PATIENT,A,B,C\nP1,x,y,1\nP3,u,v,2\n"), "2 of the 3 columns hold text", "'x' in 'A'")


@pytest.mark.parametrize("index", [[7, 3, 5], ["x", "y", "z"], ["P1", "P2", "P3"]])
def test_an_index_that_pandas_kept_names_the_patients_or_is_passed_over(tmp_path: Path, index: list[object]) -> None:
    write(tmp_path)
    frame = pd.DataFrame({"PATIENT": ["P1", "P2", "P3"], "A": [1.5, 2, 3], "B": [4, 6, 5]}, index=index)
    whole = frame if index[0] != "P1" else frame.drop(columns="PATIENT")
    whole.to_parquet(tmp_path / "o.parquet")
    omics = load_cohort(config_for(tmp_path, cohort={"omics": str(tmp_path / "o.parquet")})).omics
    assert omics is not None
    assert omics.columns.tolist() == ["A", "B"]
    assert omics.index.tolist() == ["P1", "P2", "P3"]


def test_a_column_without_a_name_is_left_out(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS.replace(",B", ",")))
    assert cohort.omics is not None
    assert cohort.omics.columns.tolist() == ["A"]
    assert "'' has no name" in told(cohort)


def test_bad_rows_of_others_are_no_concern(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS + "Z1,low,\nZ2,3,30\nZ2,inf,1\n"))
    assert cohort.omics is not None
    assert cohort.omics.to_numpy().tolist() == [[1, 10], [3, 30]]
    assert {("omics", "Z1"), ("omics", "Z2")} == set(reasons(cohort))


def test_rows_of_a_mutation_panel_may_be_alike(tmp_path: Path) -> None:
    panel = "PATIENT,A,B\nP1,0,0\nP2,0,1\nP3,0,1\nP4,1,1\n"
    omics = load_cohort(write(tmp_path, omics=panel)).omics
    assert omics is not None
    assert len(omics) == 4
    fails(write(tmp_path, omics=panel.replace("P4,1,1", "P4,2,1")), "3 of the ")


def test_omics_without_a_good_row_are_refused(tmp_path: Path) -> None:
    for on_error in ("stop", "skip"):
        with pytest.raises(InputError, match=r"2 of the 2 rows of .*omics\.csv cannot be used.*'low'"):
            load_cohort(write(tmp_path, omics="PATIENT,A,B\nP3,low,1\nP1,3,low\n"), on_error)  # type: ignore[arg-type]
    fails(write(tmp_path, omics="PATIENT,A,B\nP3,,\nP1,,\n"), "omics.csv", "all blank", "cohort.omics to null")


def test_the_omics_table_has_its_own_name_for_patients(tmp_path: Path) -> None:
    config = write(tmp_path, omics="submitter_id,A,B\nP1,1,2\nP2,3,5\n")
    omics = load_cohort(config).omics
    assert omics is not None
    assert omics.columns.tolist() == ["A", "B"]
    chosen = config_for(tmp_path, cohort={"omics": str(tmp_path / "omics.csv"), "patient_column": "PATIENT"})
    fails(chosen, "omics.csv has no column 'PATIENT': set cohort.columns.omics to one of its columns, 'submitter_id'")


def test_numbers_read_at_once_are_those_read_as_text(tmp_path: Path) -> None:
    """One word in a row of somebody else makes the whole table be read as text first."""
    rng = np.random.default_rng(3)
    lines = [f"P{i}," + ",".join(map(repr, rng.normal(scale=10.0**i, size=6).tolist())) for i in range(1, 4)]
    table = "PATIENT," + ",".join("ABCDEF") + "\n" + "\n".join(lines) + "\nP4, 1 ,2e3,-0.5,NA,, \n"
    cohorts = [load_cohort(write(tmp_path, omics=table + more), "skip") for more in ("", "Z,word,1,1,1,1,1\n")]
    assert cohorts[0].fingerprint() == cohorts[1].fingerprint()
    assert cohorts[0].rejected == cohorts[1].rejected
    assert [(fault.id, fault.problem) for fault in cohorts[0].rejected] == [("P4", "missing value")]


def test_bad_vectors_are_skipped(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "o"
    folder.mkdir()
    config = config_for(tmp_path, cohort={"omics": str(folder)})
    np.save(folder / "P1.npy", np.arange(3.0))
    for content, problem in (
        (np.arange(4.0), "misshapen"),
        (np.ones((1, 3)), "misshapen"),
        (np.array(["a", "b", "c"]), "misshapen"),
        (np.array([], float), "empty"),
        (np.array([1, np.nan, 2]), "missing value"),
        (np.array([1, 2, -np.inf]), "not finite"),
        (np.full(3, 5.0), "constant"),
        (b"no", "unreadable"),
        (b"", "empty"),
    ):
        np.save(folder / "P3.npy", np.array([4.0, 5.0, 6.5]))
        if isinstance(content, bytes):
            (folder / "P2.npy").write_bytes(content)
        else:
            np.save(folder / "P2.npy", content)
        cohort = load_cohort(config, "skip")
        assert rejections(cohort) == {"P2": problem}
        assert cohort.rejected[0].location == str(folder / "P2.npy")
        assert cohort.omics is not None
        assert cohort.omics.index.tolist() == ["P1", "P3"]
        fails(config, "P2", "1 of the ")
    np.save(folder / "P2.npy", np.arange(3.0))
    assert rejections(load_cohort(config, "skip")) == {"P1": "duplicated", "P2": "duplicated"}
