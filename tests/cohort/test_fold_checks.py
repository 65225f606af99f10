"""Who is really trained on, validated and tested by a split, and what is told of the others before anything begins."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.split_files import KINDS, fold_config, partition, study_cohort, with_file, write_split
from support.written_tables import cohort_of, config_for

from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.exclusions import NEVER_TESTED, NOT_TRAINED, UNKNOWN_IN_SPLIT
from momkd_ray.cohort.fold_checks import (
    FEW,
    check_gene_selection,
    few_validated,
    few_validated_sentence,
    folds_without_gene_selection,
    trained_patients,
)
from momkd_ray.cohort.folds import make_folds
from momkd_ray.cohort.genes import fit_genes
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import FaultsError
from momkd_ray.progress import ProgressReporter, _time_left


@given(
    kind=st.sampled_from(KINDS),
    untested=st.sets(st.integers(0, 15), max_size=2),
    gone=st.sets(st.integers(0, 15), max_size=1),
)
def test_whom_a_split_never_tests_and_whom_it_names_in_vain_are_told(
    kind: str, untested: set[int], gone: set[int]
) -> None:
    """The split is of all 16 patients, and the cohort has lost some of them without a word."""
    with tempfile.TemporaryDirectory() as folder:
        config, whole = study_cohort(Path(folder))
        roles = {
            fold: {
                name: "train" if int(name[1:]) in untested and role == "test" else role for name, role in own.items()
            }
            for fold, own in partition(list(whole.patients.index)).items()
        }
        names = {f"P{i:02}" for i in gone}
        cohort = replace(
            whole,
            patients=whole.patients.drop(list(names)),
            slides=whole.slides[~whole.slides["patient_id"].isin(names)],
        )
        config = with_file(config, write_split(Path(folder), kind, roles, whole))
        plan = make_folds(config, cohort)
    told = {(reason, thing, name) for thing, name, reason, _ in plan.left_out}
    assert {name for reason, _, name in told if reason == NEVER_TESTED} == {f"P{i:02}" for i in untested - gone}
    strangers = {(thing, name) for reason, thing, name in told if reason == UNKNOWN_IN_SPLIT}
    if kind == "CLAM":
        lost = whole.slides.loc[whole.slides["patient_id"].isin(names), "slide_id"]
        assert strangers == {("slide", name) for name in lost}
    else:
        made_up = {"stranger-train", "stranger-test"} if kind == "STAMP" else set()
        assert strangers == {("patient", name) for name in names | made_up}
    assert {problem for *_, problem in plan.left_out} <= {"unmatched"}
    assert {name for _, name, *_ in plan.left_out}.isdisjoint(cohort.excluded["id"])


def test_whoever_the_cohort_leaves_out_is_no_stranger_to_the_split(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    config = with_file(config, write_split(tmp_path, "folds.csv", partition(list(cohort.patients.index)), cohort))
    less = replace(cohort, patients=cohort.patients.drop(["P03"]))
    assert [name for _, name, *_ in make_folds(config, less).left_out] == ["P03"]
    assert not make_folds(config, less.with_excluded([("patient", "P03", "the label is blank", "")])).left_out


def with_omics(cohort: Cohort, holders: set[int]) -> Cohort:
    rows = sorted(holders)
    omics = pd.DataFrame(
        np.random.default_rng(0).normal(size=(len(rows), 4)),
        index=pd.Index([cohort.patients.index[i] for i in rows], name="patient_id"),
        columns=list("ABCD"),
    )
    return replace(cohort, omics=omics)


@given(holders=st.sets(st.integers(0, 23), max_size=10), drop=st.booleans(), n=st.integers(2, 4))
def test_a_fold_is_told_beforehand_exactly_if_its_genes_could_not_be_chosen(
    holders: set[int], drop: bool, n: int
) -> None:
    cohort = with_omics(cohort_of([0, 1] * 12), holders)
    config = config_for(
        Path("/none"),
        cohort={"omics": "/none/rna.csv"},
        folds={"n": n},
        omics={"missing": "drop" if drop else "keep"},
        genes={"select": "variance"},
    )
    plan = make_folds(config, cohort)
    assert cohort.omics is not None
    failing = set()
    for fold in plan.folds:
        trained = trained_patients(config, cohort, plan, fold)
        taught = cohort.omics.loc[[name for name in trained if name in cohort.omics.index]]
        assert not drop or len(taught) == len(trained)
        try:
            fit_genes(taught, cohort.patients["y"].loc[taught.index].to_numpy(), config.genes, seed=1)
        except (InputError, ValueError):
            failing.add(f"fold {fold}")
    faults = folds_without_gene_selection(config, cohort, plan)
    assert {fault.id for fault in faults} == failing
    if failing:
        with pytest.raises(
            FaultsError, match=r"^fold \d trains on no patient of class .*rna\.csv.*cohort\.omics to null"
        ):
            check_gene_selection(config, cohort, plan)
    else:
        check_gene_selection(config, cohort, plan)
    told = {name for _, name, reason, problem in plan.left_out if (reason, problem) == (NOT_TRAINED, "")}
    asked = {name for fold in plan.folds for name in plan.roles(fold).index[plan.roles(fold) == "train"]}
    assert told == (asked - set(cohort.omics.index) if drop else set())


@given(positives=st.integers(4, 60), negatives=st.integers(4, 60), n=st.integers(2, 4))
def test_small_validation_sets_are_told(positives: int, negatives: int, n: int) -> None:
    cohort = cohort_of([1] * positives + [0] * negatives)
    config = fold_config(n=n)
    plan = make_folds(config, cohort)
    small = {
        f"fold {fold}"
        for fold in plan.folds
        if any(((plan.roles(fold) == "val") & (cohort.patients["y"] == y)).sum() < FEW for y in (0, 1))
    }
    assert {fault.id for fault in few_validated(config, cohort, plan)} == small


@pytest.mark.parametrize(
    ("changes", "depends"),
    [
        ({}, "the threshold depends"),
        ({"train": {"keep": "best", "refit": False}}, "the epoch and the threshold depend"),
        ({"train": {"schedule": "plateau", "refit": False}}, "the learning rate and the threshold depend"),
        ({"search": {"train.lr": [0.1, 0.2]}}, "the setting and the threshold depend"),
        (
            {"search": {"train.keep": ["last", "best"]}, "train": {"refit": False}},
            "the setting, the epoch and the threshold depend",
        ),
        ({"cohort": {"classes": {"a": "0", "b": "1", "c": "2"}}}, ""),
        (
            {"cohort": {"classes": {"a": "0", "b": "1", "c": "2"}}, "train": {"keep": "best", "refit": False}},
            "the epoch depends",
        ),
        ({"cohort": {"task": "regression"}}, ""),
    ],
)
def test_only_what_the_validation_patients_choose_is_said_to_depend_on_few(
    changes: dict[str, Any], depends: str
) -> None:
    tree = fold_config(n=2).model_dump(mode="json", exclude_unset=True)
    for section, keys in changes.items():
        tree[section] = tree.get(section, {}) | keys
    config = Config.model_validate(tree)
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    cohort = cohort_of(labels)
    plan = make_folds(fold_config(n=2), cohort)
    faults = few_validated(config, cohort, plan)
    sentences = few_validated_sentence(faults, config)
    assert len(faults) == (2 if depends else 0)
    assert [f"on whom {depends}; raise" in sentence for sentence in sentences] == ([True] if depends else [])
    assert all(fault.reason.endswith(f": {depends} on few patients") for fault in faults)


def test_the_pace_is_that_from_the_first_piece_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 100.0, 111.0, 122.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = ProgressReporter()
    for done in (0, 10, 21, 100):
        progress.update("ingest", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "ingest: 0/100",
        "ingest: 10/100",
        "ingest: 21/100, about 1 min 19 s left",
        "ingest: 100/100",
    ]


@given(done=st.integers(0, 1000), remaining=st.integers(0, 1000), seconds=st.floats(0, 1e5))
def test_no_time_is_estimated_from_a_beginning(done: int, remaining: int, seconds: float) -> None:
    told = _time_left(done, remaining, seconds)
    early = seconds < 3 or done < 0.03 * (done + remaining)
    assert (told == "") == (early or not done or not remaining)
