"""Labels that are a slide's: patients whose slides agree, and those whose slides differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.cures import cures_in, with_value
from support.written_tables import config_for, fails, reasons

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config

ONE = """case_id,slide_id,label
P1,S1a,tumor
P1,S1b,tumor
P2,S2a,normal
P3,S3a,normal
P3,S3b,tumor
P4,S4a,normal
P4,S4b,artefact
P5,S5a,
P5,S5b,tumor
P6,S6a,artefact
"""


def one_table(folder: Path, text: str = ONE, **cohort: str) -> Config:
    (folder / "one.csv").write_text(text)
    classes = {"positive": "tumor", "negative": "normal", "label": "label"}
    return config_for(folder, cohort={"clinical": str(folder / "one.csv"), "slides": None, **classes, **cohort})


def two_tables(folder: Path, **cohort: str) -> Config:
    """The same slides and labels beside a clinical table without labels."""
    (folder / "clinical.csv").write_text("PATIENT,AGE\n" + "".join(f"P{i},{40 + i}\n" for i in range(1, 8)))
    (folder / "slides.csv").write_text(ONE)
    classes = {"positive": "tumor", "negative": "normal", "label": "label"}
    return config_for(folder, cohort={**classes, **cohort})


def labels_of(cohort: Cohort) -> dict[str, str]:
    return dict(zip(cohort.patients.index, cohort.patients["label"], strict=True))


@pytest.mark.parametrize("write", [one_table, two_tables])
def test_slides_that_differ_are_refused_with_settings_that_cure_it(tmp_path: Path, write: object) -> None:
    config = write(tmp_path)  # type: ignore[operator]
    said = fails(config, "3 of the 10 rows", "patient 'P3' has several values of 'label'", "'normal' in data row 4")
    cures = cures_in(said)
    assert cures == [("cohort.slide_labels", "any_positive")] and "or to leave_out" in said
    positive = load_cohort(with_value(config, *cures[0]))
    assert labels_of(positive) == {"P1": "tumor", "P2": "normal", "P3": "tumor", "P4": "normal", "P5": "tumor"}
    assert positive.slides["slide_id"].tolist() == ["S1a", "S1b", "S2a", "S3a", "S3b", "S4a", "S5b"]
    told = " ".join(positive.summary())
    assert "1 patient has slides of both classes, such as 'P3'" in told and "cohort.bag: patient" in told
    assert reasons(positive)["slide", "S4b"] == "the slide's label is 'artefact', neither 'tumor' nor 'normal'"
    assert reasons(positive)["slide", "S5a"] == "the slide's label is blank"
    without = load_cohort(with_value(config, "cohort.slide_labels", "leave_out"))
    assert labels_of(without) == {"P1": "tumor", "P2": "normal", "P4": "normal", "P5": "tumor"}
    assert "both classes" in reasons(without)["patient", "P3"]
    assert set(without.slides["patient_id"]) == set(without.patients.index)


def test_every_patient_and_slide_is_in_the_cohort_or_listed(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(30):
        rows = [
            (f"P{i}", f"S{i}{slide}", rng.choice(["tumor", "normal", "normal", "other", ""]))
            for i in range(12)
            for slide in "abc"[: rng.randint(1, 3)]
        ]
        rows += [("PX", "X1", "tumor"), ("PY", "Y1", "normal")]
        text = "case_id,slide_id,label\n" + "".join(",".join(row) + "\n" for row in rows)
        for rule in ("any_positive", "leave_out"):
            cohort = load_cohort(one_table(tmp_path, text, slide_labels=rule))
            out = reasons(cohort)
            for patient, slide, label in rows:
                assert (patient in cohort.patients.index) != (("patient", patient) in out)
                assert (slide in set(cohort.slides["slide_id"])) != (("slide", slide) in out)
                own = {other for name, _, other in rows if name == patient}
                if patient in cohort.patients.index:
                    assert (cohort.patients.loc[patient, "y"] == 1) == ("tumor" in own)
                    assert label in ("tumor", "normal") or ("slide", slide) in out
                elif rule == "any_positive":
                    assert not own & {"tumor", "normal"}


def test_labels_of_the_table_of_slides_are_told(tmp_path: Path) -> None:
    cohort = load_cohort(two_tables(tmp_path, slide_labels="any_positive"))
    assert "slides.csv: the label 'label' is read from this table" in " ".join(cohort.summary())
    assert reasons(cohort)["patient", "P7"] == "no slide with a label"


def test_patients_left_out_may_not_empty_a_class(tmp_path: Path) -> None:
    text = "case_id,slide_id,label\nP1,a,tumor\nP1,b,normal\nP2,c,normal\n"
    fails(one_table(tmp_path, text, slide_labels="leave_out"), "no patient of class 'tumor'", "set cohort.slide_labels")


def test_a_slide_can_be_the_unit_with_its_patient_as_site(tmp_path: Path) -> None:
    rows = [
        (f"P{i}", f"S{i}{slide}", ("tumor", "normal")[(i + (slide == "b")) % 2]) for i in range(20) for slide in "ab"
    ]
    text = "case_id,slide_id,label\n" + "".join(",".join(row) + "\n" for row in rows)
    config = one_table(tmp_path, text, patient_column="slide_id", slide_column="slide_id")
    config = with_value(with_value(config, "folds.site", "case_id"), "folds.n", 4)
    cohort = load_cohort(config)
    assert labels_of(cohort) == {slide: label for _, slide, label in rows}
    patient_of = {slide: patient for patient, slide, _ in rows}
    plan = make_folds(config, cohort)
    for fold in plan.folds:
        tested = {patient_of[slide] for slide, role in plan.roles(fold).items() if role == "test"}
        trained = {patient_of[slide] for slide, role in plan.roles(fold).items() if role != "test"}
        assert tested and trained and not tested & trained
