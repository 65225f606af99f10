"""A label of numbers: cut at its quantiles, whatever its scale; what is no number is told, and never lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.quantile_classes import quantile_bounds
from momkd_ray.config.load import Config, load_config
from momkd_ray.config.quantile_ranges import is_ranges, ranges_of
from momkd_ray.errors import InputError
from momkd_ray.input_faults import FaultsError
from momkd_ray.run.earlier_run import differing_keys

SCORES = ["3", "8", "10", "11", "12", "15", "16", "19", "21", "22", "30", "47"]
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-20, 20).map(float)


def config_of(folder: Path, scores: list[str], rows: str = "", **cohort: Any) -> Config:
    table = "".join(f'P{i:02},"{score}"\n' for i, score in enumerate(scores))
    (folder / "c.csv").write_text(f"PATIENT,ODX\n{table}{rows}")
    (folder / "s.csv").write_text("PATIENT,SLIDE\n" + "".join(f"P{i:02},S{i:02}.h5\n" for i in range(len(scores))))
    keys = {"clinical": str(folder / "c.csv"), "slides": str(folder / "s.csv"), "label": "ODX", "task": "regression"}
    tree = {"cohort": keys | cohort, "features": {"dir": str(folder / "f")}, "run": {"dir": str(folder / "run")}}
    return Config.model_validate(tree)


def cohort_of(folder: Path, scores: list[str], rows: str = "", **cohort: Any) -> Cohort:
    return load_cohort(config_of(folder, scores, rows, **cohort))


def class_of(bounds: list[str], values: list[float]) -> list[int]:
    return np.searchsorted([float(bound) for bound in bounds], values, side="right").tolist()


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(3, 10))
def test_classes_are_of_equal_size_as_far_as_equal_numbers_let_them(values: list[float], classes: int) -> None:
    bounds = quantile_bounds(values, classes)
    assert len(bounds) < classes and [float(b) for b in bounds] == sorted({float(b) for b in bounds})
    sizes = np.bincount(class_of(bounds, values), minlength=len(bounds) + 1)
    assert (sizes > 0).all()
    if len(set(values)) == len(values) and len(values) >= classes:
        assert len(sizes) == classes and np.ptp(sizes) <= 1


@given(st.lists(st.integers(-30, 30).map(float), min_size=1, max_size=60), st.integers(3, 10))
def test_only_the_ranks_decide(values: list[float], classes: int) -> None:
    stretched = [2.0 ** (value / 3) + value / 7 for value in values]
    assert class_of(quantile_bounds(values, classes), values) == class_of(
        quantile_bounds(stretched, classes), stretched
    )


def test_the_classes_are_ranges_with_names_that_people_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, SCORES)
    cohort = load_cohort(config)
    assert cohort.classes == ("under 11", "11 to 16", "16 to 22", "22 and over")
    assert cohort.patients["label"].value_counts().to_list() == [3, 3, 3, 3]
    assert cohort.patients["number"].tolist() == [float(score) for score in SCORES]
    resolved = cohort.resolved(config)
    assert resolved.cohort.labels_of(1) == (">= 11 and < 16",) and is_ranges(cohort.ranges or ())
    path = tmp_path / "run.yaml"
    path.write_text(resolved.to_yaml())
    again = load_config(path)
    assert again == resolved and load_cohort(again).fingerprint() == cohort.fingerprint()
    with pytest.raises(ValueError, match="not known before"):
        _ = config.cohort.class_names


@pytest.mark.parametrize(
    "written",
    [
        [f"{score}.0" for score in SCORES],
        [f"{score} %" for score in SCORES],
        [f"{score},5" for score in SCORES],
        [f"{int(score) - 20}" for score in SCORES],
        [f"{score}e-3" for score in SCORES],
        [f"0.0{int(score) + 10}12345678" for score in SCORES],
    ],
    ids=["point", "percent", "comma", "negative", "exponent", "small"],
)
def test_however_numbers_are_written_their_classes_are_the_same(tmp_path: Path, written: list[str]) -> None:
    plain, other = (cohort_of(tmp_path, scores) for scores in (SCORES, written))
    assert other.patients["y"].tolist() == plain.patients["y"].tolist()
    assert np.array_equal(np.argsort(other.patients["number"]), np.arange(len(SCORES)))


def test_the_number_counts_in_the_fingerprint_and_not_only_the_class(tmp_path: Path) -> None:
    plain, other = (cohort_of(tmp_path, [*SCORES[:-1], last]) for last in ("47", "48"))
    assert plain.classes == other.classes and plain.fingerprint() != other.fingerprint()


def test_what_says_that_it_is_missing_is_left_out_and_counted(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, [*SCORES, "[Not Available]", "", "unknown"])
    assert len(cohort.patients) == len(SCORES)
    reasons = dict(zip(cohort.excluded["id"], cohort.excluded["reason"], strict=True))
    assert reasons["P14"] == "the label is 'unknown', no number" and {"P12", "P13"} < set(reasons)


@pytest.mark.parametrize("word", ["<1", "10-20", ">= 30", "high", "1e999", "12 (estimated)"])
def test_what_is_no_number_is_refused_or_listed(tmp_path: Path, word: str) -> None:
    config = config_of(tmp_path, [*SCORES, word])
    with pytest.raises(FaultsError, match=re.escape(f"patient 'P12' has the 'ODX' '{word}' in data row 13")):
        load_cohort(config)
    cohort = load_cohort(config, "skip")
    assert [(fault.id, fault.problem) for fault in cohort.rejected] == [("P12", "not a number")]
    assert len(cohort.patients) == len(SCORES)


def test_rows_of_a_patient_agree_if_their_numbers_do(tmp_path: Path) -> None:
    same = cohort_of(tmp_path, SCORES, "P00,3.0\n")
    assert len(same.patients) == len(SCORES)
    with pytest.raises(FaultsError, match=r"several values of 'ODX' \('3' in data row 1, '4' in data row 13\)"):
        cohort_of(tmp_path, SCORES, "P00,4\n")  # of the same class


def test_slides_with_several_numbers_have_a_cure_that_works(tmp_path: Path) -> None:
    rows = "".join(f"P{i:02},S{i:02}.h5,{score}\n" for i, score in enumerate(SCORES))
    (tmp_path / "one.csv").write_text(f"PATIENT,SLIDE,ODX\n{rows}P00,S00b.h5,4\n")
    keys = {"clinical": str(tmp_path / "one.csv"), "label": "ODX", "task": "regression", "quantile_classes": 3}
    tree = {"cohort": keys, "features": {"dir": str(tmp_path)}}
    with pytest.raises(FaultsError, match=r"set cohort.slide_labels to leave_out"):
        load_cohort(Config.model_validate(tree))
    keys["slide_labels"] = "leave_out"
    cohort = load_cohort(Config.model_validate(tree))
    assert len(cohort.patients) == len(SCORES) - 1
    assert "its slides have several numbers (cohort.slide_labels: leave_out)" in set(cohort.excluded["reason"])


def test_patients_without_a_slide_do_not_move_the_quantiles(tmp_path: Path) -> None:
    others = "".join(f"X{i},{1000 + i}\n" for i in range(40))
    assert cohort_of(tmp_path, SCORES, others).classes == cohort_of(tmp_path, SCORES).classes


def test_many_equal_numbers_make_fewer_classes_and_that_is_told(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["0"] * 12 + ["1", "2", "3", "4", "5", "6", "7", "8"])
    assert cohort.classes == ("under 1", "1 to 4", "4 and over")
    assert any("makes 3 classes, not 4" in sentence for sentence in cohort.summary())


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (["0"] * 9 + ["1"] * 3, "12 patients has 2 different numbers, too few or too unevenly"),
        (
            ["low", "high", "low", "3"],
            r"'ODX' is no column of numbers \(3 of its 4 values are none, such as 'low' \(2\)",
        ),
        (["unknown", "", "NA"], r"'ODX' is no column of numbers \(it is blank\)"),
    ],
)
def test_a_column_that_cannot_be_cut_is_refused(tmp_path: Path, scores: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        cohort_of(tmp_path, scores)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"classes": ["a", "b", "c"]}, "leave classes out"),
        ({"classes": {"low": "< 11", "high": ">= 11"}}, "leave classes out"),
        ({"positive": ">= 25"}, "a number without positive: leave positive out"),
        ({"positive": "a", "negative": "b"}, "leave positive and negative out"),
        ({"ordered": False}, "leave ordered out"),
        ({"slide_labels": "any_positive"}, "set slide_labels to agree or leave_out"),
        ({"quantile_classes": 2}, "greater than or equal to 3"),
        ({"task": "classification", "quantile_classes": 5}, "set task to regression, or leave quantile_classes out"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config_of(tmp_path, SCORES, **keys)


def test_the_classes_of_other_patients_are_refused(tmp_path: Path) -> None:
    other = dict(ranges_of(["11", "20", "30"]))
    with pytest.raises(InputError, match=r"leave cohort.classes out"):
        cohort_of(tmp_path, SCORES, classes={name: own[0] for name, own in other.items()})


def test_another_number_of_classes_is_named_as_what_differs(tmp_path: Path) -> None:
    config = config_of(tmp_path, SCORES)
    three = config_of(tmp_path, SCORES, quantile_classes=3)
    resolved = [load_cohort(one).resolved(one) for one in (config, three)]
    assert differing_keys(*resolved) == ["cohort.quantile_classes was 4 and is 3"]
    assert resolved[0].answer_fingerprint() != resolved[1].answer_fingerprint()


def test_a_classification_keeps_its_fingerprint(tmp_path: Path) -> None:
    keys = config_of(tmp_path, SCORES, task="classification", positive=">= 15", negative="< 15").answer_keys()["cohort"]
    assert not {"task", "quantile_classes"} & set(keys)
    assert yaml.safe_load(config_of(tmp_path, SCORES).to_yaml())["cohort"]["quantile_classes"] == 4
