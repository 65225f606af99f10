"""The examples of docs/formats.md: every layout that is shown there, as the tests read it.

`python tests/support/format_examples.py docs/formats.md` writes them into the page, each below its comment
`<!-- example: NAME FILE -->`; with `--check` it exits with 1 if the page shows anything else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"(<!-- example: (\S+) (\S+) -->\n)```(\w*)\n(.*?)```\n", re.DOTALL)
_LANGUAGES = {".csv": "csv", ".tsv": "tsv", ".txt": "txt", ".gct": "gct", ".json": "json"}

EIGHT = {f"P{i}": "positive" if i % 2 else "negative" for i in range(1, 9)}
TESTED = {0: ["P1", "P2", "P3", "P4"], 1: ["P5", "P6", "P7", "P8"]}
THREE_SLIDES = {"P1-slide-a": "P1", "P1-slide-b": "P1", "P2-slide-a": "P2"}
GENES = {"TCGA-A1-0001": [1520, 310, 88], "TCGA-A2-0002": [12, 3, 4021]}


@dataclass(frozen=True)
class Example:
    """Files of a layout.

    Attributes:
        files: name -> content, as shown.
        beside: files that are needed too, but not shown.
        config: sections of the configuration that name the files; names of files begin with `./`.
        labels: patient -> label of the cohort that they give.
        slides: slide -> patient of that cohort; None if each has one.
        genes: patient -> values; None without omics.
        tested: fold -> patients who are tested; None if no split is shown.
    """

    files: Mapping[str, str]
    config: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict)
    slides: Mapping[str, str] | None = None
    genes: Mapping[str, list[float]] | None = None
    tested: Mapping[int, list[str]] | None = None


def _tables(labels: Mapping[str, str]) -> dict[str, str]:
    return {
        "clinical.csv": "PATIENT,PR\n" + "".join(f"{name},{label}\n" for name, label in labels.items()),
        "slides.csv": "PATIENT,FILENAME\n" + "".join(f"{name},{name}-slide.svs\n" for name in labels),
    }


def _csv(*rows: str) -> str:
    """A table of rows that are divided by blanks; `-` is an empty cell."""
    return "".join(",".join("" if cell == "-" else cell for cell in row.split()) + "\n" for row in rows)


def _omics(name: str, *, shown: Mapping[str, str] | None = None, **omics: Any) -> Example:
    labels = {"TCGA-A1-0001": "positive", "TCGA-A2-0002": "negative"}
    beside = _tables(labels) | {path: text for path, text in OMICS.items() if path.startswith(name)}
    files = shown or {name: beside.pop(name)}
    beside = {path: text for path, text in beside.items() if path not in files}
    cohort = {"clinical": "./clinical.csv", "slides": "./slides.csv", "label": "PR", "omics": f"./{name.rstrip('/')}"}
    return Example(files, {"cohort": cohort, "omics": omics}, labels, beside, genes=GENES)


def _split(files: Mapping[str, str], file: str, **folds: Any) -> Example:
    cohort = {"clinical": "./clinical.csv", "slides": "./slides.csv", "label": "PR"}
    tested = folds.pop("tested", TESTED)
    config = {"cohort": cohort, "folds": {"file": f"./{file}", **folds}}
    return Example(files, config, EIGHT, _tables(EIGHT), tested=tested)


def _star(values: list[float]) -> str:
    names = ("ENSG00000091831.24\tESR1", "ENSG00000082175.15\tPGR", "ENSG00000141736.13\tERBB2")
    rows = [f"{name}\tprotein_coding\t{v * 10}\t{v}\n" for name, v in zip(names, values, strict=True)]
    header = "gene_id\tgene_name\tgene_type\tunstranded\ttpm_unstranded\n"
    return f"# gene-model: GENCODE v36\n{header}N_unmapped\t\t\t54000\t\n" + "".join(rows)


OMICS = {
    "omics.csv": "PATIENT,ESR1,PGR,ERBB2\nTCGA-A1-0001,1520,310,88\nTCGA-A2-0002,12,3,4021\n",
    "xena.tsv": (
        "sample\tTCGA-A1-0001-01A\tTCGA-A2-0002-01A\tTCGA-A2-0002-11A\n"
        "ESR1\t1520\t12\t700\nPGR\t310\t3\t250\nERBB2\t88\t4021\t90\n"
    ),
    "data_mrna_seq.txt": (
        "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-A1-0001-01\tTCGA-A2-0002-01\n"
        "ESR1\t2099\t1520\t12\nPGR\t5241\t310\t3\nERBB2\t2064\t88\t4021\n"
    ),
    "genes.gct": (
        "#1.2\n3\t2\nName\tDescription\tTCGA-A1-0001\tTCGA-A2-0002\n"
        "ESR1\tna\t1520\t12\nPGR\tna\t310\t3\nERBB2\tna\t88\t4021\n"
    ),
    "counts.tsv": (
        "# gene-model: GENCODE v36\n"
        "gene_id\tgene_name\tgene_type\tTCGA-A1-0001-01A-11R-A034-07\tTCGA-A2-0002-01A-11R-A034-07\n"
        "N_unmapped\t\t\t54000\t61000\n"
        "ENSG00000091831.24\tESR1\tprotein_coding\t1520\t12\n"
        "ENSG00000082175.15\tPGR\tprotein_coding\t310\t3\n"
        "ENSG00000141736.13\tERBB2\tprotein_coding\t88\t4021\n"
    ),
    "gdc/gdc_sample_sheet.2026-01-01.tsv": (
        "File ID\tFile Name\tCase ID\tSample ID\tSample Type\n"
        "0e1a\t7f3c.rna_seq.augmented_star_gene_counts.tsv\tTCGA-A1-0001\tTCGA-A1-0001-01A\tPrimary Tumor\n"
        "5b2d\t19ac.rna_seq.augmented_star_gene_counts.tsv\tTCGA-A2-0002\tTCGA-A2-0002-01A\tPrimary Tumor\n"
    ),
    "gdc/0e1a/7f3c.rna_seq.augmented_star_gene_counts.tsv": _star(GENES["TCGA-A1-0001"]),
    "gdc/5b2d/19ac.rna_seq.augmented_star_gene_counts.tsv": _star(GENES["TCGA-A2-0002"]),
}
_GDC_SHOWN = ("gdc/gdc_sample_sheet.2026-01-01.tsv", "gdc/0e1a/7f3c.rna_seq.augmented_star_gene_counts.tsv")

EXAMPLES: dict[str, Example] = {
    "two-tables": Example(
        {
            "clinical.csv": _csv("PATIENT PR SITE", "P1 positive A", "P2 negative B", "P3 Equivocal A"),
            "slides.csv": _csv("PATIENT FILENAME", "P1 P1-slide-a.svs", "P1 P1-slide-b.svs", "P2 P2-slide-a.svs"),
        },
        {"cohort": {"clinical": "./clinical.csv", "slides": "./slides.csv", "label": "PR"}},
        {"P1": "positive", "P2": "negative"},
        slides=THREE_SLIDES,
    ),
    "one-table": Example(
        {
            "clam.csv": _csv(
                "case_id slide_id label", "P1 P1-slide-a positive", "P1 P1-slide-b positive", "P2 P2-slide-a negative"
            )
        },
        {"cohort": {"clinical": "./clam.csv", "label": "label"}},
        {"P1": "positive", "P2": "negative"},
        slides=THREE_SLIDES,
    ),
    "slide-labels": Example(
        {
            "labels.csv": _csv(
                "case_id slide_id label", "P1 P1-slide-a tumor", "P1 P1-slide-b normal", "P2 P2-slide-a normal"
            )
        },
        {
            "cohort": {
                "clinical": "./labels.csv",
                "label": "label",
                "positive": "tumor",
                "negative": "normal",
                "slide_labels": "any_positive",
            }
        },
        {"P1": "tumor", "P2": "normal"},
        slides=THREE_SLIDES,
    ),
    **{name: _omics(name) for name in OMICS if "/" not in name},
    "gdc": _omics("gdc/", shown={name: OMICS[name] for name in _GDC_SHOWN}),
    "fold-column": _split(
        {"folds.csv": _csv("PATIENT fold", *(f"{name} {fold}" for fold in TESTED for name in TESTED[fold]))},
        "folds.csv",
    ),
    "stamp": _split(
        {
            "splits.json": json.dumps(
                {"splits": [{"train_patients": TESTED[1 - fold], "test_patients": TESTED[fold]} for fold in TESTED]},
            ).replace("}, {", "},\n            {")
            + "\n"
        },
        "splits.json",
    ),
    "clam": _split(
        {
            f"splits/splits_{fold}.csv": ",train,val,test\n"
            + _csv(*(f"{i} {TESTED[1 - fold][i]}-slide - {TESTED[fold][i]}-slide" for i in range(4)))
            for fold in TESTED
        },
        "splits",
    ),
    "patho-bench": _split(
        {
            "k=all.tsv": "case_id\tPR\tfold_0\tfold_1\n"
            + "".join(
                f"{name}\t{label}\t" + "\t".join("test" if name in TESTED[fold] else "train" for fold in TESTED) + "\n"
                for name, label in EIGHT.items()
            )
        },
        "k=all.tsv",
    ),
    "fixed": _split(
        {
            "split.csv": _csv(
                "PATIENT split",
                *(f"P{i} {part}" for i, part in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2, start=1)),
            )
        },
        "split.csv",
        tested={0: ["P7", "P8"]},
    ),
    "three-files": _split(
        {
            "fixed/train.csv": _csv("PATIENT", "P1", "P2", "P3", "P4"),
            "fixed/val.csv": _csv("PATIENT", "P5", "P6"),
            "fixed/test.csv": _csv("PATIENT", "P7", "P8"),
        },
        "fixed",
        tested={0: ["P7", "P8"]},
    ),
    "run": _split(
        {
            "run/folds.csv": _csv(
                "PATIENT fold role_0 role_1",
                *(f"{name} 0 test {'val' if name in ('P1', 'P2') else 'train'}" for name in TESTED[0]),
                *(f"{name} 1 {'val' if name in ('P5', 'P6') else 'train'} test" for name in TESTED[1]),
            )
        },
        "run/folds.csv",
    ),
}


def shown(page: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, file and content of every example in the page."""
    for match in _BLOCK.finditer(page):
        yield match[2], match[3], match[5]


def filled(page: str) -> str:
    """Returns the page with every example as it is here.

    Raises:
        ValueError: it lacks a file of an example, or asks for one that there is not.
    """
    there = [(name, file) for name, file, _ in shown(page)]
    here = [(name, file) for name, example in EXAMPLES.items() for file in example.files]
    if sorted(there) != sorted(here):
        raise ValueError(f"examples that only one of page and tests has: {sorted({*there} ^ {*here})}")

    def block(match: re.Match[str]) -> str:
        content = EXAMPLES[match[2]].files[match[3]]
        return f"{match[1]}```{_LANGUAGES[Path(match[3]).suffix]}\n{content}```\n"

    return _BLOCK.sub(block, page)


def main() -> int:
    """Writes the examples into a page, or compares them with those in it."""
    parser = argparse.ArgumentParser(description="Writes the examples of docs/formats.md.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page shows anything else")
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    if options.check:
        return int(filled(page) != page)
    options.page.write_text(filled(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
