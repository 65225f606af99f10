from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from momkd_ray.cohort.folds import FoldPlan, check_disjoint, make_folds
from momkd_ray.cohort.genes import GeneTransform, fit_genes
from momkd_ray.cohort.tables import Cohort, load_cohort, read_table, slide_id_of
from momkd_ray.config import Config, GenesConfig
from momkd_ray.errors import InputError

CLINICAL = "PATIENT,PR\nP2,negative\nP1,positive\nP3,positive\nP4,negative\n"
SLIDES = "PATIENT,FILENAME\nP1,S1.h5\nP2,S2.h5\nP3,S3.h5\nP4,S4.h5\n"
OMICS = "PATIENT,A,B\nP3,3,30\nP1,1,10\n"


def config_for(folder: Path, **sections: dict[str, Any]) -> Config:
    cohort = {"clinical": str(folder / "clinical.csv"), "slides": str(folder / "slides.csv"), "label": "PR"}
    tree = {"cohort": cohort | sections.pop("cohort", {}), "features": {"dir": "/features"}} | sections
    return Config.model_validate(tree)


def write(folder: Path, clinical: str = CLINICAL, slides: str = SLIDES, omics: str | None = None) -> Config:
    (folder / "clinical.csv").write_text(clinical)
    (folder / "slides.csv").write_text(slides)
    if omics is None:
        return config_for(folder)
    (folder / "omics.csv").write_text(omics)
    return config_for(folder, cohort={"omics": str(folder / "omics.csv")})


def fails(config: Config, *fragments: str) -> str:
    with pytest.raises(InputError) as caught:
        load_cohort(config)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def reasons(cohort: Cohort) -> dict[tuple[str, str], str]:
    return {(row.kind, row.id): row.reason for row in cohort.excluded.itertuples()}


# --- tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".xlsx"])
def test_text_survives_as_written_in_every_format(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {"id": ["007", "1e5", "TRUE", "1.50", "x,y", "é"], "label": ["None", "null", "", "NA", "3", "+"]}
    )
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif suffix == ".xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    read = read_table(str(path))
    assert read["id"].tolist() == frame["id"].tolist()
    assert read["label"].isna().tolist() == [False, False, True, True, False, False]
    assert read["label"].dropna().tolist() == ["None", "null", "3", "+"]


def test_numbers_of_parquet_and_excel_become_plain_identifiers(tmp_path: Path) -> None:
    write(tmp_path)
    frame = pd.DataFrame({"PATIENT": [1, 2, 3], "PR": [1.0, 0.0, None]})
    slides = pd.DataFrame({"PATIENT": ["1", "2", "3"], "FILENAME": ["a", "b", "c"]})
    slides.to_csv(tmp_path / "slides.csv", index=False)
    for suffix in (".parquet", ".xlsx"):
        path = tmp_path / f"clinical{suffix}"
        frame.to_parquet(path) if suffix == ".parquet" else frame.to_excel(path, index=False)
        config = config_for(tmp_path, cohort={"clinical": str(path), "positive": "1", "negative": "0"})
        cohort = load_cohort(config)
        assert cohort.patients["label"].to_dict() == {"1": "1", "2": "0"}
        assert reasons(cohort)["patient", "3"] == "the label is blank"


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("t.csv", b"a,b\n1,2\n3\n", "cannot be read"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read"),
        ("t.csv", "a,b\né,1\n".encode("latin-1"), "UTF-8"),
        ("t.parquet", b"PAR1 no", "cannot be read"),
        ("t.xlsx", b"PK no", "cannot be read"),
        ("t.json", b"{}", ".csv, .tsv, .parquet, .xlsx"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, name: str, content: bytes, fragment: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(fragment)) as caught:
        read_table(str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        read_table(str(tmp_path / "nowhere.csv"))


# --- the cohort


def test_tables_are_joined_and_sorted(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS))
    assert cohort.patients.index.tolist() == ["P1", "P2", "P3", "P4"]
    assert cohort.patients.index.name == "patient_id"
    assert cohort.patients["y"].tolist() == [1, 0, 1, 0]
    assert cohort.classes == ("negative", "positive")
    assert cohort.slides.to_dict("list") == {
        "slide_id": ["S1", "S2", "S3", "S4"],
        "patient_id": ["P1", "P2", "P3", "P4"],
        "path": [f"/features/S{i}.h5" for i in range(1, 5)],
        "file": [""] * 4,
        "bytes": [0] * 4,
    }
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == ["P1", "P3"]
    assert cohort.omics.to_numpy().tolist() == [[1, 10], [3, 30]]
    assert (cohort.omics.dtypes == np.float32).all()
    assert cohort.excluded.empty


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB.h5", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("a.svs", "a"),
        ("a.SVS", "a"),
        ("a.h5.b.mrxs", "a.h5.b"),
        ("svs.tiff", "svs"),
        ("plain", "plain"),
    ],
)
def test_a_slide_loses_only_a_recognised_suffix(name: str, expected: str) -> None:
    assert slide_id_of(name) == expected


