"""One split in every layout that people have it in gives the same folds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from support.split_files import study_cohort, with_file
from support.written_tables import config_for

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.folds import FoldPlan, make_folds
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError

Lists = Mapping[str, list[str]]
PARTS = ("train", "val", "test")


def fixed(cohort: Cohort) -> dict[str, list[str]]:
    """Patients of one split, 6 to train, 4 to validate and 6 to test."""
    names = [str(name) for name in cohort.patients.index]
    return {"train": names[:6], "val": names[6:10], "test": names[10:]}


def slides_of(cohort: Cohort, patients: list[str]) -> list[str]:
    return [s for s, p in zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True) if p in patients]


def by_row(cohort: Cohort, lists: Lists) -> pd.DataFrame:
    rows = [(name, role) for role, names in lists.items() for name in names]
    return pd.DataFrame(rows, columns=["PATIENT", "split"])


def three_files(folder: Path, lists: Lists, pattern: str = "{}.csv", column: str | None = "slide_id") -> str:
    place = folder / "official"
    for role, names in lists.items():
        path = place / pattern.format(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*([column] if column else []), *names]) + "\n")
    return str(place)


def wide(lists: Lists) -> pd.DataFrame:
    return pd.DataFrame({role: pd.Series(names, dtype="object") for role, names in lists.items()})


def table(folder: Path, frame: pd.DataFrame, name: str = "split.csv") -> str:
    frame.to_csv(folder / name, index=False)
    return str(folder / name)


def boolean(folder: Path, lists: Lists) -> str:
    rows = [[name, *(role == part for part in PARTS)] for role, names in lists.items() for name in names]
    return table(folder, pd.DataFrame(rows, columns=["name", *PARTS]))


def as_json(folder: Path, tree: object) -> str:
    (folder / "splits.json").write_text(json.dumps(tree))
    return str(folder / "splits.json")


LAYOUTS: dict[str, Callable[[Path, Cohort, Lists], str]] = {
    "split": lambda f, c, p: table(f, by_row(c, p)),
    "Training": lambda f, c, p: table(
        f,
        by_row(c, p)
        .replace({"train": "Training", "val": "Validation", "test": "TEST"})
        .rename(columns={"split": "set"}),
    ),
    "fold holds roles": lambda f, c, p: table(f, by_row(c, p).rename(columns={"split": "fold"})),
    "fold_0": lambda f, c, p: table(f, by_row(c, p).rename(columns={"split": "fold_0", "PATIENT": "case_id"})),
    "unnamed patients": lambda f, c, p: table(f, by_row(c, p).rename(columns={"PATIENT": "who"})),
    "three files": lambda f, c, p: three_files(f, {part: slides_of(c, own) for part, own in p.items()}),
    "three files with suffixes": lambda f, c, p: three_files(
        f, {part: [f"{slide}.svs" for slide in slides_of(c, own)] for part, own in p.items()}
    ),
    "three lists": lambda f, c, p: three_files(f, p, "{}.txt", None),
    "train_0": lambda f, c, p: three_files(f, p, "{}_0.csv", "patient_id"),
    "fold_0_train": lambda f, c, p: three_files(f, p, "fold_0_{}_split.tsv", "patient_id"),
    "fold_0/train": lambda f, c, p: three_files(f, p, "fold_0/{}.csv", "patient_id"),
    "splits_0 of patients": lambda f, c, p: (
        (f / "splits").mkdir() or table(f / "splits", wide(p), "splits_0.csv").removesuffix("/splits_0.csv")
    ),
    "one file of lists": lambda f, c, p: table(f, wide(p), "splits_0.csv"),
    "booleans": lambda f, c, p: boolean(f, p),
    "json": lambda f, c, p: as_json(f, p),
    "json of patients": lambda f, c, p: as_json(f, {"fold_0": {f"{part}_patients": own for part, own in p.items()}}),
}


def plan_of(folder: Path, config: Config, cohort: Cohort, layout: str, lists: Lists) -> FoldPlan:
    return make_folds(with_file(config, LAYOUTS[layout](folder, cohort, lists)), cohort)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fixed_split_is_one_fold_in_every_layout(tmp_path: Path, layout: str) -> None:
    config, cohort = study_cohort(tmp_path)
    lists = fixed(cohort)
    plan = plan_of(tmp_path, config, cohort, layout, lists)
    assert plan.folds == [0]
    assert {part: plan.table.index[plan.roles(0) == part].tolist() for part in PARTS} == lists
    whose = plan.understood[0].what.rpartition("; ")[2]
    assert whose in (
        "16 of its 16 patients have a label and slides",
        "22 of its 22 slides are of patients with a label",
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_names_of_a_split_and_the_cohorts_patients_are_counted_apart(tmp_path: Path, layout: str) -> None:
    config, cohort = study_cohort(tmp_path)
    lists = fixed(cohort)
    unlabelled, unlisted = [lists["train"][0], lists["test"][0], lists["val"][0]], [lists["train"][1]]
    slides = cohort.slides["patient_id"]
    less = replace(
        cohort,
        patients=cohort.patients.drop(unlabelled),
        slides=cohort.slides[~slides.isin(unlabelled)].reset_index(drop=True),
    ).with_excluded(
        [
            *(("patient", name, "the label is blank", "") for name in unlabelled),
            *(
                ("slide", name, "its patient is left out", "")
                for name in cohort.slides["slide_id"][slides.isin(unlabelled)]
            ),
        ]
    )
    named = {part: [name for name in own if name not in unlisted] for part, own in lists.items()}
    path = LAYOUTS[layout](tmp_path, cohort, named)
    plan = make_folds(with_file(config, path), less)
    said = plan.understood[0].what
    n_named, n_used = (
        int(slides.isin([name for name in cohort.patients.index if name not in out]).sum())
        for out in (unlisted, [*unlisted, *unlabelled])
    )
    assert (
        "; 12 of its 15 patients have a label and slides; " in said
        or f"; {n_used} of its {n_named} slides are of patients with a label; " in said
    )
    assert said.endswith("1 of the cohort's 13 patients is not in it and is neither trained nor tested")
    assert plan.table.index.tolist() == [name for name in less.patients.index if name not in unlisted]


@pytest.mark.parametrize("layout", ["split", "three files", "train_0", "splits_0 of patients", "booleans", "json"])
def test_without_a_test_set_the_validation_set_is_tested_and_another_is_cut(tmp_path: Path, layout: str) -> None:
    config, cohort = study_cohort(tmp_path)
    lists = fixed(cohort)
    plan = plan_of(tmp_path, config, cohort, layout, {"train": lists["train"], "val": lists["test"]})
    roles = plan.roles(0)
    assert roles.index[roles == "test"].tolist() == lists["test"]
    assert (roles == "val").sum() == 2
    assert any("val is tested on as the test set" in entry.what for entry in plan.understood)
    assert [name for _, name, reason, _ in plan.left_out if reason == "in no list of the split"] == lists["val"]


def test_validation_sets_that_are_the_test_sets_are_cut_anew(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    lists = fixed(cohort)
    own = {"train": lists["train"] + lists["val"], "val": lists["test"], "test": lists["test"]}
    plan = plan_of(tmp_path, config, cohort, "one file of lists", own)
    assert {part: int((plan.roles(0) == part).sum()) for part in PARTS} == {"train": 8, "val": 2, "test": 6}


def test_the_folds_of_a_run_keep_their_validation_sets(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    drawn = config.model_copy(update={"folds": config.folds.model_copy(update={"n": 2, "validation": 0.4})})
    plan = make_folds(drawn, cohort)
    assert "fold" in plan.table.columns
    plan.to_csv(str(tmp_path / "folds.csv"), "PATIENT")
    again = make_folds(with_file(config, str(tmp_path / "folds.csv")), cohort)
    pd.testing.assert_frame_equal(again.table, plan.table)


@pytest.mark.parametrize("form", ["{}.0", "{}", "{:05d}", "{:03d}"])
def test_lost_zeros_are_restored_and_told(tmp_path: Path, form: str) -> None:
    rows = [(f"{i + 1:05d}", f"{i + 1:05d}", ("negative", "positive")[i % 2]) for i in range(16)]
    pd.DataFrame(rows, columns=["case_id", "slide_id", "PR"]).to_csv(tmp_path / "one.csv", index=False)
    config = config_for(tmp_path, cohort={"clinical": str(tmp_path / "one.csv"), "slides": None})
    cohort = load_cohort(config)
    numbers = {"train": range(1, 9), "test": range(9, 17)}
    lists = {part: [form.format(i) for i in own] for part, own in numbers.items()}
    plan = make_folds(with_file(config, table(tmp_path, wide(lists))), cohort)
    assert plan.table.index[plan.roles(0) == "test"].tolist() == [f"{i:05d}" for i in range(9, 17)]
    assert any("leading zeros" in entry.what for entry in plan.understood) == (form != "{:05d}")


def test_two_columns_of_roles_are_refused_with_a_setting_that_works(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    frame = by_row(cohort, fixed(cohort)).assign(other="train")
    place = with_file(config, table(tmp_path, frame))
    with pytest.raises(InputError, match=r"set folds\.column to split, or set folds\.column to other"):
        make_folds(place, cohort)
    chosen = config_for(
        tmp_path,
        cohort={"clinical": config.cohort.clinical, "slides": None},
        folds={"file": place.folds.file, "column": "split"},
    )
    assert make_folds(chosen, cohort).folds == [0]


def test_one_site_after_the_other_is_left_out(tmp_path: Path) -> None:
    rows = [(f"P{i:02}", f"S{i:02}", ("negative", "positive")[i % 2], "ABC"[i // 2 % 3]) for i in range(24)]
    frame = pd.DataFrame(rows, columns=["case_id", "slide_id", "PR", "SITE"])
    frame.to_csv(tmp_path / "one.csv", index=False)
    tables = {"clinical": str(tmp_path / "one.csv"), "slides": None}
    config = config_for(tmp_path, cohort=tables, folds={"kind": "leave_one_site_out", "site": "SITE"})
    cohort = load_cohort(config)
    plan = make_folds(config, cohort)
    assert plan.folds == [0, 1, 2]
    assert (plan.table["fold"] == cohort.patients["site"].map("ABC".index)).all()
    assert "fold 1 tests 'B' (8 patients)" in plan.understood[0].what
    frame.loc[frame["PR"] == "negative", "SITE"] = "A"
    frame.to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(InputError, match=r"no patient of class 'negative': set folds\.kind to k_fold"):
        make_folds(config, load_cohort(config))
    with pytest.raises(ValueError, match=r"set folds\.site to the column of sites"):
        config_for(tmp_path, cohort=tables, folds={"kind": "leave_one_site_out"})
