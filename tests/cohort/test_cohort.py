"""The tables of a cohort joined: its patients, slides and omics, and who is left out and why."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.written_tables import CLINICAL, OMICS, SLIDES, config_for, fails, reasons, write

from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.slides import slide_id_of
from momkd_ray.cohort.table_files import read_table
from momkd_ray.config.load import Config


def test_numbers_of_parquet_and_excel_become_plain_identifiers(tmp_path: Path) -> None:
    write(tmp_path)
    frame = pd.DataFrame({"PATIENT": [1, 2, 3], "PR": [1.0, 0.0, None]})
    slides = pd.DataFrame({"PATIENT": ["1", "2", "3"], "FILENAME": ["a", "b", "c"]})
    slides.to_csv(tmp_path / "slides.csv", index=False)
    for suffix in (".parquet", ".xlsx"):
        path = tmp_path / f"clinical{suffix}"
        frame.to_parquet(path) if suffix == ".parquet" else frame.to_excel(path, index=False)
        config = config_for(tmp_path, cohort={"clinical": str(path), "positive": "1", "negative": "0"})
        cohort = load_cohort(config)
        assert cohort.patients["label"].to_dict() == {"1": "1", "2": "0"}
        assert reasons(cohort)["patient", "3"] == "the label is blank"


def test_tables_are_joined_and_sorted(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS))
    assert cohort.patients.index.tolist() == ["P1", "P2", "P3", "P4"]
    assert cohort.patients.index.name == "patient_id"
    assert cohort.patients["y"].tolist() == [1, 0, 1, 0]
    assert cohort.classes == ("negative", "positive")
    assert cohort.slides.to_dict("list") == {
        "slide_id": ["S1", "S2", "S3", "S4"],
        "patient_id": ["P1", "P2", "P3", "P4"],
        "path": [f"/features/S{i}.h5" for i in range(1, 5)],
        "file": [""] * 4,
        "bytes": [0] * 4,
    }
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == ["P1", "P3"]
    assert cohort.omics.to_numpy().tolist() == [[1, 10], [3, 30]]
    assert (cohort.omics.dtypes == np.float32).all()
    assert cohort.excluded.empty


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB.h5", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("a.svs", "a"),
        ("a.SVS", "a"),
        ("a.h5.b.mrxs", "a.h5.b"),
        ("svs.tiff", "svs"),
        ("plain", "plain"),
    ],
)
def test_a_slide_loses_only_a_recognised_suffix(name: str, expected: str) -> None:
    assert slide_id_of(name) == expected


def test_whatever_is_left_out_has_its_reason_and_is_never_a_negative(tmp_path: Path) -> None:
    clinical = CLINICAL + "E,Equivocal\nB,\nN,NaN\nU,Weakly Positive\nX,negative\n"
    slides = SLIDES + "E,SE.h5\nB,SB.h5\nN,SN.h5\nU,SU.h5\nghost,SG.h5\n"
    cohort = load_cohort(write(tmp_path, clinical, slides, OMICS + "E,1,2\nghost,,\n"))
    found = reasons(cohort)
    assert cohort.patients["label"].value_counts().to_dict() == {"positive": 2, "negative": 2}
    assert "'Equivocal'" in found["patient", "E"]
    assert "'Weakly Positive'" in found["patient", "U"]
    assert found["patient", "B"] == found["patient", "N"] == "the label is blank"
    assert found["patient", "X"] == "no slide"
    assert found["slide", "SG"] == "its patient is not in the clinical table"
    assert {found["slide", slide] for slide in ("SE", "SB", "SN", "SU")} == {"its patient is left out"}
    assert {key for key in found if key[0] == "omics"} == {("omics", "E"), ("omics", "ghost")}
    text = "\n".join(cohort.summary())
    assert "4 patients: 2 positive, 2 negative." in text
    assert "2 patients left out (the label is blank): B, N." in text
    assert all(reason in text for reason in found.values())


def test_omics_are_of_the_clinical_tables_patients_however_they_are_spelled(tmp_path: Path) -> None:
    clinical = CLINICAL + "TCGA-BH-A10D,Indeterminate\nTCGA-BH-A10E,\nTCGA-BH-A10F,positive\n0042,Equivocal\n"
    samples = ["TCGA-BH-A10D-01A-11R-A144-07", "TCGA-BH-A10E-01A-11R-A144-07", "TCGA-BH-A10F-01A-11R-A144-07", "42"]
    cohort = load_cohort(
        write(tmp_path, clinical, omics=OMICS + "".join(f"{name},5,6\n" for name in [*samples, "ghost"]))
    )
    omics = cohort.excluded[cohort.excluded["kind"] == "omics"].set_index("id")
    assert set(omics.index) == {*samples, "ghost"}
    assert set(omics.loc[samples, "reason"]) == {"its patient is left out"}
    assert set(omics.loc[samples, "problem"]) == {""}
    assert tuple(omics.loc["ghost", ["reason", "problem"]]) == ("its patient is not in the clinical table", "unmatched")
    assert "4 omics entries left out (its patient is left out): " in "\n".join(cohort.summary())


def test_nothing_is_lost_between_the_tables_and_the_cohort(tiny_config: Config) -> None:
    cohort = load_cohort(tiny_config)
    for kind, inside, path in (
        ("patient", cohort.patients.index, tiny_config.cohort.clinical),
        ("slide", cohort.slides["slide_id"], tiny_config.cohort.slides),
    ):
        assert len(inside) + (cohort.excluded["kind"] == kind).sum() == len(read_table(path))


@pytest.mark.parametrize(
    ("clinical", "slides", "fragments"),
    [
        (CLINICAL + "P1,negative\n", SLIDES, ["clinical.csv", "'P1'", "several values of 'PR'"]),
        (CLINICAL, SLIDES + "P2,S1.svs\n", ["slides.csv", "'S1'", "'P1'", "'P2'"]),
        (CLINICAL + " ,positive\n", SLIDES, ["'PATIENT' is blank in data row 5"]),
        (CLINICAL, SLIDES + "P1,\n", ["'FILENAME' is blank in data row 5"]),
        (CLINICAL, SLIDES + "P1,sub/\n", ["'sub/'", "data row 5"]),
        (CLINICAL, SLIDES + "P1,.h5\n", ["'.h5'"]),
        (
            CLINICAL.replace("PATIENT", "Person"),
            SLIDES.replace("PATIENT", "Who"),
            ["no column that names the patients", "set cohort.columns.clinical"],
        ),
        (CLINICAL.replace("PR", "ER"), SLIDES, ["clinical.csv has no column 'PR'", "'ER'"]),
        (CLINICAL.replace("positive", "1").replace("negative", "0"), SLIDES, ["'1' (2)", "'0' (2)"]),
        (CLINICAL.replace("positive", "negative"), SLIDES, ["'positive'", "'negative' (4)"]),
        (CLINICAL, SLIDES.replace("P1", "Q1").replace("P3", "Q3"), ["class 'positive'"]),
        (CLINICAL, SLIDES.replace("P", "Q").replace("QATIENT", "PATIENT"), ["none of its 4 patients", "'Q1' and 'P1'"]),
    ],
)
def test_bad_tables_name_the_fault(tmp_path: Path, clinical: str, slides: str, fragments: list[str]) -> None:
    fails(write(tmp_path, clinical, slides), *fragments)


def test_the_two_classes_must_differ(tmp_path: Path) -> None:
    write(tmp_path)
    fails(config_for(tmp_path, cohort={"negative": "positive"}), "both 'positive'")


def test_the_fingerprint_follows_the_content_and_not_the_order_or_place(tmp_path: Path) -> None:
    def fingerprint(**tables: str) -> str:
        return load_cohort(write(tmp_path, **({"omics": OMICS} | tables))).fingerprint()

    base = fingerprint()
    rows = CLINICAL.splitlines()
    assert re.fullmatch(r"[0-9a-f]{16}", base)
    assert fingerprint(clinical="\n".join([rows[0], *reversed(rows[1:])]) + "\n") == base
    changed = [
        fingerprint(omics=OMICS.replace("10", "11")),
        fingerprint(omics=OMICS.replace("A", "C", 2).replace("PCTIENT", "PATIENT")),
        fingerprint(slides=SLIDES.replace("S4", "S5")),
        fingerprint(clinical=CLINICAL.replace("P4,negative", "P4,positive")),
    ]
    assert len({base, *changed}) == 5
