"""Folds that are drawn: disjoint, whole, and no site tested in two of them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.split_files import fold_config
from support.written_tables import cohort_of, config_for

from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.folds import FoldPlan, check_disjoint, make_folds
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    positives=st.integers(4, 40),
    negatives=st.integers(4, 40),
    n=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    validation=st.floats(0.01, 0.49),
    data=st.data(),
)
def test_every_plan_is_a_partition_with_both_classes_everywhere(
    positives: int, negatives: int, n: int, seed: int, validation: float, data: st.DataObject
) -> None:
    labels = [1] * positives + [0] * negatives
    config = fold_config(n=n, seed=seed, validation=validation)
    cohort = cohort_of(labels)
    plan = make_folds(config, cohort)
    assert plan.folds == list(range(n))
    tested = pd.concat([plan.roles(fold)[lambda roles: roles == "test"] for fold in plan.folds])
    assert sorted(tested.index) == sorted(cohort.patients.index)
    for fold in plan.folds:
        roles = plan.roles(fold)
        assert (plan.table["fold"][roles == "test"] == fold).all()
        for y, total in ((1, positives), (0, negatives)):
            counts = roles[cohort.patients["y"] == y].value_counts()
            assert set(counts.index) == {"train", "val", "test"}
            assert abs(counts["test"] - total / n) < 1
            assert abs(counts["val"] - validation * (total - counts["test"])) <= 1
    order = data.draw(st.permutations(range(len(labels))))
    pd.testing.assert_frame_equal(make_folds(config, cohort_of(labels, order)).table, plan.table)


def test_the_seed_moves_the_folds() -> None:
    cohort = cohort_of([0, 1] * 20)
    one, two = (make_folds(fold_config(n=2, seed=seed), cohort).table for seed in (1, 2))
    assert not one.equals(two)


def test_the_validation_set_depends_on_seed_and_fold_alone(tmp_path: Path) -> None:
    """Imported twice, once without the patients of another fold's test set swapped: fold 0 is the same."""
    cohort = cohort_of([0, 1] * 10)
    names = cohort.patients.index
    plans = []
    for folds in ([0] * 8 + [1] * 6 + [2] * 6, [0] * 8 + [2] * 6 + [1] * 6):
        pd.DataFrame({"PATIENT": names, "fold": folds}).to_csv(tmp_path / "f.csv", index=False)
        plans.append(make_folds(fold_config(tmp_path, file=str(tmp_path / "f.csv")), cohort))
    assert plans[0].roles(0).equals(plans[1].roles(0))


def test_unstratified_folds_differ_from_stratified_ones() -> None:
    cohort = cohort_of([0] * 30 + [1] * 30)
    plan = make_folds(fold_config(n=3, stratify=False), cohort)
    counts = cohort.patients.groupby(plan.table["fold"])["y"].sum()
    assert plan.table["fold"].value_counts().tolist() == [20, 20, 20]
    assert counts.nunique() > 1


def test_too_few_patients_of_a_class_are_counted() -> None:
    with pytest.raises(InputError, match="class 'pos' has 3 patients, too few for 5 folds"):
        make_folds(fold_config(n=5), cohort_of([0] * 20 + [1] * 3))
    with pytest.raises(InputError, match="leaves 1 patients of class 'pos'"):
        make_folds(fold_config(n=2), cohort_of([0] * 20 + [1] * 2))


def test_a_plan_survives_its_file_exactly(tmp_path: Path) -> None:
    plan = make_folds(fold_config(n=3), cohort_of([0, 1] * 12))
    path = str(tmp_path / "folds.csv")
    plan.to_csv(path, "PATIENT")
    again = pd.read_csv(path, dtype={"PATIENT": str}).set_index("PATIENT").rename_axis("patient_id")
    pd.testing.assert_frame_equal(again, plan.table, check_dtype=False, check_index_type=False)


def test_a_patient_on_two_sides_is_an_error() -> None:
    plan = make_folds(fold_config(n=2), cohort_of([0, 1] * 6))
    name = plan.table.index[3]
    own, other = int(plan.table.loc[name, "fold"]), 1 - int(plan.table.loc[name, "fold"])
    leaks = []
    for column, value in ((f"role_{own}", "train"), (f"role_{other}", "test"), (f"role_{other}", "tset")):
        table = plan.table.copy()
        table.loc[name, column] = value
        leaks.append(table)
    twice = plan.table.loc[[name]].assign(fold=other)
    leaks.append(pd.concat([plan.table, twice]))
    for table in leaks:
        with pytest.raises(InputError, match=str(name)):
            check_disjoint(FoldPlan(table))


