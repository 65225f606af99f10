"""A folder with a file of gene values for each sample, as the GDC, STAR, Salmon and HTSeq give them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.cures import cures_in

from momkd_ray.cohort.omics import OmicsTable, read_omics
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError

CASES = [f"TCGA-A{i}-{1000 + i}" for i in range(6)]
SYMBOLS = ("ESR1", "PGR", "ERBB2", "MKI67")
COUNTS = np.random.default_rng(0).integers(5, 5000, (6, 4))
HEADER = "gene_id\tgene_name\tgene_type\tunstranded\tstranded_first\ttpm_unstranded\tfpkm_unstranded\n"


def star(counts: np.ndarray) -> str:
    """A file as the GDC's STAR pipeline writes it; TPM are counts divided by 10."""
    rows = [
        f"ENSG0000000000{i}.{i}\t{name}\tprotein_coding\t{n}\t{n // 2}\t{n / 10:.4f}\t{n / 20:.4f}"
        for i, (name, n) in enumerate(zip(SYMBOLS, counts, strict=True), start=1)
    ]
    above = "# gene-model: GENCODE v36\n" + HEADER + "N_unmapped\t\t\t54000\t54000\t\t\nN_ambiguous\t\t\t7\t7\t\t\n"
    return above + "\n".join(rows) + "\n"


def uuid(i: int) -> str:
    return f"{i:08d}-aaaa-bbbb-cccc-00000000000{i}"


def gdc(folder: Path, sheet: str | None = "gdc_sample_sheet.2026-01-01.tsv", packed: bool = False) -> Path:
    """A download of six tumours and, of the first case, normal tissue; with logs and annotations beside."""
    lines = ["File ID\tFile Name\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"]
    for i in range(7):
        case, kind = (CASES[i], "01A") if i < 6 else (CASES[0], "11A")
        name = f"{uuid(i + 100)}.rna_seq.augmented_star_gene_counts.tsv" + (".gz" if packed else "")
        place = folder / uuid(i)
        (place / "logs").mkdir(parents=True)
        (place / "logs" / f"{name}.parcel").write_bytes(b"\0")
        text = star(COUNTS[i % 6] + 3 * (i == 6)).encode()
        (place / name).write_bytes(gzip.compress(text) if packed else text)
        tissue = "Solid Tissue Normal" if i == 6 else "Primary Tumor"
        lines.append(f"{uuid(i)}\t{name}\tGene Expression Quantification\tTCGA-BRCA\t{case}\t{case}-{kind}\t{tissue}")
    (folder / uuid(0) / "annotations.txt").write_text("id\tsubmitter_id\nx\ty\n")
    (folder / "MANIFEST.txt").write_text("id\tfilename\tmd5\tsize\tstate\n")
    if sheet:
        (folder / sheet).write_text("\n".join(lines) + "\n")
    return folder


def read(folder: Path, **settings: object) -> OmicsTable:
    return read_omics(str(folder), None, CASES, OmicsConfig.model_validate(settings))


def told(table: OmicsTable) -> str:
    return " ".join(entry.sentence() for entry in table.understood)


def same(table: OmicsTable, values: np.ndarray) -> None:
    assert table.values.index.tolist() == CASES
    np.testing.assert_allclose(table.values.to_numpy(), values, rtol=1e-5)
    assert not table.faults


@pytest.mark.parametrize("packed", [False, True])
def test_a_download_of_the_gdc_is_one_matrix(tmp_path: Path, packed: bool) -> None:
    table = read(gdc(tmp_path, packed=packed))
    same(table, COUNTS / 10)
    assert len(table.values.columns) == 4
    for words in (
        "the column 'tpm_unstranded' is read",
        "stranded_first",
        "1 file of normal tissue",
        "names the samples",
    ):
        assert words in told(table)
    same(read(tmp_path, column="unstranded"), COUNTS)


def test_the_sheet_may_lie_beside_or_be_named_and_metadata_does_too(tmp_path: Path) -> None:
    folder = tmp_path / "omics"
    folder.mkdir()
    gdc(folder)
    sheet = next(folder.glob("gdc_sample_sheet*"))
    sheet.rename(tmp_path / sheet.name)
    same(read(folder), COUNTS / 10)
    (tmp_path / sheet.name).rename(tmp_path / "whose.tsv")
    same(read(folder, sample_sheet=str(tmp_path / "whose.tsv")), COUNTS / 10)
    entries = [
        {
            "file_id": uuid(i),
            "file_name": f"{uuid(i + 100)}.rna_seq.augmented_star_gene_counts.tsv",
            "associated_entities": [
                {"entity_submitter_id": f"{(*CASES, CASES[0])[i]}-{'11A' if i == 6 else '01A'}-11R-A1-07"}
            ],
        }
        for i in range(7)
    ]
    (folder / "metadata.cart.2026-01-01.json").write_text(json.dumps(entries))
    same(read(folder), COUNTS / 10)


def test_without_a_sheet_the_sentence_names_what_to_download_and_where_to(tmp_path: Path) -> None:
    gdc(tmp_path, sheet=None)
    with pytest.raises(
        InputError, match=r"7 files of one sample each.*download the sample sheet.*save it as"
    ) as caught:
        read(tmp_path)
    cure = str(caught.value).split("save it as ")[1].split(",")[0]
    gdc(tmp_path / "again", sheet="gdc_sample_sheet.tsv")
    (tmp_path / "again" / "gdc_sample_sheet.tsv").rename(cure)
    shutil.rmtree(tmp_path / "again")
    same(read(tmp_path), COUNTS / 10)


