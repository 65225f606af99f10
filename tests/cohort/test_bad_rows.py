"""Rows and slides that cannot be used: all are listed, and only they and what hangs on them are left out."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.written_tables import CLINICAL, OMICS, SLIDES, config_for, fails, reasons, write

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault


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
