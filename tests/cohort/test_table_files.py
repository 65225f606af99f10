"""Tables in every format: text is kept as written, and what is bad is one sentence."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from momkd_ray.cohort.table_files import read_table
from momkd_ray.errors import InputError


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


def damaged_spreadsheet() -> bytes:
    """A valid archive with half of the first sheet's XML."""
    book, damaged = io.BytesIO(), io.BytesIO()
    pd.DataFrame({"a": range(20)}).to_excel(book, index=False)
    with zipfile.ZipFile(book) as members, zipfile.ZipFile(damaged, "w") as copy:
        for name in members.namelist():
            content = members.read(name)
            copy.writestr(name, content[: len(content) // 2] if name.endswith("sheet1.xml") else content)
    return damaged.getvalue()


def test_a_quoted_cell_may_span_lines_and_a_quote_within_a_cell_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n1,"two\nlines"\n3,a 5" tile\n4,"6"\n')
    assert read_table(str(tmp_path / "t.csv"))["b"].tolist() == ["two\nlines", 'a 5" tile', "6"]


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("t.csv", b"a,b\n1,2\n3\n", "line 3 has 1 cell, but the header in line 1 has 2"),
        ("t.csv", b"a,b\n1,2,3\n", "line 2 has 3 cells, but the header in line 1 has 2"),
        ("t.csv", b"a,b\n\x81,1\n", "save it as UTF-8"),
        ("t.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "in line 3 is not closed"),
        ("t.tsv", b'a\tb\n1\t"2\n3\t4\n5\t"6\n', "in line 2 is not closed"),
        ("t.parquet", b"PAR1 no", "cannot be read"),
        ("t.xlsx", b"PK no", "cannot be read"),
        ("t.xlsx", damaged_spreadsheet(), "the spreadsheet is damaged"),
        ("t.json", b"{}", ".csv, .tsv, .txt"),
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
