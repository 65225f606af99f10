"""Tables as other tools write them, and the columns of patients, slides and labels that are found in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from support.written_tables import CLINICAL, OMICS, config_for, fails, write

from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError

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