def test_whatever_is_left_out_has_its_reason_and_is_never_a_negative(tmp_path: Path) -> None:
    clinical = CLINICAL + "E,Equivocal\nB,\nN,NaN\nU,Positive\nX,negative\n"
    slides = SLIDES + "E,SE.h5\nB,SB.h5\nN,SN.h5\nU,SU.h5\nghost,SG.h5\n"
    cohort = load_cohort(write(tmp_path, clinical, slides, OMICS + "E,1,2\nghost,,\n"))
    found = reasons(cohort)
    assert cohort.patients["label"].value_counts().to_dict() == {"positive": 2, "negative": 2}
    assert "'Equivocal'" in found["patient", "E"]
    assert "'Positive'" in found["patient", "U"]
    assert found["patient", "B"] == found["patient", "N"] == "the label is blank"
    assert found["patient", "X"] == "no slide"
    assert found["slide", "SG"] == "its patient is not in the clinical table"
    assert {found["slide", slide] for slide in ("SE", "SB", "SN", "SU")} == {"its patient is left out"}
    assert {key for key in found if key[0] == "omics"} == {("omics", "E"), ("omics", "ghost")}
    text = "\n".join(cohort.summary())
    assert "4 patients: 2 positive, 2 negative." in text
    assert "2 patients left out (the label is blank): B, N." in text
    assert all(reason in text for reason in found.values())


def test_nothing_is_lost_between_the_tables_and_the_cohort(tiny_config: Config) -> None:
    cohort = load_cohort(tiny_config)
    for kind, inside, path in (
        ("patient", cohort.patients.index, tiny_config.cohort.clinical),
        ("slide", cohort.slides["slide_id"], tiny_config.cohort.slides),
    ):
        assert len(inside) + (cohort.excluded["kind"] == kind).sum() == len(read_table(path))


@pytest.mark.parametrize(
    ("clinical", "slides", "fragments"),
    [
        (CLINICAL + "P1,positive\n", SLIDES, ["clinical.csv", "'P1'", "more than one row"]),
        (CLINICAL, SLIDES + "P1,S1.svs\n", ["slides.csv", "'S1'", "more than one row"]),
        (CLINICAL + " ,positive\n", SLIDES, ["'PATIENT' is blank in data row 5"]),
        (CLINICAL, SLIDES + "P1,\n", ["'FILENAME' is blank in data row 5"]),
        (CLINICAL, SLIDES + "P1,sub/S9.h5\n", ["'sub/S9.h5'", "data row 5"]),
        (CLINICAL, SLIDES + "P1,.h5\n", ["'.h5'"]),
        (CLINICAL.replace("PATIENT", "Patient"), SLIDES, ["no column 'PATIENT'", "nearest is 'Patient'"]),
        (CLINICAL.replace("PR", "ER"), SLIDES, ["clinical.csv has no column 'PR'", "'ER'"]),
        (CLINICAL.replace("positive", "1").replace("negative", "0"), SLIDES, ["'1' (2)", "'0' (2)"]),
        (CLINICAL.replace("positive", "negative"), SLIDES, ["'positive'", "'negative' (4)"]),
        (CLINICAL, SLIDES.replace("P1", "Q1").replace("P3", "Q3"), ["class 'positive'"]),
        (CLINICAL, SLIDES.replace("P", "Q").replace("QATIENT", "PATIENT"), ["no patient of class"]),
    ],
)
def test_bad_tables_name_the_fault(tmp_path: Path, clinical: str, slides: str, fragments: list[str]) -> None:
    fails(write(tmp_path, clinical, slides), *fragments)


