"""A person is one patient, whatever the rows of the clinical table call it, or the table is refused."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from support.written_tables import config_for, fails

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.folds import make_folds
from momkd_ray.cohort.identifiers import canonical, match_identifiers
from momkd_ray.cohort.spellings import spelt_alike
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError

N = 12
BARCODES = {  # two identifiers of a person, of which the number is the person's
    "vials": ("TCGA-A1-{:04d}-01A", "TCGA-A1-{:04d}-01Z"),
    "slides": ("TCGA-A1-{:04d}-01Z-00-DX1", "TCGA-A1-{:04d}-01Z-00-DX2"),
    "tumour and normal": ("TCGA-A1-{:04d}-01A", "TCGA-A1-{:04d}-11A"),
    "patient and sample": ("TCGA-A1-{:04d}", "TCGA-A1-{:04d}-01A"),
    "case and separators": ("TCGA-A1-{:04d}", "tcga.a1.{:04d}"),
    "TARGET": ("TARGET-30-PA{:04d}-01A", "TARGET-30-PA{:04d}-09B"),
}
OTHERS = {
    "case": ("P-{:03d}", "p-{:03d}"),
    "separators": ("P-{:03d}", "P_{:03d}"),
    "zeros": ("{:03d}", "{}"),
    "decimals": ("{}.0", "{}"),
    "no barcode": ("TCGA-A1-{:04d}-DX1", "TCGA-A1-{:04d}-DX2"),
}
Row = tuple[str, str, str]  # patient, slide, label


def rows_of(spellings: Sequence[str], label: Sequence[str] = ("negative", "positive")) -> list[Row]:
    return [(spelt.format(i), f"S{i}-{k}", label[i % 2]) for i in range(1, N + 1) for k, spelt in enumerate(spellings)]


def written(folder: Path, rows: Sequence[Row], *, one_table: bool, **sections: dict[str, object]) -> Config:
    """A table as CLAM's, or a table of labels and one of slides, with the same rows."""
    if one_table:
        text = "case_id,slide_id,PR\n" + "".join(f"{','.join(row)}\n" for row in rows)
    else:
        text = "PATIENT,PR\n" + "".join(f"{patient},{label}\n" for patient, _, label in rows)
        slides = "PATIENT,FILENAME\n" + "".join(f"{patient},{slide}.svs\n" for patient, slide, _ in rows)
        (folder / "slides.csv").write_text(slides)
    (folder / "clinical.csv").write_text(text)
    cohort = {"slides": None} if one_table else {}
    return config_for(folder, cohort=cohort | sections.pop("cohort", {}), **sections)


def told(cohort: Cohort) -> str:
    return " ".join(cohort.summary())


@pytest.mark.parametrize("one_table", [True, False])
@pytest.mark.parametrize("kind", BARCODES)
def test_barcodes_of_a_patient_are_one_patient(tmp_path: Path, kind: str, one_table: bool) -> None:
    rows = rows_of(BARCODES[kind])
    config = written(tmp_path, rows, one_table=one_table)
    cohort = load_cohort(config)
    assert len(cohort.patients) == N and len(cohort.slides) == 2 * N
    assert (cohort.slides["patient_id"].value_counts() == 2).all()
    first, second = rows[0][0], rows[1][0]
    assert "24 identifiers are read as 12 patients" in told(cohort)
    assert f"such as '{first}' and '{second}' as '{cohort.patients.index[0]}'" in told(cohort)
    random.Random(0).shuffle(rows)
    assert load_cohort(written(tmp_path, rows, one_table=one_table)).fingerprint() == cohort.fingerprint()


@pytest.mark.parametrize("one_table", [True, False])
def test_barcodes_of_a_patient_must_agree_as_its_rows_must(tmp_path: Path, one_table: bool) -> None:
    rows = rows_of(BARCODES["vials"])
    rows[0] = (*rows[0][:2], "negative")
    said = fails(written(tmp_path, rows, one_table=one_table), "patient 'TCGA-A1-0001' has several values of 'PR'")
    assert "'negative' in data row 1, 'positive' in data row 2" in said


