"""The table of patients and slides of `predict`: which columns are recognised, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.command_line import outcome
from support.feature_files import values, write_hdf5
from support.models import card_of, small_model

from momkd_ray.errors import InputError
from momkd_ray.model.bundle import save_bundle
from momkd_ray.predict.slides import list_slides, match_patients, open_slides


@pytest.fixture
def features(tmp_path: Path) -> str:
    """A folder with the files of three slides."""
    for name in ("a1", "a2", "b"):
        (tmp_path / f"{name}.h5").write_bytes(b"x")
    return str(tmp_path)


def table_of(folder: str, *names: str) -> str:
    path = Path(folder) / "slides.csv"
    rows = [("A", "a1.svs", "pos"), ("A", "a2.svs", "pos"), ("B", "b.svs", "neg")]
    lines = [",".join(names), *(",".join(row[: len(names)]) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("patient_id", "slide"), False),
        (("case", "FILENAME"), True),
        (("Case", "FILENAME", "PR status"), True),
        (("who", "FILENAME"), True),
        (("Patient ID", "FILENAME", "case"), False),
    ],
)
def test_the_patients_are_found_by_name_or_beside_the_slides(features: str, names: tuple[str, ...], told: bool) -> None:
    path = table_of(features, *names)
    opened = open_slides(path, None, None)
    assert opened is not None
    assert opened.patient_column == names[0]
    said = [f"the column '{names[0]}' is read as the patients'" in sentence for sentence in opened.told]
    assert said == [True] * told
    _, patients, faults = match_patients(opened, list_slides(features), features)
    assert (patients, faults) == ({"a1": "A", "a2": "A", "b": "B"}, [])


def test_messages_name_options_that_then_work(features: str) -> None:
    path, slides = table_of(features, "patient", "image"), list_slides(features)
    with pytest.raises(InputError, match=r"names the slides.*: give --slide-column the one that does") as told:
        match_patients(open_slides(path, None, None), slides, features)
    assert "cohort." not in str(told.value)
    _, patients, faults = match_patients(open_slides(path, None, "image"), slides, features)
    assert (patients, faults) == ({"a1": "A", "a2": "A", "b": "B"}, [])
    path = table_of(features, "who", "image", "note")
    with pytest.raises(InputError, match=r"names the patients.*: give --patient-column the one that does"):
        open_slides(path, None, None)
    chosen = open_slides(path, "who", "image")
    assert chosen is not None
    assert (chosen.patient_column, chosen.told) == ("who", ())
    with pytest.raises(InputError, match=r"has no column 'picture': give --slide-column one of its columns"):
        match_patients(open_slides(path, "who", "picture"), slides, features)


def predicted(folder: Path, rows: str, *options: str) -> tuple[int, pd.DataFrame]:
    """Predicts the patients of a table of slides."""
    (folder / "slides.csv").write_text(f"PATIENT,FILENAME,PR\n{rows}")
    (folder / "p.csv").unlink(missing_ok=True)
    given = ("--slides", str(folder / "slides.csv"), "--features", str(folder / "features"), "--patients")
    status = outcome("predict", str(folder / "model"), *given, "--out", str(folder / "p.csv"), *options)
    return status, pd.read_csv(folder / "p.csv", dtype={"patient_id": str}) if status == 0 else pd.DataFrame()


@pytest.fixture
def folder(tmp_path: Path, no_cluster: None) -> Path:
    """A model, and feature files of four slides."""
    model = small_model()
    save_bundle(str(tmp_path / "model"), model, card_of(model))
    (tmp_path / "features").mkdir()
    for seed, name in enumerate(("s1", "s2", "s3", "s4")):
        write_hdf5(tmp_path / "features" / f"{name}.h5", "trident", values(9, width=model.width, seed=seed))
    return tmp_path


def test_barcodes_of_a_patient_have_one_prediction_and_one_label(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "{0},s1,positive\n{1},s2,positive\nTCGA-A1-0002,s3,negative\nTCGA-A1-0003-01A,s4,negative\n"
    status, one = predicted(folder, rows.format("TCGA-A1-0001", "TCGA-A1-0001"))
    assert status == 0
    capsys.readouterr()
    status, several = predicted(folder, rows.format("TCGA-A1-0001-01Z-00-DX1", "tcga.a1.0001-01A"))
    assert status == 0
    pd.testing.assert_frame_equal(several, one)
    assert several["patient_id"].tolist() == ["TCGA-A1-0001", "TCGA-A1-0002", "TCGA-A1-0003-01A"]
    told = capsys.readouterr().err
    assert "2 identifiers are read as 1 patient" in told
    assert "such as 'TCGA-A1-0001-01Z-00-DX1' and 'tcga.a1.0001-01A' as 'TCGA-A1-0001'" in told
    assert "of 3 patients with PR" in told


@pytest.mark.parametrize(("first", "second"), [("P-7", "p_7"), ("007", "7"), ("TCGA-A1-0001-DX1", "TCGA-A1-0001-DX2")])
def test_other_spellings_of_a_person_are_refused_with_a_cure_that_works(
    folder: Path, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = f"{first},s1,positive\nB,s3,negative\n{second},s2,positive\nC,s4,negative\n"
    status, _ = predicted(folder, rows)
    assert status == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "2 of the table and 4 feature files cannot be used, the first: " in last
    assert "data row 1" in last and "data row 3" in last and "--on-error skip" in last
    assert "write" in last
    status, left = predicted(folder, rows, "--on-error", "skip")
    assert (status, left["patient_id"].tolist()) == (0, ["B", "C"])
    rejected = pd.read_csv(folder / "p.csv.rejected.csv", dtype=str)
    assert rejected[["kind", "id", "problem"]].values.tolist() == [
        ["patient", name, "duplicated"] for name in sorted((first, second))
    ]
    assert f"2 patients are left out; {folder / 'p.csv.rejected.csv'} lists them" in capsys.readouterr().err
    status, one = predicted(folder, rows.replace(f"\n{second},", f"\n{first},"))
    assert (status, len(one)) == (0, 3)
    # the same of heatmaps
    given = ("--slides", str(folder / "slides.csv"), "--features", str(folder / "features"))
    (folder / "slides.csv").write_text(f"PATIENT,FILENAME,PR\n{rows}")
    capsys.readouterr()
    assert outcome("heatmap", str(folder / "model"), *given, "--out", str(folder / "out"), "--slide", "s1") == 1
    assert last.split("; all are listed")[0] == capsys.readouterr().err.splitlines()[-1].split("; all are listed")[0]


def test_slides_that_are_predicted_for_themselves_and_people_without_files_are_no_spellings(folder: Path) -> None:
    rows = "P1,s1,positive\np1,z,positive\nB,s2,positive\n"
    assert predicted(folder, rows.replace("p1", "P2"))[0] == 0
    assert predicted(folder, rows)[0] == 1, "one of the two has a feature file"
    assert predicted(folder, "Q1,y,positive\nq1,z,positive\nB,s2,positive\n")[0] == 0
    table = folder / "slides.csv"
    table.write_text("slide_id\ns1\nS1\n")
    opened = open_slides(str(table), "slide_id", "slide_id")
    assert opened is not None
    assert opened.spelling_faults({"s1", "S1"}) == []