def site_config(folder: Path, rows: Sequence[tuple[str, str, str]], **folds: object) -> Config:
    """Patients (name, label, site), a slide each."""
    table = pd.DataFrame(rows, columns=["PATIENT", "PR", "SITE"])
    table.to_csv(folder / "clinical.csv", index=False)
    table.assign(FILENAME=table["PATIENT"] + ".h5")[["PATIENT", "FILENAME"]].to_csv(folder / "slides.csv", index=False)
    return config_for(folder, folds={"site": "SITE", "validation": 0.3} | folds)


@hypothesis_settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=4, max_size=14),
    n=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    stratify=st.booleans(),
)
def test_no_site_is_tested_in_two_folds(sizes: list[tuple[int, int]], n: int, seed: int, stratify: bool) -> None:
    rows = [
        (f"P{site}-{label}{i}", label, f"S{site}")
        for site, counts in enumerate(sizes)
        for label, count in zip(("positive", "negative"), counts, strict=True)
        for i in range(count)
    ]
    if len({label for _, label, _ in rows}) < 2:
        return
    with tempfile.TemporaryDirectory() as folder:
        config = site_config(Path(folder), rows, n=n, seed=seed, stratify=stratify)
        cohort = load_cohort(config)
        try:
            plan = make_folds(config, cohort)
        except InputError as error:  # too few of something, which the tests below look at
            event(str(error)[:6])
            return
        event("drawn")
        assert cohort.patients["site"].to_dict() == {name: site for name, _, site in rows}
        mixed = rows.copy()
        random.Random(seed).shuffle(mixed)
        again = make_folds(config, load_cohort(site_config(Path(folder), mixed, n=n, seed=seed, stratify=stratify)))
    pd.testing.assert_frame_equal(again.table, plan.table)
    assert plan.folds == list(range(n))
    assert (plan.table["fold"].groupby(cohort.patients["site"]).nunique() == 1).all()
    check_disjoint(plan)
    for fold in plan.folds:
        parts = {(role, y) for role, y in zip(plan.roles(fold), cohort.patients["y"], strict=True)}
        assert parts == {(role, y) for role in ("train", "val", "test") for y in (0, 1)}


def test_sites_are_spread_evenly_and_the_seed_moves_them(tmp_path: Path) -> None:
    rows = [(f"P{i:03}", ("negative", "positive")[i % 3 == 0], f"S{i % 24}") for i in range(240)]
    plans = []
    for seed in (1, 2):
        config = site_config(tmp_path, rows, n=4, seed=seed)
        plan = make_folds(config, load_cohort(config))
        assert plan.table["fold"].value_counts().tolist() == [60] * 4
        plans.append(plan)
    assert not plans[0].table["fold"].equals(plans[1].table["fold"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("S0", ""), r"clinical.csv: patient 'P00' has no 'SITE' \(data row 1\): fill it in"),
        (("S4", "S1"), "patients are of 4 sites.*too few for 5 folds: set folds.n to 4"),
        (("positive", "negative"), "no 'PR' is 'positive'"),
    ],
)
def test_bad_sites_are_told(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    rows = [(f"P{i:02}", ("positive", "negative")[i % 2], f"S{i // 4}") for i in range(20)]
    config = site_config(tmp_path, [(name, *(part.replace(*change) for part in rest)) for name, *rest in rows], n=5)
    with pytest.raises(InputError, match=said):
        make_folds(config, load_cohort(config))


def test_a_fold_without_a_class_and_contradicting_keys_are_told(tmp_path: Path) -> None:
    rows = [(f"P{i:02}", "positive" if i < 8 else "negative", "A" if i < 8 else f"S{i}") for i in range(20)]
    config = site_config(tmp_path, rows, n=3)
    with pytest.raises(InputError, match="would test no patient of class 'positive': use fewer folds, or a column"):
        make_folds(config, load_cohort(config))
    with pytest.raises(ValueError, match="leave one out"):
        config_for(tmp_path, folds={"site": "SITE", "file": "x.csv"})
    with pytest.raises(InputError, match=r"clinical.csv has no column 'CENTRE'"):
        load_cohort(site_config(tmp_path, rows, site="CENTRE"))
    rows[3] = ("P03", "positive", "")
    cohort = load_cohort(site_config(tmp_path, rows), "skip")
    assert [(fault.id, fault.problem) for fault in cohort.rejected] == [("P03", "missing value")]
    assert "P03" not in cohort.patients.index