def test_the_two_classes_must_differ(tmp_path: Path) -> None:
    write(tmp_path)
    fails(config_for(tmp_path, cohort={"negative": "positive"}), "both 'positive'")


def test_the_fingerprint_follows_the_content_and_not_the_order_or_place(tmp_path: Path) -> None:
    def fingerprint(**tables: str) -> str:
        return load_cohort(write(tmp_path, **({"omics": OMICS} | tables))).fingerprint()

    base = fingerprint()
    rows = CLINICAL.splitlines()
    assert re.fullmatch(r"[0-9a-f]{16}", base)
    assert fingerprint(clinical="\n".join([rows[0], *reversed(rows[1:])]) + "\n") == base
    changed = [
        fingerprint(omics=OMICS.replace("10", "11")),
        fingerprint(omics=OMICS.replace("A", "C", 2).replace("PCTIENT", "PATIENT")),
        fingerprint(slides=SLIDES.replace("S4", "S5")),
        fingerprint(clinical=CLINICAL.replace("P4,negative", "P4,positive")),
    ]
    assert len({base, *changed}) == 5


# --- omics


@pytest.mark.parametrize(
    ("omics", "fragments"),
    [
        (OMICS.replace("30", "inf"), ["'B'", "'P3'", "infinite"]),
        (OMICS.replace("30", ""), ["'B'", "'P3'", "blank"]),
        (OMICS.replace("30", "1e300"), ["'B'", "'P3'"]),
        (OMICS.replace("30", "low"), ["'B'", "'P3'", "'low'"]),
        (OMICS + "P1,1,10\n", ["'P1'", "more than one row"]),
        (OMICS.replace("B", "A"), ["two columns named 'A'"]),
        (OMICS.replace(",B", ","), ["without a name"]),
        (OMICS.replace("P1", "Q1").replace("P3", "Q3"), ["none of the 4 patients", "'P1'"]),
        ("PATIENT\nP1\n", ["no gene columns"]),
    ],
)
def test_bad_omics_name_patient_and_gene(tmp_path: Path, omics: str, fragments: list[str]) -> None:
    fails(write(tmp_path, omics=omics), "omics.csv", *fragments)


def test_an_entirely_blank_row_means_no_omics_and_keeps_the_patient(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, omics=OMICS + "P2,,NA\n"))
    assert cohort.omics is not None
    assert cohort.omics.index.tolist() == ["P1", "P3"]
    assert "P2" in cohort.patients.index
    assert "entirely blank" in reasons(cohort)["omics", "P2"]


def test_parquet_csv_and_a_folder_of_vectors_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5)).astype(np.float32)
    patients, genes = ["P4", "P1", "elsewhere"], [f"G{i}" for i in range(5)]
    frame = pd.DataFrame(values, columns=genes)
    frame.insert(0, "PATIENT", patients)
    write(tmp_path)
    frame.to_csv(tmp_path / "o.csv", index=False)
    frame.to_parquet(tmp_path / "o.parquet")
    (tmp_path / "o").mkdir()
    for patient, row in zip(patients, values, strict=True):
        np.save(tmp_path / "o" / f"{patient}.npy", row)
    (tmp_path / "o" / "genes.txt").write_text("\n".join(genes))
    cohorts = [
        load_cohort(config_for(tmp_path, cohort={"omics": str(tmp_path / name)}))
        for name in ("o.csv", "o.parquet", "o")
    ]
    assert cohorts[0].omics is not None
    assert cohorts[0].omics.to_numpy().tolist() == values[[1, 0]].tolist()
    assert len({cohort.fingerprint() for cohort in cohorts}) == 1
    assert all(("omics", "elsewhere") in reasons(cohort) for cohort in cohorts)


