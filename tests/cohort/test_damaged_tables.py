"""Damaged tables: each is one sentence, or is read whole; nothing is lost in between."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from momkd_ray.cohort.table_files import read_table, read_table_file
from momkd_ray.errors import InputError

TABLE = pd.DataFrame(
    {
        "PATIENT": [f"P{i:03d}" for i in range(40)],
        "HER2": ["positive", "negative"] * 20,
        "AGE": np.arange(40) + 0.5,
        "NOTE": ["ok", "see, report", 'a "b" c', "é"] * 10,
    }
)


def contents() -> dict[str, bytes]:
    book, columns, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    TABLE.to_excel(book, index=False)
    TABLE.to_parquet(columns, index=False)
    csv = TABLE.to_csv(index=False).encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("t.csv", csv)
    return {
        "t.csv": csv,
        "t.tsv": TABLE.to_csv(index=False, sep="\t").encode(),
        "u.csv": TABLE.to_csv(index=False, sep=";").encode("utf-16"),
        "t.csv.gz": gzip.compress(csv),
        "t.csv.zip": archive.getvalue(),
        "t.parquet": columns.getvalue(),
        "t.xlsx": book.getvalue(),
    }


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cuts, repeats, removes, overwrites or inserts bytes."""
    at, length = rng.randrange(len(content)), rng.choice([1, 2, 7, 60, 900])
    piece = content[at : at + length]
    return {
        "cut": content[:at],
        "head": content[at:],
        "remove": content[:at] + content[at + length :],
        "repeat": content[:at] + piece + content[at:],
        "noise": content[:at] + rng.randbytes(length) + content[at + length :],
        "null": content[:at] + bytes(len(piece)) + content[at + length :],
        "marks": content[:at] + rng.choice([b'"', b"\n", b",", b"\t", b";", b'"\n', b"\r", b"#", b"\0"]) + content[at:],
    }[rng.choice(["cut", "head", "remove", "repeat", "noise", "null", "marks", "marks"])]


@pytest.mark.parametrize("name", list(contents()))
def test_a_damaged_file_is_one_sentence_or_a_table(tmp_path: Path, name: str) -> None:
    whole, rng = contents()[name], random.Random(name)
    path, said = tmp_path / name, []
    for _ in range(40 if name == "t.xlsx" else 120):
        path.write_bytes(damaged(whole, rng))
        try:
            file = read_table_file(str(path), lambda names: names[:1] + names[-1:])
        except InputError as error:
            said.append(str(error))
        else:
            assert file.table.num_rows > 0
    assert len(said) > 10
    assert all("\n" not in sentence and str(path) in sentence and len(sentence) < 600 for sentence in said)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_mark_that_slips_in_never_swallows_a_row_in_silence(tmp_path: Path, name: str) -> None:
    whole, path = contents()[name].decode(), tmp_path / name
    delimiter = "," if name == "t.csv" else "\t"
    said = []
    for mark in ('"', delimiter, "\n", '"\n', f'{delimiter}"'):
        for at in range(len("PATIENT,HER2,AGE,NOTE\n"), len(whole), 23):
            path.write_text(whole[:at] + mark + whole[at:])
            try:
                rows = read_table(str(path))["PATIENT"].tolist()
            except InputError as error:
                said.append(str(error))
            else:
                assert len(rows) >= len(TABLE), f"{mark!r} at {at}"
    assert all("line " in sentence or "ways" in sentence for sentence in said)


@pytest.mark.parametrize("quotes", [(5, 12), (5, 6), (3, 30)])
def test_two_stray_quotes_do_not_hide_the_rows_between_them(tmp_path: Path, quotes: tuple[int, int]) -> None:
    lines = [f"P{i},negative,ok" for i in range(40)]
    lines[quotes[0]], lines[quotes[1]] = f'P{quotes[0]},negative,"ok', f'P{quotes[1]},negative,ok"'
    path = tmp_path / "t.csv"
    path.write_text("PATIENT,HER2,NOTE\n" + "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"opens in line {quotes[0] + 2} is closed only in line {quotes[1] + 2}"):
        read_table(str(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"a,b\n1,2\n3\n", "line 3 has 1 cell, but the header in line 1 has 2"),
        ("t.csv", b"# x\n\na,b\n1,2\n3,4,5\n6,7\n", "line 5 has 3 cells, but the header in line 3 has 2"),
        ("t.csv", b"a,b\n1,2,5\n3,4,5\n", "line 2 has 3 cells"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns named 'a' (columns 1 and 3 of the header)"),
        ("t.csv", b"a,,\n1,2,3\n", "columns 2 and 3 of the header have no name"),
        ("t.csv", b'a,"b\n1,2\n3,4\n', "line 1 is not closed"),
        ("t.csv", b"a;b,c;d\n1;2,3;4\n", "in several ways"),
        ("t.csv", b"a,b\n1,\0\n", "null character in line 2"),
        ("t.csv", b"# only\n# comments\n", "empty but for its 2 comment lines"),
        ("t.gct", b"#1.2\n3\t1\nName\tDescription\tP1\nG1\tna\t1\n", "says in its line 2 that it has 3 rows"),
        ("t.csv", b"PK\x03\x04", "holds a .xlsx file"),
        ("t.csv", b"PAR1", "holds a .parquet file"),
        ("t.xls", b"\xd0\xcf\x11\xe0", "save it as .xlsx or .csv"),
        ("t.xlsx", b"a,b\n1,2\n", "cannot be read as .xlsx"),
        ("t.tar.gz", gzip.compress(b"x", mtime=0), "unpack it"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be unpacked as .gz"),
        ("t.csv.zip", b"a,b\n1,2\n", "cannot be unpacked as .zip"),
        ("t.csv.gz", b"", "is empty"),
        ("t", b"a,b\n1,2\n", "its name must end in .csv"),
    ],
)
def test_each_fault_names_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(str(tmp_path / name))
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_of_two_tables_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "a,b\n1,2\n")
        archive.writestr("b.csv", "a,b\n3,4\n")
        archive.writestr("readme.txt.md", "x")
    with pytest.raises(InputError, match=r"holds 2 tables \(a\.csv, b\.csv\): unpack it"):
        read_table(str(path))


@pytest.mark.parametrize(
    ("cells", "said"),
    [(("1,234", "5,678"), "may be decimal or divide thousands"), (("1,5", "2.5"), "with a comma")],
)
def test_commas_in_numbers_that_could_mean_two_things_are_refused(
    tmp_path: Path, cells: tuple[str, str], said: str
) -> None:
    (tmp_path / "t.csv").write_text(f"PATIENT;A;B\nP1;{cells[0]};1\nP2;{cells[1]};2\n")
    with pytest.raises(InputError, match=said):
        read_table_file(str(tmp_path / "t.csv"), lambda names: names[0])
