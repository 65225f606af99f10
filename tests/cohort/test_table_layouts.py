"""The same cohort, however its tables are written: separators, encodings, orders, identifiers, compressions."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.identifiers import match_identifiers
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError

N = 10
BARCODES = [f"TCGA-A{i % 7}-{1000 + i}" for i in range(N)]
CLINICAL = pd.DataFrame(
    {
        "PATIENT": BARCODES,
        "HER2": ["positive", "negative"] * 5,
        "NOTE": ["ok", "a, b; c", "d|e", 'said "no"', "é", "", "x", "y", "z", "u"],
    }
)
SLIDES = pd.DataFrame({"PATIENT": BARCODES, "FILENAME": [f"{name}-01Z-00-DX1.svs" for name in BARCODES]})
VALUES = np.random.default_rng(0).normal(5, 2, (N, 4)).round(3)
GENES = pd.DataFrame(VALUES, columns=["ESR1", "PGR", "ERBB2", "MKI67"])
GENES.insert(0, "PATIENT", BARCODES)

SEPARATORS = {",": ".csv", ";": ".csv", "\t": ".tsv", "|": ".txt"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")
LINE_ENDS = ("\n", "\r\n", "\r")
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "sample": "{}-01A".format,
    "short sample": "{}-01".format,
    "aliquot": "{}-01A-11R-A12P-07".format,
    "lower case": str.lower,
    "dots": lambda name: name.replace("-", "."),
    "blanks": " {} ".format,
}


def text(table: pd.DataFrame, separator: str = ",", end: str = "\n", encoding: str = "utf-8", above: str = "") -> bytes:
    written = above + table.to_csv(index=False, sep=separator)
    return written.replace("\n", end).encode(encoding)


def zipped(content: bytes, name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/{name}", content)
        archive.writestr(f"__MACOSX/folder/._{name}", b"\0")
    return out.getvalue()


def cohort_of(folder: Path, **tables: tuple[str, bytes | pd.DataFrame]) -> Cohort:
    """Writes the tables that are given in another way, the others plainly, and reads them."""
    cohort = {"label": "HER2"}
    for key, plain in (("clinical", CLINICAL), ("slides", SLIDES), ("omics", GENES)):
        name, content = tables.get(key, (f"{key}.csv", text(plain)))
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".parquet":
            content.to_parquet(path)
        else:
            content.to_excel(path, index=False)
        cohort[key] = str(path)
    return load_cohort(Config.model_validate({"cohort": cohort, "features": {"dir": str(folder / "features")}}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    cohort = cohort_of(tmp_path_factory.mktemp("plain"))
    assert len(cohort.patients) == len(cohort.slides) == N
    assert cohort.omics is not None and cohort.omics.shape == (N, 4)
    return cohort


def same(cohort: Cohort, plain: Cohort) -> None:
    assert cohort.fingerprint() == plain.fingerprint()
    assert not cohort.rejected and cohort.excluded.empty


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_encodings_line_ends_and_comments(tmp_path: Path, plain: Cohort, separator: str) -> None:
    above = ("", "# made by a portal\n#more\n")
    for number, (encoding, end, words) in enumerate(itertools.product(ENCODINGS, LINE_ENDS, above)):
        name = f"clinical{number}{SEPARATORS[separator]}"
        cohort = cohort_of(tmp_path, clinical=(name, text(CLINICAL, separator, end, encoding, words)))
        same(cohort, plain)
        said = " ".join(entry.what for entry in cohort.understood)
        assert ("2 comment lines" in said) == bool(words)


@pytest.mark.parametrize("kind", ["clinical", "slides", "omics"])
def test_packings_of_every_table(tmp_path: Path, plain: Cohort, kind: str) -> None:
    table = {"clinical": CLINICAL, "slides": SLIDES, "omics": GENES}[kind]
    for separator, suffix in SEPARATORS.items():
        content = text(table, separator)
        for packing, pack in PACKINGS.items():
            same(cohort_of(tmp_path, **{kind: (f"t{suffix}{packing}", pack(content))}), plain)
        same(cohort_of(tmp_path, **{kind: (f"t{suffix}.zip", zipped(content, f"t{suffix}"))}), plain)
        same(cohort_of(tmp_path, **{kind: ("t.zip", zipped(content, f"t{suffix}"))}), plain)
    same(cohort_of(tmp_path, **{kind: ("t.parquet", table)}), plain)
    same(cohort_of(tmp_path, **{kind: ("t.xlsx", table)}), plain)


def test_orders_of_rows_and_columns_and_further_columns(tmp_path: Path, plain: Cohort) -> None:
    rng = random.Random(0)
    for _ in range(30):
        tables = {}
        for key, table in (("clinical", CLINICAL), ("slides", SLIDES)):
            shuffled = table.sample(frac=1, random_state=rng.randrange(1000)).assign(AGE=range(N), SITE="s")
            columns = list(shuffled.columns)
            rng.shuffle(columns)
            tables[key] = (f"{key}.csv", text(shuffled[columns]))
        same(cohort_of(tmp_path, omics=("o.csv", text(GENES.sample(frac=1, random_state=1))), **tables), plain)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_identifiers_are_the_clinical_tables_however_others_spell_them(
    tmp_path: Path, plain: Cohort, spelling: str
) -> None:
    spelt = [SPELLINGS[spelling](name) for name in BARCODES]
    half = [SPELLINGS[spelling](name) if i % 2 else name for i, name in enumerate(BARCODES)]
    for names in (spelt, half):
        cohorts = [
            cohort_of(tmp_path, slides=("s.csv", text(SLIDES.assign(PATIENT=names)))),
            cohort_of(tmp_path, omics=("o.csv", text(GENES.assign(PATIENT=names)))),
            cohort_of(
                tmp_path, slides=("s.csv", text(SLIDES.assign(PATIENT=names).rename(columns={"PATIENT": "who"})))
            ),
        ]
        for cohort in cohorts:
            same(cohort, plain)
            assert cohort.understood, "what was matched is told"


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "case_id", "Patient ID", "SAMPLE", "cases.submitter_id"])
def test_the_patients_column_is_found_in_every_table(tmp_path: Path, plain: Cohort, name: str) -> None:
    for key, table in (("clinical", CLINICAL), ("slides", SLIDES), ("omics", GENES)):
        content = text(table.rename(columns={"PATIENT": name}))
        same(cohort_of(tmp_path, **{key: ("t.csv", content)}), plain)
        same(cohort_of(tmp_path, **{key: ("t.xlsx", table.rename(columns={"PATIENT": name}))}), plain)


def test_rows_that_agree_count_once_and_blank_ones_not_at_all(tmp_path: Path, plain: Cohort) -> None:
    for key, table in (("clinical", CLINICAL), ("slides", SLIDES), ("omics", GENES)):
        same(cohort_of(tmp_path, **{key: ("t.csv", text(pd.concat([table, table[3:6]])))}), plain)
        blank = text(table) + b"," * (table.shape[1] - 1) + b"\n\n\n"
        same(cohort_of(tmp_path, **{key: ("t.csv", blank)}), plain)
        trailing = text(table).replace(b"\n", b",\n")
        same(cohort_of(tmp_path, **{key: ("t.csv", trailing)}), plain)


def test_row_names_of_r_and_decimal_commas(tmp_path: Path, plain: Cohort) -> None:
    lines = text(GENES, "\t").decode().split("\n", 1)
    by_r = "\t".join(lines[0].split("\t")[1:]) + "\n" + lines[1]
    same(cohort_of(tmp_path, omics=("o.txt", by_r.encode())), plain)
    for separator in (";", "\t"):
        commas = GENES.to_csv(index=False, sep=separator, decimal=",").encode()
        same(cohort_of(tmp_path, omics=("o.csv", commas)), plain)


def numbered(folder: Path, key: str, spell: Callable[[int], str]) -> Cohort:
    names = [f"{i + 1:05d}" for i in range(N)]
    tables = {"clinical": CLINICAL, "slides": SLIDES, "omics": GENES}
    written = {own: (f"{own}.csv", text(table.assign(PATIENT=names))) for own, table in tables.items()}
    written[key] = ("t.csv", text(tables[key].assign(PATIENT=[spell(i + 1) for i in range(N)])))
    return cohort_of(folder, **written)


@pytest.mark.parametrize("key", ["slides", "omics"])
@pytest.mark.parametrize("spell", [str, "{}.0".format, "{:03d}".format, "X{:05d}".format, " {:05d}".format])
def test_zeros_that_a_spreadsheet_dropped(tmp_path: Path, key: str, spell: Callable[[int], str]) -> None:
    plain = numbered(tmp_path, key, "{:05d}".format)
    same(numbered(tmp_path, key, spell), plain)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
@pytest.mark.parametrize(
    ("values", "positive", "negative"),
    [
        ([1, 0], "1", "0"),
        ([1.0, 0.0], "1", "0"),
        ([1, 0], "1.0", "0.0"),
        ([1, 0], 1, 0),
        ([True, False], "True", "False"),
        ([True, False], "TRUE", "false"),
        ([True, False], True, False),
        ([30, 12.5], ">= 25", "< 25"),
        ([30, 12.5], ">25", "rest"),
        (["high", "low"], "high", "rest"),
        (["high", "low"], ["high", "very high"], ["low", "none"]),
        (["rest", "work"], "work", "rest"),
        ([">=10%", "<10%"], ">=10%", "<10%"),
    ],
)
def test_a_label_means_the_same_in_every_file_type(
    tmp_path: Path, suffix: str, values: list[object], positive: object, negative: object
) -> None:
    clinical = CLINICAL.assign(HER2=values * 5)
    path = tmp_path / f"c{suffix}"
    {".csv": clinical.to_csv, ".xlsx": clinical.to_excel, ".parquet": clinical.to_parquet}[suffix](path, index=False)
    (tmp_path / "s.csv").write_bytes(text(SLIDES))
    tables = {"clinical": str(path), "slides": str(tmp_path / "s.csv"), "label": "HER2"}
    tree = {"cohort": {**tables, "positive": positive, "negative": negative}, "features": {"dir": str(tmp_path)}}
    cohort = load_cohort(Config.model_validate(tree))
    first = int(values[0] != "rest")
    assert cohort.patients["y"].loc[BARCODES].tolist() == [first, 1 - first] * 5


def test_the_only_sheet_that_names_patients_is_read(tmp_path: Path, plain: Cohort) -> None:
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        pd.DataFrame({"made by": ["x"]}).to_excel(book, sheet_name="about", index=False)
        CLINICAL.to_excel(book, sheet_name="data", index=False)
    same(cohort_of(tmp_path, clinical=("two.xlsx", (tmp_path / "two.xlsx").read_bytes())), plain)


def test_a_header_may_begin_with_a_hash_or_span_lines(tmp_path: Path, plain: Cohort) -> None:
    same(cohort_of(tmp_path, clinical=("c.csv", b"#" + text(CLINICAL))), plain)
    broken = text(CLINICAL).replace(b"NOTE", b'"NOTE\nfree"')
    same(cohort_of(tmp_path, clinical=("c.csv", broken)), plain)


# --- what is not clear is refused


@pytest.mark.parametrize("key", ["slides", "omics"])
def test_identifiers_of_which_a_part_matches_by_luck_are_refused(tmp_path: Path, key: str) -> None:
    table = {"slides": SLIDES, "omics": GENES}[key]
    half = [name if i % 2 else f"{name}_T" for i, name in enumerate(BARCODES)]
    with pytest.raises(InputError, match=r"5 of its identifiers are patients of .* 5 others begin with one"):
        cohort_of(tmp_path, **{key: ("t.csv", text(table.assign(PATIENT=half)))})


def test_row_numbers_are_not_patients(tmp_path: Path) -> None:
    names = [str(i + 1) for i in range(N)]
    plainly = {"clinical": CLINICAL.assign(PATIENT=names), "slides": SLIDES.assign(PATIENT=names)}
    tables = {key: (f"{key}.csv", text(table)) for key, table in plainly.items()}
    counted = GENES.drop(columns="PATIENT").to_csv().encode()
    with pytest.raises(InputError, match=r"counts the rows"):
        cohort_of(tmp_path, omics=("o.csv", counted), **tables)


def test_numbers_that_match_few_are_refused(tmp_path: Path) -> None:
    names = [f"{i + 8:05d}" for i in range(N)]
    with pytest.raises(InputError, match=r"only 3 of its 10 patients .* only if leading zeros"):
        cohort_of(
            tmp_path,
            clinical=("c.csv", text(CLINICAL.assign(PATIENT=names))),
            slides=("s.csv", text(SLIDES.assign(PATIENT=range(1, N + 1)))),
        )


def test_few_matches_are_said_first_with_the_nearest_spelling(tmp_path: Path) -> None:
    names = [name if i < 3 else f"TCGX-{name[5:]}" for i, name in enumerate(BARCODES)]
    cohort = cohort_of(tmp_path, slides=("s.csv", text(SLIDES.assign(PATIENT=names))))
    assert cohort.summary()[0].startswith("s.csv: only 3 of its 10 patients are in ")
    assert "'TCGX-A3-1003' is nearest to 'TCGA-A3-1003'" in cohort.summary()[0]


@pytest.mark.parametrize(
    ("positive", "negative", "said"),
    [
        ("positive", "zero", "set cohort.negative to negative"),
        (">= 1", "<= 1", "no 'HER2' fulfils '>= 1'"),
        (["positive", "negative"], ["negative"], "both 'negative'"),
        (True, False, "quote it in YAML"),
    ],
)
def test_classes_that_no_row_has_are_refused(tmp_path: Path, positive: object, negative: object, said: str) -> None:
    for key, table in (("c", CLINICAL), ("s", SLIDES)):
        (tmp_path / f"{key}.csv").write_bytes(text(table))
    tables = {"clinical": str(tmp_path / "c.csv"), "slides": str(tmp_path / "s.csv"), "label": "HER2"}
    tree = {"cohort": {**tables, "positive": positive, "negative": negative}, "features": {"dir": str(tmp_path)}}
    with pytest.raises(InputError, match=said):
        load_cohort(Config.model_validate(tree))


@pytest.mark.parametrize(
    ("foreign", "own", "expected"),
    [
        (["1"], ["01", "001"], {}),
        (["1", "01"], ["001"], {"1": "001", "01": "001"}),
        (["p1"], ["P1", "P-1"], {"p1": "P1"}),
        (["p_1"], ["P-1", "P.1"], {}),
        (["TCGA-A0-1000-11A"], ["TCGA-A0-1000-01A"], {}),
        (["TCGA-A0-1000"], ["TCGA-A0-1000-01A", "TCGA-A0-1000-06A"], {}),
        (["TCGA-A0-1000-06A-11R"], ["TCGA-A0-1000-01A", "TCGA-A0-1000-06A"], {0: "TCGA-A0-1000-06A"}),
        (["TARGET-20-PABCDE-09A"], ["TARGET-20-PABCDE"], {0: "TARGET-20-PABCDE"}),
        (["TCGA-A0-10000"], ["TCGA-A0-1000"], {}),
    ],
)
def test_an_identifier_that_could_mean_two_means_none(
    foreign: list[str], own: list[str], expected: dict[object, str]
) -> None:
    found = match_identifiers(foreign, own).own
    assert found == {foreign[name] if isinstance(name, int) else name: other for name, other in expected.items()}