def test_vectors_get_gene_names_and_must_agree_in_length(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "o"
    folder.mkdir()
    config = config_for(tmp_path, cohort={"omics": str(folder)})
    np.save(folder / "P1.npy", np.ones(3))
    omics = load_cohort(config).omics
    assert omics is not None
    assert omics.columns.tolist() == ["g0000", "g0001", "g0002"]
    np.save(folder / "P2.npy", np.ones(4))
    fails(config, "P2.npy has 4 values", "3")
    np.save(folder / "P2.npy", np.ones((1, 3)))
    fails(config, "P2.npy", "1-d vector")
    (folder / "P2.npy").write_bytes(b"no")
    fails(config, "P2.npy", "not a NumPy vector")
    np.save(folder / "P2.npy", np.array([1, np.nan, 2]))
    fails(config, "'g0001'", "'P2'")
    (folder / "P2.npy").unlink()
    (folder / "genes.txt").write_text("A\nB\n")
    fails(config, "names 2 genes", "3 values")
    (folder / "genes.txt").write_text("A\nB\nA\n")
    fails(config, "'A' twice")


# --- folds


def cohort_of(labels: Sequence[int], order: Sequence[int] | None = None) -> Cohort:
    names = [f"P{i:04d}" for i in range(len(labels))]
    patients = pd.DataFrame(
        {"label": [("neg", "pos")[y] for y in labels], "y": list(labels)},
        index=pd.Index(names, name="patient_id"),
    )
    if order is not None:
        patients = patients.iloc[list(order)]
    empty = pd.DataFrame(columns=["kind", "id", "reason"])
    return Cohort(patients, pd.DataFrame(columns=["slide_id", "patient_id", "path"]), None, ("neg", "pos"), empty)


def fold_config(tmp_path: Path = Path("/none"), **folds: object) -> Config:
    return config_for(tmp_path, folds=folds)


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
        (GOOD_FOLDS + "P0000,2\n", "patient P0000 is in folds 7 and 2"),
        (GOOD_FOLDS + "P0000,7\n", "patient P0000 is in fold 7 twice"),
        (GOOD_FOLDS.replace("P0003,7\n", "").replace("P0001,7", "P0001,"), "2 of the 8 patients.*'P0001'"),
        (GOOD_FOLDS.replace("P0005,2", "P0005,left"), "'P0005' is 'left'.*whole number"),
        (GOOD_FOLDS.replace("P0005,2", "P0005,2.5"), "'P0005' is '2.5'"),
        (GOOD_FOLDS.replace(",7", ",2"), "every patient.*fold 2"),
        (GOOD_FOLDS.replace("P0000,7", "P0000,3"), "fold 3 would test no patient of class 'pos'"),
    ],
)
def test_bad_imported_folds_name_the_patient(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(tmp_path, rows)


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


# --- genes


def expression(n: int = 60, genes: int = 40, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Counts in which genes 0 to 3 follow the label, and gene 5 does not vary."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    log = rng.normal(6, 1, (n, genes))
    log[:, :4] += 2.0 * y[:, None]
    log[:, 5] = 3
    names = [f"G{i:02d}" for i in range(genes)]
    return pd.DataFrame(np.exp2(log).astype(np.float32), columns=names, index=[f"P{i}" for i in range(n)]), y


@pytest.mark.parametrize("select", ["xgboost", "anova", "variance", "all"])
def test_training_values_come_out_standardised(select: str) -> None:
    omics, y = expression()
    transform = fit_genes(omics, y, GenesConfig(select=select, n=12), seed=1)
    scaled = transform.apply(omics)
    assert transform.log
    assert len(transform.genes) == len(set(transform.genes)) == (39 if select == "all" else 12)
    assert "G05" not in transform.genes
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    assert np.isfinite(transform.importance).all()


@pytest.mark.parametrize("select", ["xgboost", "anova"])
def test_informative_genes_are_found_and_importance_falls(select: str) -> None:
    omics, y = expression(n=200)
    transform = fit_genes(omics, y, GenesConfig(select=select, n=30), seed=1)
    assert set(transform.genes[:3]) <= {"G00", "G01", "G02", "G03"}
    assert (np.diff(transform.importance) <= 0).all()


def test_genes_xgboost_leaves_at_zero_are_filled_by_anova_and_said() -> None:
    omics, y = expression(n=24)
    transform = fit_genes(omics, y, GenesConfig(select="xgboost", n=39), seed=1)
    by_anova = fit_genes(omics, y, GenesConfig(select="anova", n=39), seed=1).genes
    filled = [gene for gene, value in zip(transform.genes, transform.importance, strict=True) if value == 0]
    assert len(filled) > 0
    assert filled == [gene for gene in by_anova if gene in filled]
    assert f"of which {len(filled)} with no gain" in transform.note


def test_only_the_rows_handed_in_are_seen() -> None:
    omics, y = expression()
    train = omics.iloc[:40]
    before = fit_genes(train.copy(), y[:40], GenesConfig(select="xgboost", n=10), seed=1)
    omics.iloc[40:] = 1e9
    after = fit_genes(omics.iloc[:40], y[:40], GenesConfig(select="xgboost", n=10), seed=1)
    assert before.genes == after.genes
    assert before.mean.tolist() == after.mean.tolist()


@pytest.mark.parametrize(("change", "log"), [("counts", True), ("logged", False), ("scaled", False)])
def test_the_scale_of_the_values_is_detected(change: str, log: bool) -> None:
    omics, y = expression()
    values = {"counts": omics, "logged": np.log2(omics + 1), "scaled": omics - omics.mean()}[change]
    assert fit_genes(values, y, GenesConfig(select="anova", n=5), seed=1).log is log


def test_counts_and_their_logarithm_give_the_same_answer() -> None:
    omics, y = expression()
    logged = np.log2(omics.astype(np.float64) + 1)
    one, two = (fit_genes(frame, y, GenesConfig(select="anova", n=8), seed=1) for frame in (omics, logged))
    assert one.genes == two.genes
    np.testing.assert_allclose(one.apply(omics), two.apply(logged), atol=1e-5)


@pytest.mark.parametrize("select", ["xgboost", "anova", "variance"])
def test_a_transform_survives_its_file_exactly(tmp_path: Path, select: str) -> None:
    omics, y = expression()
    omics.columns = ["NA", 'quo"te,d', *omics.columns[2:]]
    transform = fit_genes(omics, y, GenesConfig(select=select, n=39), seed=1)
    path = str(tmp_path / "genes.csv")
    transform.save(path)
    loaded = GeneTransform.load(path)
    for name in ("importance", "mean", "sd"):
        assert getattr(loaded, name).tobytes() == getattr(transform, name).tobytes()
    for name in ("genes", "log", "method", "note"):
        assert getattr(loaded, name) == getattr(transform, name)
    (tmp_path / "other.csv").write_text("gene,mean\nA,1\n")
    with pytest.raises(InputError, match=r"other\.csv"):
        GeneTransform.load(str(tmp_path / "other.csv"))


@pytest.mark.parametrize(
    ("name", "text"), [("g.txt", "G07\n\nG05\nG01\n"), ("g.csv", "rank,gene\n1,G07\n2,G05\n3,G01\n")]
)
def test_a_list_is_taken_in_its_order_less_what_does_not_vary(tmp_path: Path, name: str, text: str) -> None:
    omics, y = expression()
    (tmp_path / name).write_text(text)
    transform = fit_genes(omics, y, GenesConfig(select=str(tmp_path / name), n=1), seed=1)
    assert transform.genes == ("G07", "G01")
    assert "2 of the 3 genes listed" in transform.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("G01\nTP53\nMYC\n", "2 genes.*TP53, MYC"),
        ("G01\nG01\n", "'G01' twice"),
        ("\n", "no genes"),
        ("a,b\nc,d\n", "none named 'gene'"),
        ("G05\n", "no gene of .* varies"),
    ],
)
def test_a_bad_list_says_why(tmp_path: Path, text: str, message: str) -> None:
    omics, y = expression()
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        fit_genes(omics, y, GenesConfig(select=str(tmp_path / "g.txt")), seed=1)


def test_what_cannot_be_fitted_or_applied_says_why() -> None:
    omics, y = expression()
    with pytest.raises(InputError, match="did you mean 'xgboost'"):
        fit_genes(omics, y, GenesConfig(select="xgbost"), seed=1)
    with pytest.raises(InputError, match="one class"):
        fit_genes(omics, np.ones_like(y), GenesConfig(), seed=1)
    with pytest.raises(InputError, match="no gene varies"):
        fit_genes(omics * 0 + 1, y, GenesConfig(), seed=1)
    transform = fit_genes(omics, y, GenesConfig(select="anova", n=5), seed=1)
    with pytest.raises(InputError, match="lack 1 of the chosen genes: G0"):
        transform.apply(omics.drop(columns=transform.genes[0]))
    spoiled = omics.copy()
    spoiled.loc["P7", transform.genes[2]] = -1
    with pytest.raises(InputError, match=f"'{transform.genes[2]}' of patient 'P7' is -1"):
        transform.apply(spoiled)
