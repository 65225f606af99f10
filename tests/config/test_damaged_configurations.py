"""Damaged configurations: each is one sentence that names the file, or still a valid configuration."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError

TEXT = """cohort:
  clinical: tables/clinical.csv
  slides: tables/slides.csv
  omics: tables/genes.tsv.gz
  label: HER2
  positive: ['3+', '2+']
  negative: rest
features: {dir: features, graph: auto}
folds: {n: 5, seed: 1, site: SITE}
genes: {select: anova, n: 100}
model: {hidden: 32, dropout: 0.25}
train:
  epochs: 3 # few
  lr: 1.0e-3
run: {dir: runs/her2}
"""
INSERTED = (
    ":",
    "- ",
    "\t",
    "{",
    "}",
    "[",
    "'",
    '"',
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "? ",
    "|\n",
    "\0",
    "%",
    "é",
    "#",
)
VALUES = (None, True, -1, 0, 10**400, 1e308, float("nan"), "", "x" * 500, [], [1, [2]], {}, {"a": 1}, "../..", "s3://")


def tried(path: Path, content: bytes) -> str:
    """Returns the sentence with which a configuration is refused; '' if it is read."""
    path.write_bytes(content)
    try:
        config = load_config(path)
    except InputError as error:
        return str(error)
    assert isinstance(config, Config)
    return ""


def check(said: list[str], path: Path) -> None:
    refused = [sentence for sentence in said if sentence]
    assert len(refused) > len(said) / 3
    for sentence in refused:
        assert "\n" not in sentence and len(sentence) < 1500 and path.name in sentence


@pytest.mark.parametrize("seed", range(3))
def test_damaged_text(tmp_path: Path, seed: int) -> None:
    rng, path, said = random.Random(seed), tmp_path / "c.yaml", []
    whole = TEXT.encode()
    for _ in range(80):
        at, length = rng.randrange(len(whole)), rng.choice([1, 3, 20])
        content = {
            "cut": whole[:at],
            "remove": whole[:at] + whole[at + length :],
            "insert": whole[:at] + rng.choice(INSERTED).encode() + whole[at:],
            "noise": whole[:at] + rng.randbytes(length) + whole[at + length :],
            "repeat": whole[:at] + whole[at : at + length] + whole[at:],
        }[rng.choice(["cut", "remove", "insert", "insert", "noise", "repeat"])]
        said.append(tried(path, content))
    check(said, path)


def test_values_of_the_wrong_kind(tmp_path: Path) -> None:
    path, said = tmp_path / "c.yaml", []
    tree = yaml.safe_load(TEXT)
    for section, keys in tree.items():
        for value in VALUES:
            said.append(tried(path, yaml.safe_dump({**tree, section: value}).encode()))
            for key in keys:
                changed = {**tree, section: {**keys, key: value}}
                said.append(tried(path, yaml.safe_dump(changed).encode()))
    assert len(said) > 250
    check(said, path)
