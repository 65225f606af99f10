"""The reference page of the configuration: every key with a description, and current or said not to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from momkd_ray.config import Config
from momkd_ray.config.dotted_keys import dotted_keys
from momkd_ray.config.reference import main, page

LEAVES = {key for key in dotted_keys(Config) if "." in key}


def test_every_key_has_a_row_with_a_sentence_and_the_source_of_its_default() -> None:
    rows = {key: rest for key, rest in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page(), flags=re.MULTILINE)}
    assert set(rows) == LEAVES
    for key, row in rows.items():
        kind, default, description = row.split(" | ")
        assert kind and default, key
        assert re.fullmatch(r"[A-Z`].*[\w`)]\.", description), key


@pytest.mark.parametrize(
    "row",
    [
        "| `cohort.clinical` | path or s3:// URI | required |",
        "| `cohort.omics` | path or s3:// URI or null | `null` |",
        "| `train.lr` | number > 0 | `0.001` |",
        "| `model.dropout` | number ≥ 0 < 1 | `0.5` |",
        "| `memory.rule` | `ema`, `gradient`, `fixed` | `ema` |",
        "| `cluster.workers` | integer or [integer, integer] | `1` |",
        "| `train.balanced` | boolean | `false` |",
    ],
)
def test_types_and_defaults_are_in_words(row: str) -> None:
    assert row in page()


def test_check_accepts_the_page_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "configuration.md"
    assert main(["--check", str(file)]) == 1
    assert main([]) == 0
    said, _, printed = capsys.readouterr().out.partition("\n")
    assert said == f"{file} is not current: python -m momkd_ray.config.reference > {file}"
    file.write_text(printed)
    assert main(["--check", str(file)]) == 0
    file.write_text(printed + " ")
    assert main(["--check", str(file)]) == 1
