"""The tables of a cohort, in every dialect, joined; what is bad in them and what is left out."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.written_tables import CLINICAL, OMICS, SLIDES, config_for, fails, reasons, write

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.slides import slide_id_of
from momkd_ray.cohort.table_files import read_table
from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault

# --- tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".xlsx"])
def test_text_survives_as_written_in_every_format(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {"id": ["007", "1e5", "TRUE", "1.50", "x,y", "é"], "label": ["None", "null", "", "NA", "3", "+"]}
    )
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif suffix == ".xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    read = read_table(str(path))
    assert read["id"].tolist() == frame["id"].tolist()
    assert read["label"].isna().tolist() == [False, False, True, True, False, False]
    assert read["label"].dropna().tolist() == ["None", "null", "3", "+"]


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


def damaged_spreadsheet() -> bytes:
    """A valid archive with half of the first sheet's XML."""
    book, damaged = io.BytesIO(), io.BytesIO()
    pd.DataFrame({"a": range(20)}).to_excel(book, index=False)
    with zipfile.ZipFile(book) as members, zipfile.ZipFile(damaged, "w") as copy:
        for name in members.namelist():
            content = members.read(name)
            copy.writestr(name, content[: len(content) // 2] if name.endswith("sheet1.xml") else content)
    return damaged.getvalue()


def test_a_quoted_cell_may_span_lines_and_a_quote_within_a_cell_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,"two\nlines"\n3,a 5" tile\n4,"6"\n')
    assert read_table(str(tmp_path / "t.csv"))["b"].tolist() == ["two\nlines", 'a 5" tile', "6"]


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("t.csv", b"a,b\n1,2\n3\n", "line 3 has 1 cell, but the header in line 1 has 2"),
        ("t.csv", b"a,b\n1,2,3\n", "line 2 has 3 cells, but the header in line 1 has 2"),
        ("t.csv", b"a,b\n\x81,1\n", "save it as UTF-8"),
        ("t.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "in line 3 is not closed"),
        ("t.tsv", b'a\tb\n1\t"2\n3\t4\n5\t"6\n', "in line 2 is not closed"),
        ("t.parquet", b"PAR1 no", "cannot be read"),
        ("t.xlsx", b"PK no", "cannot be read"),
        ("t.xlsx", damaged_spreadsheet(), "the spreadsheet is damaged"),
        ("t.json", b"{}", ".csv, .tsv, .txt"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(fragment)) as caught:
        read_table(str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        read_table(str(tmp_path / "nowhere.csv"))


# --- the cohort


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


# --- dialects

SLIDE = "TCGA-{}-01Z-00-DX{}.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"
OF_PATIENT = {"3C-AALI": 2, "3C-AALJ": 1, "4H-AAAK": 1, "5L-AAT0": 1}


def dialect(folder: Path, name: str) -> Config:
    """The same four patients and five slides as a tool writes them; the first two patients are positive."""
    rows = [(f"TCGA-{p}", SLIDE.format(p, i + 1), int(p[:2] == "3C")) for p, n in OF_PATIENT.items() for i in range(n)]
    table = pd.DataFrame(rows, columns=["case_id", "slide_id", "y"])
    features = folder / "features"
    features.mkdir()
    for slide in table["slide_id"]:
        (features / f"{slide}.h5").touch()
    named = table["y"].map({0: "wild type", 1: "mutated"})
    cohort = {"clinical": str(folder / "one.csv"), "slides": None, "label": "label"}
    cohort |= {"positive": "mutated", "negative": "wild type"}
    if name == "STAMP":
        clinical = table.assign(PATIENT=table["case_id"], TP53=named).drop_duplicates("PATIENT")
        clinical[["PATIENT", "TP53"]].to_excel(folder / "clini.xlsx", index=False)
        slides = pd.DataFrame({"FILENAME": table["slide_id"] + ".h5", "PATIENT": table["case_id"]})
        slides.to_csv(folder / "slide.csv", index=False)
        cohort |= {"clinical": str(folder / "clini.xlsx"), "slides": str(folder / "slide.csv"), "label": "TP53"}
    elif name == "CLAM":  # with the index that pandas writes
        table.assign(label=named).drop(columns="y").to_csv(folder / "one.csv")
    elif name == "Patho-Bench":
        folds = table.rename(columns={"y": "TP53_mutation"}).assign(fold_0="train", fold_1="test")
        folds.to_csv(folder / "k=all.tsv", sep="\t", index=False)
        cohort |= {"clinical": str(folder / "k=all.tsv"), "label": "TP53_mutation", "positive": "1", "negative": "0"}
    else:
        spelt = table.rename(columns={"case_id": "Patient ID", "slide_id": "Slide"}).assign(label=named)
        spelt.to_parquet(folder / "one.parquet", index=False)
        cohort |= {"clinical": str(folder / "one.parquet")}
    return config_for(folder, cohort=cohort, features={"dir": str(features)})


@pytest.mark.parametrize(
    ("name", "column"),
    [("STAMP", "PATIENT"), ("CLAM", "case_id"), ("Patho-Bench", "case_id"), ("plain", "Patient ID")],
)
def test_every_dialect_gives_the_same_cohort(tmp_path: Path, name: str, column: str) -> None:
    cohort = load_cohort(dialect(tmp_path, name))
    assert cohort.patients["y"].to_dict() == {f"TCGA-{p}": int(p[:2] == "3C") for p in OF_PATIENT}
    assert cohort.slides["slide_id"].tolist() == [
        SLIDE.format(p, i + 1) for p, n in OF_PATIENT.items() for i in range(n)
    ]
    assert cohort.slides["patient_id"].tolist() == [f"TCGA-{p}" for p, n in OF_PATIENT.items() for _ in range(n)]
    assert (cohort.slides["file"] != "").all()
    assert cohort.patient_column == column
    assert cohort.excluded.empty
    assert not cohort.rejected
    assert not cohort.unmatched_files


def test_numeric_slides_are_kept_as_written_and_their_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("case_id,slide_id,PR\n1,007,positive\n2,12.50,negative\n3,1e5,negative\n")
    for name in ("007.h5", "12.50.pt", "1e5.h5", "7.h5", ".hidden.h5"):
        (tmp_path / name).touch()
    cohort = load_cohort(
        config_for(
            tmp_path,
            cohort={"clinical": str(tmp_path / "one.csv"), "slides": None},
            features={"dir": str(tmp_path)},
        )
    )
    assert cohort.slides["slide_id"].tolist() == ["007", "12.50", "1e5"]
    assert [Path(path).name for path in cohort.slides["path"]] == ["007.h5", "12.50.pt", "1e5.h5"]
    assert cohort.unmatched_files == ("7.h5",)
    assert "1 feature file of no row of the slides' table: 7.h5." in cohort.summary()


@pytest.mark.parametrize(
    ("header", "settings", "said"),
    [
        ("PATIENT,case_id,slide_id", {}, "several columns that may name the patients ('PATIENT', 'case_id')"),
        ("patient,slide_id,FILENAME", {}, "several columns that may name the slides ('slide_id', 'FILENAME')"),
        ("who,slide_id,x", {}, "no column that names the patients, such as 'PATIENT' or 'case_id'"),
        ("PATIENT,what,x", {}, "cohort.slides is not given"),
        ("PATIENT,slide_id,x", {"patient_column": "case_id"}, "no column 'case_id'"),
        ("PATIENT,slide_id,x", {"slide_column": "slides"}, "no column 'slides'; the nearest is 'slide_id'"),
        ("PATIENT,what,x", {"slide_column": "what"}, ""),
        ("PATIENT,case_id,slide_id", {"patient_column": "PATIENT"}, ""),
        ("Case ID,Slide-ID,x", {}, ""),
        ("case_id,slide_id,Patient", {}, ""),
    ],
)
def test_columns_are_found_by_name_or_asked_for(
    tmp_path: Path, header: str, settings: dict[str, str], said: str
) -> None:
    (tmp_path / "one.csv").write_text(f"{header},PR\nP1,S1,x,positive\nP2,S2,y,negative\n")
    config = config_for(tmp_path, cohort={"clinical": str(tmp_path / "one.csv"), "slides": None} | settings)
    if said:
        fails(config, "one.csv", said)
    elif header.endswith("slide_id"):
        assert load_cohort(config).slides["slide_id"].tolist() == ["x", "y"]
    else:
        assert load_cohort(config).slides["slide_id"].tolist() == ["S1", "S2"]


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("cohort.label", "PR"),
        ("cohort.columns.clinical", "PATIENT"),
        ("cohort.columns.slides", "PATIENT"),
        ("cohort.columns.omics", "PATIENT"),
        ("cohort.slide_column", "FILENAME"),
        ("folds.site", "Centre of care"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_its_key_and_a_cure_that_works(
    tmp_path: Path, key: str, column: str
) -> None:
    clinical = "PATIENT,PR,Centre of care\n" + "".join(f"{row},X\n" for row in CLINICAL.splitlines()[1:])
    tree = write(tmp_path, clinical, omics=OMICS).model_dump(mode="json")
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError) as caught:
        load_cohort(load_config(path, [f"{key}={column}x"]))
    assert f"has no column '{column}x'" in str(caught.value)
    cure = re.search(r"\(set (\S+) to (.+?)\)", str(caught.value))
    assert cure is not None and cure[1] == key
    load_cohort(load_config(path, [f"{cure[1]}={cure[2]}"]))
    with pytest.raises(InputError, match=rf"has no column 'qqq': set {key} to one of its columns, .*'{column}'"):
        load_cohort(load_config(path, [f"{key}=qqq"]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "P1,S3,negative\n",
            "patient 'P1' has several values of 'PR' ('positive' in data row 1, 'negative' in data row 3)",
        ),
        ("P1,S3,\n", "patient 'P1' has several values of 'PR' ('positive' in data row 1, blank in data row 3)"),
        ("P2,S3,unsure\nP2,S4,unsure\n", "'negative' in data row 2, 'unsure' in data rows 3 and 4"),
    ],
)
def test_the_rows_of_a_patient_must_agree(tmp_path: Path, rows: str, said: str) -> None:
    one = tmp_path / "one.csv"
    one.write_text("case_id,slide_id,PR\nP1,S1,positive\nP2,S2,negative\n" + rows)
    config = config_for(tmp_path, cohort={"clinical": str(one), "slides": None})
    fails(config, "one.csv", said, "give all its rows the same one")
    with one.open("a") as stream:
        stream.write("P8,S8,positive\nP9,S9,negative\nP9,S10,negative\nQ,S11,a\nQ,S12,b\n")
    cohort = load_cohort(config, "skip")
    assert [(fault.kind, fault.problem) for fault in cohort.rejected] == [("patient", "duplicated")]
    assert {"P8", "P9"} < set(cohort.patients.index)
    assert cohort.rejected[0].id not in cohort.patients.index
    assert reasons(cohort)["slide", f"S{cohort.rejected[0].id[1]}"] == "its patient is rejected"
    assert "neither" in reasons(cohort)["patient", "Q"], "labels that are not studied may differ"


# --- bad rows


def everything_wrong(folder: Path) -> Config:
    """Ten good patients and, one by one, the faults that a table can have."""
    names = [f"P{i}" for i in range(10)]
    labels = ["positive", "negative"] * 5
    clinical = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    clinical += ["D1,positive", "D1,negative", ",negative", "X1,positive", "X2,negative", "B1,positive"]
    slides = [f"{name},{name}a.h5" for name in names] + ["P0,P0b.h5"]
    slides += [
        "P0,P0b.svs",
        "D1,D1a.h5",
        "X1,shared.h5",
        "X2,shared.h5",
        "X2,X2a.h5",
        "B1,sub/.h5",
        ",lost.h5",
        "P1,",
    ]
    omics = [f"{name},{i},{i + 0.5},{-i}" for i, name in enumerate(names)]
    omics[1], omics[2], omics[3] = "P1,1,,2", "P2,1,inf,2", "P3,1,low,2"
    omics[4], omics[6] = "P4,7,7,7", "P6,5,5.5,-5"
    omics += ["P7,1,2,3", ",1,2,3"]
    (folder / "clinical.csv").write_text("PATIENT,PR\n" + "\n".join(clinical) + "\n")
    (folder / "slides.csv").write_text("PATIENT,FILENAME\n" + "\n".join(slides) + "\n")
    (folder / "omics.csv").write_text("PATIENT,A,B,C\n" + "\n".join(omics) + "\n")
    return config_for(folder, cohort={"omics": str(folder / "omics.csv")})


def test_every_fault_is_listed_and_nothing_good_is_touched(tmp_path: Path) -> None:
    config = everything_wrong(tmp_path)
    fails(
        config, "2 of the 16 rows of ", "4 of the 19 rows of ", "8 of the 12 rows of ", " cannot be used, the first: "
    )
    cohort = load_cohort(config, "skip")
    assert {(fault.kind, fault.id): fault.problem for fault in cohort.rejected} == {
        ("patient", "D1"): "duplicated",
        ("patient", "data row 13"): "missing value",
        ("slide", "shared"): "duplicated",
        ("slide", "sub/.h5"): "misshapen",
        ("slide", "lost"): "missing value",
        ("slide", "data row 19"): "missing value",
        ("omics", "P1"): "missing value",
        ("omics", "P2"): "not finite",
        ("omics", "P3"): "not a number",
        ("omics", "P4"): "constant",
        ("omics", "P5"): "duplicated",
        ("omics", "P6"): "duplicated",
        ("omics", "P7"): "duplicated",
        ("omics", "data row 12"): "missing value",
    }
    assert cohort.patients.index.tolist() == ["P0", *(f"P{i}" for i in range(1, 10)), "X2"]
    assert cohort.slides["slide_id"].tolist() == ["P0a", "P0b", *(f"P{i}a" for i in range(1, 10)), "X2a"]
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == ["P0", "P8", "P9"]
    found = reasons(cohort)
    assert found == {
        ("patient", "B1"): "all its slides are rejected",
        ("patient", "X1"): "all its slides are rejected",
        ("slide", "D1a"): "its patient is rejected",
    }
    assert all(str(tmp_path) in fault.location and fault.location in fault.reason for fault in cohort.rejected)
    assert "3 omics entries rejected (duplicated): P5, P6, P7." in cohort.summary()


def test_what_belongs_to_nothing_is_told_from_what_is_left_out_by_choice(tmp_path: Path) -> None:
    clinical = CLINICAL + "E,Equivocal\nX,negative\n"
    slides = SLIDES + "E,SE.h5\nghost,SG.h5\n"
    excluded = load_cohort(write(tmp_path, clinical, slides, OMICS + "E,1,2\nghost,1,2\nX,3,4\n")).excluded
    assert list(excluded.columns) == ["kind", "id", "reason", "problem"]
    problems = {(row.kind, row.id): row.problem for row in excluded.itertuples()}
    assert problems == {
        ("patient", "E"): "",
        ("patient", "X"): "unmatched",
        ("slide", "SE"): "",
        ("slide", "SG"): "unmatched",
        ("omics", "E"): "",
        ("omics", "X"): "",
        ("omics", "ghost"): "unmatched",
    }


def test_a_class_whose_rows_are_all_bad_is_refused_even_when_skipping(tmp_path: Path) -> None:
    config = write(tmp_path, slides=SLIDES.replace("S1.h5", "x/").replace("S3.h5", "x/"))
    for on_error in ("stop", "skip"):
        with pytest.raises(
            InputError, match=r"no patient of class 'positive' is left, because 2 rows.*'x/' in data row 1 is not"
        ):
            load_cohort(config, on_error)  # type: ignore[arg-type]


VICTIMS = ("clinical", "slide", "twice", "stolen", "blank", "word", "constant", "copied", "no number of genes")


@hypothesis_settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 11), st.sampled_from(VICTIMS), max_size=7),
    st.randoms(use_true_random=False),
)
def test_skip_leaves_exactly_the_good_rows(victims: dict[int, str], random: object) -> None:
    names = [f"P{i:02}" for i in range(12)] + ["Z0", "Z1"]
    clinical = [f"{name},{('negative', 'positive')[i % 2]}" for i, name in enumerate(names)]
    slides = [f"{name},{name}.h5" for name in names]
    rng = np.random.default_rng(0)
    omics = {name: [f"{value:.4f}" for value in rng.normal(size=5)] for name in names}
    gone, silent = set(), set()
    for i, fault in victims.items():
        name = names[i]
        if fault == "clinical":
            clinical.append(f"{name},{('positive', 'negative')[i % 2]}")
        elif fault == "slide":
            slides[i] = f"{name},{name}/.h5"
        elif fault == "twice":
            slides.append(f"{name},{name}.svs")
        elif fault == "stolen":
            slides.append(f"Z0,{name}.h5")
        else:
            omics[name] = {
                "blank": [*omics[name][:4], ""],
                "word": ["low", *omics[name][1:]],
                "constant": ["2"] * 5,
                "copied": omics["Z1"],
            }.get(fault, ["1e99", *omics[name][1:]])
            silent |= ({name} if fault != "blank" else set()) | ({"Z1"} if fault == "copied" else set())
        gone |= {name} if fault in ("clinical", "slide", "stolen") else set()
    lines = [f"{name},{','.join(values)}" for name, values in omics.items()]
    random.shuffle(clinical), random.shuffle(slides), random.shuffle(lines)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        write(
            Path(folder),
            "PATIENT,PR\n" + "\n".join(clinical) + "\n",
            "PATIENT,FILENAME\n" + "\n".join(slides) + "\n",
            "PATIENT,A,B,C,D,E\n" + "\n".join(lines) + "\n",
        )
        config = config_for(Path(folder), cohort={"omics": f"{folder}/omics.csv"}, omics={"max_missing_share": 0.9})
        cohort = load_cohort(config, "skip")
        if set(victims.values()) - {"blank", "twice"}:
            said = re.findall(r"(\d+) of the \d+ rows of ", fails(config, "cannot be used, the first: "))
            assert sum(map(int, said)) == len(cohort.rejected)
        else:
            assert load_cohort(config).fingerprint() == cohort.fingerprint()
    left = [name for name in names if name not in gone]
    assert cohort.patients.index.tolist() == left
    assert cohort.slides["slide_id"].tolist() == left
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == [name for name in left if name not in silent]
    for name, row in zip(cohort.omics.index, cohort.omics.to_numpy(), strict=True):
        np.testing.assert_array_equal(row, [np.float32(value or "nan") for value in omics[name]])
    assert {fault.id for fault in cohort.rejected} >= {names[i] for i, fault in victims.items() if fault == "clinical"}