@pytest.mark.parametrize("one_table", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_another_spelling_is_refused_until_both_are_alike_or_differ(tmp_path: Path, kind: str, one_table: bool) -> None:
    once, twice = OTHERS[kind]
    rows = [row for row in rows_of([once, twice]) if row[1] == "S3-1" or row[1].endswith("-0")]
    config = written(tmp_path, rows, one_table=one_table)
    names = once.format(3), twice.format(3)
    said = fails(config, "clinical.csv", f"'{names[0]}' (data row 3)", f"'{names[1]}' (data row 4)", "2 of the 13 rows")
    cohort = load_cohort(config, on_error="skip")
    assert {fault.id for fault in cohort.rejected} == set(names)
    assert all(f"patient '{fault.id}'" in fault.reason for fault in cohort.rejected)
    assert len(cohort.patients) == N - 1 and set(cohort.slides["patient_id"]) == set(cohort.patients.index)
    cure = re.search(r"write '(.*)' in all these rows", said)
    alike = cure[1] if cure else names[0]
    for patient, patients in ((alike, N), *([] if cure else [("Q-77", N + 1)])):
        mended = [(patient, *row[1:]) if row[0] == names[1] or (cure and row[0] in names) else row for row in rows]
        assert len(load_cohort(written(tmp_path, mended, one_table=one_table)).patients) == patients


def test_spellings_of_people_outside_the_study_refuse_nothing(tmp_path: Path) -> None:
    rows = [*rows_of(["P{:03d}"]), ("X-1", "X1", "other"), ("x-1", "X2", ""), ("X_1", "X3", "")]
    assert len(load_cohort(written(tmp_path, rows, one_table=True)).patients) == N
    fails(written(tmp_path, [*rows, ("X.1", "X4", "positive")], one_table=True), "patient 'X-1' (data row 13)")


@pytest.mark.parametrize("spelt", ["P{:03d}", "{:03d}", "{}", "TCGA-A1-{:04d}", "TCGA-A1-{:04d}-01A", "1.{}", "X{}"])
@pytest.mark.parametrize("one_table", [True, False])
def test_one_spelling_stays_as_written(tmp_path: Path, spelt: str, one_table: bool) -> None:
    cohort = load_cohort(written(tmp_path, rows_of([spelt, spelt]), one_table=one_table))
    assert set(cohort.patients.index) == {spelt.format(i) for i in range(1, N + 1)}
    assert len(cohort.slides) == 2 * N and "are read as" not in told(cohort)


@pytest.mark.parametrize("kind", [int, float, str])
@pytest.mark.parametrize("suffix", ["xlsx", "parquet"])
def test_numbers_of_spreadsheets_are_one_spelling(tmp_path: Path, kind: type, suffix: str) -> None:
    frame = pd.DataFrame(rows_of(["{}", "{}"]), columns=["PATIENT", "slide_id", "PR"])
    frame["PATIENT"] = frame["PATIENT"].astype(kind)
    path = tmp_path / f"one.{suffix}"
    frame.to_excel(path, index=False) if suffix == "xlsx" else frame.to_parquet(path)
    cohort = load_cohort(config_for(tmp_path, cohort={"clinical": str(path), "slides": None}))
    assert set(cohort.patients.index) == {str(i) for i in range(1, N + 1)} and len(cohort.slides) == 2 * N


def test_slides_may_spell_a_patient_in_several_ways(tmp_path: Path) -> None:
    config = written(tmp_path, rows_of(["P-{:03d}"]), one_table=False)
    spellings = ("P-{:03d}", "p-{:03d}", "P_{:03d}", "p {:03d}")
    rows = [f"{spelt.format(i)},S{i}-{k}.svs\n" for i in range(1, N + 1) for k, spelt in enumerate(spellings)]
    (tmp_path / "slides.csv").write_text("PATIENT,FILENAME\n" + "".join(rows))
    cohort = load_cohort(config)
    assert len(cohort.patients) == N and (cohort.slides["patient_id"].value_counts() == len(spellings)).all()


def test_omics_of_a_merged_patient_follow_the_rules_of_samples(tmp_path: Path) -> None:
    config = written(tmp_path, rows_of(BARCODES["vials"]), one_table=True, cohort={"omics": str(tmp_path / "o.csv")})
    barcodes = [f"TCGA-A1-{i:04d}-{kind}" for i in range(1, N + 1) for kind in ("01A", "11A")]
    lines = [f"{name},{k}.5,{k * k}.25,{3 * k + 1}.5\n" for k, name in enumerate(barcodes)]
    (tmp_path / "o.csv").write_text("PATIENT,A,B,C\n" + "".join(lines))
    cohort = load_cohort(config)
    assert cohort.omics is not None and list(cohort.omics.index) == list(cohort.patients.index)
    assert "12 samples of normal tissue, blood or a control left out" in told(cohort)
    (tmp_path / "o.csv").write_text("PATIENT,A,B,C\n" + "".join([*lines, "TCGA-A1-0001-01B,7,8,9\n"]))
    fails(config, "patient 'TCGA-A1-0001' has 2 samples that differ", "TCGA-A1-0001-01B")


@pytest.mark.parametrize("kind", ["TCGA-A1-{:04d}-01A", "S{}-0"])
def test_a_split_with_barcodes_of_a_patient_on_two_sides_is_refused(tmp_path: Path, kind: str) -> None:
    other = {"TCGA-A1-{:04d}-01A": "TCGA-A1-{:04d}-01Z", "S{}-0": "S{}-1"}[kind]
    split = {"folds": {"file": str(tmp_path / "split.csv")}}
    config = written(tmp_path, rows_of(BARCODES["vials"]), one_table=True, **split)
    sides = {i: "train" if i <= 8 else "test" for i in range(1, N + 1)}
    lines = [f"{name.format(i)},{side}\n" for i, side in sides.items() for name in (kind, other)]
    (tmp_path / "split.csv").write_text("PATIENT,split\n" + "".join(lines))
    cohort = load_cohort(config)
    assert len(make_folds(config, cohort).roles(0)) == N
    (tmp_path / "split.csv").write_text(
        "PATIENT,split\n" + "".join(lines).replace(f"{other.format(2)},train", f"{other.format(2)},test")
    )
    with pytest.raises(InputError, match=r"patient 'TCGA-A1-0002' is on two sides"):
        make_folds(config, cohort)


def test_slides_predicted_for_themselves_stay_apart_and_their_patients_together(tmp_path: Path) -> None:
    spelt = BARCODES["slides"]
    rows = [
        (f"TCGA-A1-{i:04d}", name.format(i), ("positive", "negative")[(i + k) % 2])
        for i in range(N)
        for k, name in enumerate(spelt)
    ]
    columns = {"patient_column": "slide_id", "slide_column": "slide_id"}
    unsafe = load_cohort(written(tmp_path, rows, one_table=True, cohort=columns))
    assert len(unsafe.patients) == 2 * N
    assert "12 patients have several names in 'slide_id'" in unsafe.summary()[0]
    assert "set folds.site to the column of patients" in unsafe.summary()[0]

    def with_site(rows: Sequence[Row]) -> Config:
        return written(tmp_path, rows, one_table=True, cohort=columns, folds={"site": "case_id", "n": 3})

    safe = load_cohort(with_site(rows))
    assert len(safe.patients) == 2 * N and "several names" not in told(safe)
    samples = load_cohort(with_site([(f"{patient}-0{k % 2 + 1}A", *row) for k, (patient, *row) in enumerate(rows)]))
    assert samples.patients["site"].tolist() == safe.patients["site"].tolist()
    assert "24 identifiers are read as 12 patients" in told(samples)
    other = [(f"P{patient[-2:]}" if k % 2 else f"p{patient[-2:]}", *row) for k, (patient, *row) in enumerate(rows)]
    fails(with_site(other), "24 rows or files", "has the 'case_id' 'p00', the same as 'P00' (data row 2)")


def test_alike_are_those_that_another_table_would_match() -> None:
    rng = random.Random(0)
    for _ in range(300):
        name, other = ("".join(rng.choices("aA01-_.x", k=rng.randint(1, 4))) for _ in range(2))
        if not canonical(name) or name == other:
            continue
        matched = bool(match_identifiers([name], [other]).own)
        assert matched == (name in spelt_alike([name, other])) or not canonical(other)
    people = ["P1", "P10", "P-1-0", "1", "10", "TCGA-A1-0001", "TCGA-A1-0002", "TCGA-A1-00010"]
    assert spelt_alike(people) == {}
