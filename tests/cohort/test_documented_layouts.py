"""docs/formats.md shows what is read: each of its examples is written to files, and the cohort is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.format_examples import EXAMPLES, filled, shown

from momkd_ray.cohort.cell_numbers import BLANKS
from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.delimited import MISSING
from momkd_ray.cohort.folds import make_folds
from momkd_ray.cohort.labels import MISSING_LABELS, says_missing
from momkd_ray.config.load import Config

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_page_shows_the_examples_that_are_read() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "python tests/support/format_examples.py docs/formats.md writes them anew"


def listed_after(start: str) -> set[str]:
    """What the paragraph that begins so sets as code."""
    paragraph = PAGE.read_text(encoding="utf-8").partition(start)[2].partition("\n\n")[0]
    return set(re.findall(r"`([^`]+)`", " ".join(paragraph.split())))


def test_every_spelling_of_a_blank_is_listed() -> None:
    assert listed_after("passed over. Empty cells,") == set(MISSING) - {""}
    assert listed_after("Blank in a column of genes") - {"NA"} == set(BLANKS)
    spellings = listed_after("**Labels that say that there is none**")
    assert all(map(says_missing, spellings))
    assert {re.sub(r"[\W_]", "", spelling.casefold()) for spelling in spellings} - {""} == MISSING_LABELS


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name]
    on_page = {file: text for own, file, text in shown(PAGE.read_text(encoding="utf-8")) if own == name}
    for file, text in {**example.beside, **on_page}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    tree = {
        section: {
            key: str(tmp_path / value) if isinstance(value, str) and value.startswith("./") else value
            for key, value in keys.items()
        }
        for section, keys in example.config.items()
    }
    config = Config.model_validate({**tree, "features": {"dir": str(tmp_path / "features")}})
    cohort = load_cohort(config)
    assert cohort.patients["label"].to_dict() == example.labels
    slides = dict(zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True))
    assert slides == (example.slides or {f"{patient}-slide": patient for patient in example.labels})
    if example.genes is None:
        assert cohort.omics is None
    else:
        assert cohort.omics is not None
        assert cohort.omics.index.tolist() == list(example.genes)
        np.testing.assert_allclose(cohort.omics.to_numpy(), list(example.genes.values()))
    if example.tested is not None:
        plan = make_folds(config, cohort)
        tested = {fold: plan.roles(fold).index[plan.roles(fold) == "test"].tolist() for fold in plan.folds}
        assert tested == example.tested
