"""Tables as clinics, registries and spreadsheets write them: missing labels, titles, merged cells, formulas, names."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest
from support.cures import cures_in

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.feature_files import find_features
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError

N = 12
PATIENTS = [f"P{i:03d}" for i in range(N)]
LABELS = ["positive", "negative"] * (N // 2)
VALUES = np.random.default_rng(0).normal(5, 2, (N, 12)).round(3)


def cohort_of(folder: Path, labels: Sequence[Any] | bytes, name: str = "c.csv", **cohort: Any) -> Cohort:
    """The cohort of twelve patients by their labels, or by the bytes of a clinical table."""
    if isinstance(labels, bytes):
        (folder / name).write_bytes(labels)
    else:
        pd.DataFrame({"PATIENT": PATIENTS, "HER2": labels}).to_csv(folder / name, index=False)
    slides = "PATIENT,FILENAME\n" + "".join(f"{patient},{patient}_1.svs\n" for patient in PATIENTS)
    (folder / "s.csv").write_text(slides)
    tables = {"clinical": str(folder / name), "slides": str(folder / "s.csv"), "label": "HER2", **cohort}
    return load_cohort(Config.model_validate({"cohort": tables, "features": {"dir": str(folder / "f")}}))


def whole(cohort: Cohort) -> str:
    """What is told of a cohort that has every patient with its own label."""
    assert cohort.patients["y"].to_dict() == dict(zip(PATIENTS, [1, 0] * 6, strict=True))
    assert not cohort.rejected
    return " ".join(cohort.summary())


MISSING = ("unknown", "Unknown", "[Not Available]", "[Unknown]", "n.a.", "N/A", "?", "-", "not reported", "k.A.", "nd")


@pytest.mark.parametrize("missing", MISSING)
def test_what_says_that_there_is_no_label_is_never_of_the_rest(tmp_path: Path, missing: str) -> None:
    for key, rest in (("negative", "positive"), ("positive", "negative")):
        labels = [missing if i < 3 else label for i, label in enumerate(LABELS)]
        cohort = cohort_of(tmp_path, labels, **{key: "rest", rest: rest})
        assert len(cohort.patients) == N - 3
        assert set(cohort.excluded.loc[cohort.excluded["kind"] == "patient", "id"]) == set(PATIENTS[:3])


def test_minus_is_a_result_beside_plus(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["+", "-"] * 6, positive="+", negative="rest")
    assert cohort.patients["y"].sum() == 6 and len(cohort.patients) == N


@pytest.mark.parametrize(
    "labels",
    [
        ["Positive", "NEGATIVE", "positive", "negative"] * 3,
        ["POSITIVE", "Negative"] * 6,
        ["positive ", " Negative"] * 6,
    ],
)
def test_labels_differ_in_case(tmp_path: Path, labels: list[str]) -> None:
    assert "the class 'negative' is the 'HER2'" in whole(cohort_of(tmp_path, labels))


def test_labels_that_differ_in_nothing_but_case_are_two(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["A", "a"] * 6, positive="A", negative="a")
    assert cohort.patients["y"].tolist() == [1, 0] * 6


@pytest.mark.parametrize(
    "labels",
    [["30%", "5 %"] * 6, ["≥ 90", "<1"] * 6, [">30", "10-20"] * 6, ["25", "< 25"] * 6, ["25-50", "0\u201324"] * 6],
)
def test_cut_offs_read_per_cent_ranges_and_limits(tmp_path: Path, labels: list[str]) -> None:
    whole(cohort_of(tmp_path, labels, positive=">= 25", negative="< 25"))


def test_a_range_on_both_sides_of_a_cut_off_is_of_no_class(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, ["30", "5", "20-30", ">10"] * 3, positive=">= 25", negative="< 25")
    assert len(cohort.patients) == 6


@pytest.mark.parametrize(
    ("encoding", "positive", "negative"),
    [
        ("gb18030", "阳性", "阴性"),
        ("shift_jis", "陽性", "陰性"),
        ("big5", "陽性", "陰性"),
        ("euc_kr", "양성", "음성"),
    ],
)
def test_text_of_east_asia_is_not_guessed_and_the_setting_reads_it(
    tmp_path: Path, encoding: str, positive: str, negative: str
) -> None:
    text = "PATIENT,HER2\n" + "".join(
        f"{p},{(negative, positive)[y]}\n" for p, y in zip(PATIENTS, [1, 0] * 6, strict=True)
    )
    classes = {"positive": positive, "negative": negative}
    with pytest.raises(InputError, match=r"set cohort\.encoding to") as caught:
        cohort_of(tmp_path, text.encode(encoding), **classes)
    assert encoding in str(caught.value)
    if encoding in ("gb18030", "shift_jis"):
        assert cures_in(str(caught.value))[0] == ("cohort.encoding", encoding)
    assert f"it is read as {encoding} text" in whole(
        cohort_of(tmp_path, text.encode(encoding), encoding=encoding, **classes)
    )
    whole(cohort_of(tmp_path, text.encode(), encoding=encoding, **classes))


@pytest.mark.parametrize("words", [("préférée", "négatif"), ("Größe", "über"), ("señal", "niño")])
def test_accents_are_read_as_windows_1252(tmp_path: Path, words: tuple[str, str]) -> None:
    text = "PATIENT,HER2\n" + "".join(f"{p},{words[1 - y]}\n" for p, y in zip(PATIENTS, [1, 0] * 6, strict=True))
    cohort = cohort_of(tmp_path, text.encode("cp1252"), positive=words[0], negative=words[1])
    assert "Windows-1252" in whole(cohort)


def workbook(rows: Sequence[Sequence[Any]], merged: Sequence[str] = ()) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    for area in merged:
        book.active.merge_cells(area)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


ROWS = list(zip(PATIENTS, LABELS, strict=True))
TEXT = "PATIENT,HER2\n" + "".join(f"{patient},{label}\n" for patient, label in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.xlsx", workbook([["Export 2026"], [], ["PATIENT", "HER2"], *ROWS], ["A1:B1"]), "1 row above the header is"),
        ("c.xlsx", workbook([["PATIENT", "HER2", "ON"], *((*row, datetime.datetime(2020, 1, 2)) for row in ROWS)]), ""),
        ("c.xlsx", workbook([["HER2", "PATIENT"], *((label, patient) for patient, label in ROWS)]), ""),
        ("c.csv", b"Export of 2026-01-01\n\n" + TEXT.encode(), "lines above the header passed over"),
        ("c.csv", b"Export;;\r\n" + TEXT.replace(",", ";").replace("\n", ";\r\n").encode(), "1 line above the header"),
        ("c.csv", b"sep=;\r\n" + TEXT.replace(",", ";").encode(), "semicolons"),
        ("c.csv", TEXT.replace("P0", '="P0').replace(",pos", '",pos').replace(",neg", '",neg').encode(), "formula"),
        ("c.csv", ('"' + TEXT.strip().replace(",", '","').replace("\n", '"\n"') + '"\n').encode(), ""),
    ],
    ids=[
        "title",
        "date",
        "order",
        "title in text",
        "cells after it",
        "sep",
        "formula",
        "quotes",
    ],  # not the bytes, which have a time
)
def test_titles_formulas_and_dates_of_spreadsheets(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    assert told in whole(cohort_of(tmp_path, content, name))


def test_merged_cells_hold_their_value_in_every_row(tmp_path: Path) -> None:
    first = {0: "positive", 6: "negative"}
    rows = [["HER2", "PATIENT"], *([first.get(i), patient] for i, patient in enumerate(PATIENTS))]
    cohort = cohort_of(tmp_path, workbook(rows, ["A2:A7", "A8:A13"]), "c.xlsx")
    assert cohort.patients["y"].tolist() == [1] * 6 + [0] * 6
    assert "10 cells are filled from the merged cell" in " ".join(cohort.summary())


def test_dates_as_identifiers_are_dates_in_every_file_type(tmp_path: Path) -> None:
    days = [datetime.datetime(2020, 1, i + 1) for i in range(N)]
    (tmp_path / "s.csv").write_text(
        "PATIENT,FILENAME\n" + "".join(f"{day:%Y-%m-%d},S{i}.svs\n" for i, day in enumerate(days))
    )
    table = workbook([["PATIENT", "HER2"], *zip(days, LABELS, strict=True)])
    (tmp_path / "c.xlsx").write_bytes(table)
    cohort = {"clinical": str(tmp_path / "c.xlsx"), "slides": str(tmp_path / "s.csv"), "label": "HER2"}
    assert len(load_cohort(Config.model_validate({"cohort": cohort, "features": {"dir": "f"}})).patients) == N


@pytest.mark.parametrize("blank", ["n.a.", "n/a", "#NV", "#DIV/0!", "-", "[Not Available]", "NULL", "unknown", "'--"])
def test_a_blank_number_is_blank_however_it_is_written(tmp_path: Path, blank: str) -> None:
    genes = [f"G{i}" for i in range(12)]
    cells = [[str(value) for value in row] for row in VALUES]
    cells[3][4] = blank
    rows = [",".join([patient, *row]) for patient, row in zip(PATIENTS, cells, strict=True)]
    (tmp_path / "o.csv").write_text(",".join(["PATIENT", *genes]) + "\n" + "\n".join(rows) + "\n")
    cohort = cohort_of(tmp_path, LABELS, omics=str(tmp_path / "o.csv"))
    assert cohort.omics is not None and cohort.omics.isna().sum().sum() == 1
    assert "1 blank value" in whole(cohort)


def test_normal_tissue_of_another_mark_can_be_left_out_as_the_sentence_says(tmp_path: Path) -> None:
    names = [patient + ".N" * (i % 4 == 3) for i, patient in enumerate(PATIENTS)]
    table = pd.DataFrame(VALUES.T, columns=names)
    table.insert(0, "idx", [f"G{i}" for i in range(12)])
    table.to_csv(tmp_path / "o.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r'leave those others out by \'omics\.leave_out: \["\*\.N"\]\''):
        cohort_of(tmp_path, LABELS, omics=str(tmp_path / "o.tsv"))
    tables = {"clinical": str(tmp_path / "c.csv"), "slides": str(tmp_path / "s.csv"), "label": "HER2"}
    tables["omics"] = str(tmp_path / "o.tsv")
    tree = {"cohort": tables, "features": {"dir": "f"}, "omics": {"leave_out": ["*.N"]}}
    cohort = load_cohort(Config.model_validate(tree))
    assert cohort.omics is not None and len(cohort.omics) == 9


@pytest.mark.parametrize(
    ("slide", "file"),
    [
        (lambda i: f"{i}", lambda i: f"{i:05d}.h5"),
        (lambda i: f"{i}.0", lambda i: f"{i:03d}.h5"),
        (lambda i: f"{i:04d}.svs", lambda i: f"{i}.pt"),
        (lambda i: f"P{i} A.svs", lambda i: f"p{i}_a.h5"),
        (lambda i: f"P{i}.svs", lambda i: f"P{i}_features.h5"),
        (lambda i: f"P{i}", lambda i: f"P{i}.svs_uni.pt"),
    ],
)
def test_feature_files_are_found_by_number_spelling_or_one_ending(
    tmp_path: Path, slide: Callable[[int], str], file: Callable[[int], str]
) -> None:
    for i in range(1, 12):
        (tmp_path / file(i)).write_bytes(b"x")
    features = find_features(str(tmp_path), {slide(i): slide(i) for i in range(1, 12)})
    assert {name: Path(own.path).name for name, own in features.files.items()} == {
        slide(i): file(i) for i in range(1, 12)
    }
    assert features.understood and not features.unnamed


def test_numbers_that_two_files_have_are_nobody_s(tmp_path: Path) -> None:
    for name in ("01.h5", "001.h5", "S1_a.h5", "S2_b.h5"):
        (tmp_path / name).write_bytes(b"x")
    features = find_features(str(tmp_path), {"1": "1", "S1": "S1", "S2": "S2"})
    assert not any(own.stamp for own in features.files.values())