def feature_fault(slide: str) -> Fault:
    return Fault(
        "slide", slide, "unreadable", f"/features/{slide}.h5", f"/features/{slide}.h5 is damaged: write it again"
    )


def test_slides_that_turned_out_bad_take_their_lonely_patients_along(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, slides=SLIDES + "P2,S2b.h5\n", omics=OMICS))
    less = cohort.without_slides([feature_fault("S1"), feature_fault("S2")])
    assert less.patients.index.tolist() == ["P2", "P3", "P4"]
    assert less.slides["slide_id"].tolist() == ["S2b", "S3", "S4"]
    assert less.slides.index.tolist() == [0, 1, 2]
    assert less.omics is not None
    assert less.omics.index.tolist() == ["P3"]
    assert reasons(less) == {
        ("patient", "P1"): "all its slides are rejected",
        ("omics", "P1"): "its patient is left out",
    }
    assert (less.excluded["problem"] == "").all()
    assert less.rejected == (feature_fault("S1"), feature_fault("S2"))
    assert len(cohort.patients) == 4, "the cohort itself stays"
    with pytest.raises(InputError, match=r"no patient of class 'positive' is left, .*S1\.h5 is damaged"):
        cohort.without_slides([feature_fault("S1"), feature_fault("S3")])
    same: Cohort = cohort.without_slides([])
    assert same.fingerprint() == cohort.fingerprint()
