"""Splits made elsewhere: disjoint, kept as they are, and plain about what is wrong with them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.split_files import KINDS, fold_config, partition, study_cohort, with_file, write_split
from support.written_tables import cohort_of, config_for

from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.folds import FoldPlan, check_disjoint, make_folds
from momkd_ray.errors import InputError


def imported(tmp_path: Path, rows: str, labels: Sequence[int] = (0, 1) * 4) -> FoldPlan:
    (tmp_path / "f.csv").write_text("PATIENT,site\n" + rows)
    return make_folds(fold_config(tmp_path, file=str(tmp_path / "f.csv"), column="site"), cohort_of(labels))


GOOD_FOLDS = "".join(f"P{i:04d},{7 if i < 4 else 2}\n" for i in range(8))


def test_imported_folds_are_kept_as_they_are(tmp_path: Path) -> None:
    plan = imported(tmp_path, "stranger,9\n" + GOOD_FOLDS)
    assert plan.folds == [2, 7]
    assert plan.table["fold"].tolist() == [7] * 4 + [2] * 4
    assert "stranger" not in plan.table.index


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (GOOD_FOLDS + "P0000,2\n", "patient 'P0000' is in folds 7 and 2"),
        ("P9,1\nQ9,2\n", "gives no fold to any of the 8 patients.*'P0000'|no column that names the patients"),
        (GOOD_FOLDS.replace("P0005,2", "P0005,left"), "'P0005' is 'left'.*whole number"),
        (GOOD_FOLDS.replace("P0005,2", "P0005,2.5"), "'P0005' is '2.5'"),
        (GOOD_FOLDS.replace(",7", ",2"), "every patient.*fold 2"),
        (GOOD_FOLDS.replace("P0000,7", "P0000,3"), "fold 3 would test no patient of class 'pos'"),
    ],
)
def test_bad_imported_folds_name_the_patient(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(tmp_path, rows)


@hypothesis_settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    shares=st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_an_imported_split_is_disjoint_and_kept(kind: str, shares: list[tuple[bool, int]], seed: int) -> None:
    """Monte-Carlo folds: a patient may be tested often or never, and some folds do not mention some patients."""
    rng = np.random.default_rng(seed)
    roles: dict[int, dict[str, str]] = {}
    for fold, (validated, silent) in enumerate(shares):
        roles[fold * 3] = {}
        for y in (0, 1):
            own = [f"P{i:02}" for i in rng.permutation(np.arange(y, 16, 2))]
            cut = 2 if validated and kind != "STAMP" else 0
            parts = {"test": own[:2], "val": own[2 : 2 + cut], "train": own[2 + cut : 8 - silent]}
            roles[fold * 3] |= {name: part for part, names in parts.items() for name in names}
    if kind == "STAMP":  # numbers its splits itself
        roles = dict(enumerate(roles.values()))
    roles[0] = dict.fromkeys(sorted({f"P{i:02}" for i in range(16)} - set(roles[0])), "train") | roles[0]
    with tempfile.TemporaryDirectory() as folder:
        config, cohort = study_cohort(Path(folder))
        plans = [
            make_folds(with_file(config, write_split(Path(folder), kind, roles, cohort, order)), cohort)
            for order in (seed, seed + 1)
        ]
    plan = plans[0]
    pd.testing.assert_frame_equal(plan.table, plans[1].table)
    check_disjoint(plan)
    assert plan.folds == sorted(roles)
    assert plan.table.index.tolist() == cohort.patients.index.tolist()
    for fold, given_roles in roles.items():
        found = plan.roles(fold).to_dict()
        assert {name for name, role in found.items() if role} == set(given_roles)
        for name, role in given_roles.items():
            cut = "val" not in given_roles.values() and role == "train"
            assert found[name] in (("train", "val") if cut else (role,))
        parts = {(found[name], name in cohort.patients.index[cohort.patients["y"] == 1]) for name in given_roles}
        assert parts == {(role, positive) for role in ("train", "val", "test") for positive in (True, False)}
    tests = sum((plan.roles(fold) == "test").astype(int) for fold in plan.folds)
    assert ("fold" in plan.table.columns) == bool((tests == 1).all())


def test_every_kind_of_file_gives_the_same_folds(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = partition(cohort.patients.index)
    fold_of = pd.DataFrame({"case_id": cohort.patients.index, "fold": [i // 2 % 2 for i in range(16)]})
    fold_of.to_csv(tmp_path / "plain.csv", index=False)
    by_slide = cohort.slides.merge(fold_of, left_on="patient_id", right_on="case_id")
    by_slide[["case_id", "slide_id", "fold"]].to_csv(tmp_path / "slides.csv", index=False)
    places = [write_split(tmp_path, kind, roles, cohort) for kind in KINDS]
    plans = [
        make_folds(with_file(config, place), cohort)
        for place in (*places, str(tmp_path / "plain.csv"), str(tmp_path / "slides.csv"))
    ]
    for plan in plans:
        pd.testing.assert_frame_equal(plan.table, plans[0].table)
    assert plans[0].table["fold"].tolist() == fold_of["fold"].tolist()


def test_given_validation_sets_are_used_as_they_are_and_others_are_cut(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = partition(cohort.patients.index)
    roles[1] = {name: "val" if name in ("P12", "P13") and role == "train" else role for name, role in roles[1].items()}
    plan = make_folds(with_file(config, write_split(tmp_path, "CLAM", roles, cohort), validation=0.4), cohort)
    assert plan.roles(1).to_dict() == roles[1]
    assert (plan.roles(0) == "val").sum() == 4
    without = {0: roles[0], 1: {name: role for name, role in roles[1].items() if name != "P13"}}
    with pytest.raises(InputError, match=r"fold 1 would validate on no patient of class 'positive': mend .*k=all\.tsv"):
        make_folds(with_file(config, write_split(tmp_path, "Patho-Bench", without, cohort)), cohort)


def test_patients_whom_the_split_does_not_mention_are_left_out_and_counted(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = partition([name for name in cohort.patients.index if name not in ("P04", "P11")])
    for kind in KINDS:
        plan = make_folds(with_file(config, write_split(tmp_path, kind, roles, cohort)), cohort)
        unlisted = [row for row in plan.left_out if row[2] == "in no list of the split"]
        assert unlisted == [("patient", name, "in no list of the split", "unmatched") for name in ("P04", "P11")]
        assert sorted({"P04", "P11", *plan.table.index}) == cohort.patients.index.tolist()
        assert len(plan.table) == 14


def test_slides_on_two_sides_are_named(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = partition(cohort.patients.index)
    place = Path(write_split(tmp_path, "CLAM", roles, cohort))
    lines = (place / "splits_1.csv").read_text().replace("S00b", "S98")
    (place / "splits_1.csv").write_text(lines + "99,,,S00b\n")
    with pytest.raises(InputError) as caught:
        make_folds(with_file(config, str(place)), cohort)
    assert "splits_1.csv: patient 'P00' is on two sides, slide 'S00a' in train and slide 'S00b' in test" in str(
        caught.value
    )
    table = pd.read_csv(write_split(tmp_path, "Patho-Bench", roles, cohort), sep="\t")
    table.loc[table["slide_id"] == "S03b", "fold_0"] = "test"
    table.sort_values("slide_id").to_csv(tmp_path / "k=all.tsv", sep="\t", index=False)
    with pytest.raises(InputError) as caught:
        make_folds(with_file(config, str(tmp_path / "k=all.tsv")), cohort)
    said = "patient 'P03' is on two sides of 'fold_0', train in data row 5 and test in data row 6"
    assert said in str(caught.value)


def test_clam_slides_that_are_numbers_are_found(tmp_path: Path) -> None:
    """pandas writes a column of whole numbers with a gap as 12.0."""
    rows = [(f"P{i}", str(100 + i), ("negative", "positive")[i % 2]) for i in range(12)]
    pd.DataFrame(rows, columns=["case_id", "slide_id", "PR"]).to_csv(tmp_path / "one.csv", index=False)
    config = config_for(tmp_path, cohort={"clinical": str(tmp_path / "one.csv"), "slides": None})
    cohort = load_cohort(config)
    place = tmp_path / "splits"
    place.mkdir()
    for fold in (0, 1):
        test = [100 + i for i in range(12) if i // 6 == fold]
        val = [100 + i for i in range(12) if i // 6 != fold][:2]
        train = [100 + i for i in range(12) if i // 6 != fold][2:]
        parts = {"train": pd.Series(train), "val": pd.Series(val), "test": pd.Series(test)}
        pd.DataFrame(parts).to_csv(place / f"splits_{fold}.csv")
    assert "102.0" in (place / "splits_1.csv").read_text()
    plan = make_folds(with_file(config, str(place)), cohort)
    assert plan.table["fold"].to_dict() == {f"P{i}": i // 6 for i in range(12)}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("splits.json", "{", "splits.json is not JSON"),
        ("splits.json", '{"folds": []}', "splits.json has no list 'splits', as STAMP writes it"),
        ("splits.json", '{"splits": [{"train_patients": ["P00"]}]}', "split 0 has no list 'test_patients'"),
        (
            "splits.json",
            '{"splits": [{"train_patients": ["P00", "P01"], "test_patients": ["P01", "P00"]}]}',
            "2 patients .* the first: .*'P0.' is on two sides of split 0, train and test: it must be on one",
        ),
        (
            "k.tsv",
            "case_id\tfold_0\nP00\ttrain\nP01\tleft\n",
            "'fold_0' is 'left' in data row 2: it must be train, val",
        ),
        (
            "k.csv",
            "case_id,folds\nP00,1\n",
            r"has no column 'fold'; the nearest is 'folds' \(set folds.column to folds\)",
        ),
        (
            "k.csv",
            "case_id,part\nP00,1\n",
            "has no column 'fold': set folds.column to one of its columns, 'case_id', 'part'",
        ),
        ("k.csv", "case_id,Fold No\nP00,1\n", r"\(set folds.column to \"Fold No\"\)"),
        ("k.csv", "who,fold\nX00,1\nX01,2\n", "gives no fold to any of the 16 patients"),
        (
            "splits/splits_0_bool.csv",
            ",train,val,test\n",
            "folds.file .*splits holds no splits_<i>.csv, as CLAM writes",
        ),
        ("splits/splits_0.csv", ",train,test\n0,X00a,Y01a\n", "gives no fold to any of the 16 patients"),
        ("splits/splits_0.csv", ",train,label\n0,S00a,S01a\n", "splits_0.csv has no column 'test'"),
        ("nowhere", None, "folds.file .*nowhere does not exist"),
    ],
)
def test_a_bad_split_is_told_in_one_sentence(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    config, cohort = study_cohort(tmp_path)
    place = tmp_path / name
    if content is not None:
        place.parent.mkdir(exist_ok=True)
        place.write_text(content)
    if "/" in name:
        place = place.parent
    with pytest.raises(InputError, match=said) as caught:
        make_folds(with_file(config, str(place)), cohort)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["fold", "Fold", "FOLD", "fold "])
def test_the_column_of_folds_is_found_whatever_its_case(tmp_path: Path, column: str) -> None:
    config, cohort = study_cohort(tmp_path)
    fold_of = {name: i % 4 // 2 for i, name in enumerate(cohort.patients.index)}
    pd.Series(fold_of, name=column).rename_axis("PATIENT").to_csv(tmp_path / "k.csv")
    plan = make_folds(with_file(config, str(tmp_path / "k.csv")), cohort)
    assert plan.table["fold"].to_dict() == fold_of


def test_one_fixed_split_is_one_fold(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = {0: partition(cohort.patients.index)[0]}
    for kind in KINDS:
        plan = make_folds(with_file(config, write_split(tmp_path, kind, roles, cohort)), cohort)
        assert plan.folds == [0]
        assert (plan.roles(0) == "test").sum() == 8
        assert any("one fixed split, a single fold" in entry.what for entry in plan.understood)


def test_the_column_of_the_clinical_table_is_used_for_our_own(tmp_path: Path) -> None:
    config, cohort = study_cohort(tmp_path)
    roles = partition(cohort.patients.index)
    roles[1] |= {"P00": "test", "P02": ""}
    roles[1].pop("P02")
    plan = make_folds(with_file(config, write_split(tmp_path, "STAMP", roles, cohort)), cohort)
    assert "fold" not in plan.table.columns
    written = tmp_path / "out.csv"
    plan.to_csv(str(written), cohort.patient_column)
    assert written.read_text().splitlines()[0] == "case_id,role_0,role_1"
    again = make_folds(with_file(config, str(written)), cohort)
    pd.testing.assert_frame_equal(again.table, plan.table)