def test_the_manifest_is_no_sample_sheet(tmp_path: Path) -> None:
    gdc(tmp_path, sheet=None)
    manifest = tmp_path / "m.txt"
    manifest.write_text("id\tfilename\tmd5\tsize\tstate\nx\ty\tz\t1\tlive\n")
    with pytest.raises(InputError, match=r"it is the GDC's manifest, which names no cases"):
        read(tmp_path, sample_sheet=str(manifest))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "scale"),
    [
        ("{}.htseq.counts", lambda n: "".join(f"{g}\t{v}\n" for g, v in zip(SYMBOLS, n, strict=True))
         + "__no_feature\t9\n", 1),
        ("{}-01A.tsv", star, 10),
        ("{}.tsv", star, 10),
        ("{}/quant.sf", lambda n: "Name\tLength\tEffectiveLength\tTPM\tNumReads\n"
         + "".join(f"{g}\t900\t800.5\t{v / 10}\t{v}\n" for g, v in zip(SYMBOLS, n, strict=True)), 10),
        ("{}/abundance.tsv", lambda n: "target_id\tlength\teff_length\test_counts\ttpm\n"
         + "".join(f"{g}\t900\t800.5\t{v}\t{v / 10}\n" for g, v in zip(SYMBOLS, n, strict=True)), 10),
        ("{}.genes.results", lambda n: "gene_id\ttranscript_id(s)\tlength\texpected_count\tTPM\tFPKM\n"
         + "".join(f"{g}\ta,b\t900\t{v}\t{v / 10}\t{v / 20}\n" for g, v in zip(SYMBOLS, n, strict=True)), 10),
        ("{}.csv", lambda n: "gene,value\n" + "".join(f"{g},{v}\n" for g, v in zip(SYMBOLS, n, strict=True)), 1),
    ],
)  # fmt: skip
def test_files_or_folders_named_by_the_sample(
    tmp_path: Path, name: str, text: Callable[[np.ndarray], str], scale: int
) -> None:
    for case, counts in zip(CASES, COUNTS, strict=True):
        _put(tmp_path / name.format(case), text(counts))
    table = read(tmp_path)
    same(table, COUNTS / scale)
    assert "are read as samples" in told(table)


def test_several_columns_of_values_are_not_guessed_and_the_cure_works(tmp_path: Path) -> None:
    for case, counts in zip(CASES, COUNTS, strict=True):
        rows = "".join(f"{g}\t{v}\t{v // 2}\t{v - v // 2}\n" for g, v in zip(SYMBOLS, counts, strict=True))
        _put(tmp_path / f"{case}.ReadsPerGene.out.tab", "N_unmapped\t5\t5\t5\n" + rows)
    with pytest.raises(InputError, match=r'set omics\.column to "2" or "3" or "4"') as caught:
        read(tmp_path)
    key, value = cures_in(str(caught.value))[0]
    same(read(tmp_path, **{key.split(".")[1]: value}), COUNTS)


def _cut(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))


def _cut_in_a_row(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "has 2 genes where most files have 4"),
        (_cut_in_a_row, "download it again"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_text("<html>Service unavailable</html>"), "has no column of values"),
        (lambda path: path.write_text(path.read_text().replace("tpm_unstranded", "tpm_x")), "several columns"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08\x00cut"), "cannot be unpacked"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_its_patients_fault_alone(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    gdc(tmp_path)
    path = next((tmp_path / uuid(2)).glob("*.tsv"))
    damage(path)
    table = read(tmp_path)
    faults = table.faults
    assert [(fault.id, fault.location) for fault in faults] == [(CASES[2], str(path))]
    assert said in faults[0].reason and "\n" not in faults[0].reason
    assert CASES[2] not in table.values.index and len(table.values) == 5


def test_two_files_of_a_patient_that_differ_are_a_fault_that_leave_out_cures(tmp_path: Path) -> None:
    gdc(tmp_path)
    sheet = next(tmp_path.glob("gdc_sample_sheet*"))
    sheet.write_text(sheet.read_text().replace(f"{CASES[1]}\t{CASES[1]}-01A", f"{CASES[0]}\t{CASES[0]}-01B"))
    table = read(tmp_path)
    assert [fault.id for fault in table.faults] == [CASES[0]] and "omics.leave_out" in table.faults[0].reason
    table = read(tmp_path, leave_out=[f"{CASES[0]}-01B"])
    assert not table.faults and len(table.values) == 5


def test_files_that_the_sheet_lacks_and_names_in_vain_are_counted(tmp_path: Path) -> None:
    gdc(tmp_path)
    sheet = next(tmp_path.glob("gdc_sample_sheet*"))
    lines = sheet.read_text().splitlines(keepends=True)
    sheet.write_text("".join([*lines[:2], *lines[3:], lines[2].replace(uuid(1), "x").replace(uuid(101), "y")]))
    table = read(tmp_path)
    assert CASES[1] not in table.values.index
    assert "1 file is not in gdc_sample_sheet" in told(table) and "1 file that it names are not in" in told(table)


def test_a_folder_with_one_table_names_it(tmp_path: Path) -> None:
    (tmp_path / "genes.tsv").write_text("PATIENT\tA\tB\n" + "".join(f"{case}\t1\t2\n" for case in CASES))
    with pytest.raises(InputError, match=r"set cohort\.omics to .*genes\.tsv"):
        read(tmp_path)
