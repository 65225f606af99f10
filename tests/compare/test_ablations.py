"""The ablations of MoMKD by name: each is a valid configuration that changes what it says, and trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.fold_tasks import PUBLISHED, fold_task

from momkd_ray.compare.entries import entries_of
from momkd_ray.compare.leaderboard import Row
from momkd_ray.compare.variants import ablation_keys
from momkd_ray.config.ablations import ABLATIONS
from momkd_ray.config.dotted_keys import dotted_keys
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.report.omics import omics_pairs
from momkd_ray.train.worker import train_loop_per_worker

GUIDE = Path(__file__).parents[2] / "docs" / "compare.md"


def configured(compare: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "cohort": {"clinical": "c.csv", "omics": "rna.csv", "label": "PR"},
        "features": {"dir": "features"},
    }
    tree |= {name: tree.get(name, {}) | values for name, values in sections.items()}
    return Config.model_validate(tree | {"compare": compare})


def values_of(config: Config) -> dict[str, Any]:
    tree = config.model_dump()
    sections = ("omics", "genes", "model", "memory", "loss", "train")
    keys = [key.split(".") for key in dotted_keys(Config) if key.split(".")[0] in sections]
    return {".".join(key): tree[key[0]][key[1]] for key in keys}


def names_of(name: str) -> list[str]:
    """The ablation alone, or on what it is of."""
    needs = ABLATIONS[name].needs
    return ["published", name] if "model.pooling" in needs else [name]


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "memory_ema"])
def test_an_ablation_is_valid_and_changes_what_it_says_alone(name: str) -> None:
    names = names_of(name)
    before = configured().with_settings({k: v for n in names[:-1] for k, v in ABLATIONS[n].keys.items()})
    after = configured().with_settings(ablation_keys(configured(), names, "here"))
    told, was, now = ABLATIONS[name].keys, values_of(before), values_of(after)
    assert {key: now[key] for key in told} == dict(told)
    changed = {key for key in now if now[key] != was[key]}
    assert changed and changed <= set(told)


def test_the_published_setting_is_that_of_its_file() -> None:
    sections = ("omics", "model", "loss", "memory", "train")
    in_file = {f"{section}.{key}": value for section in sections for key, value in PUBLISHED[section].items()}
    assert {key: float(v) if key == "train.lr" else v for key, v in in_file.items()} == ABLATIONS["published"].keys | {
        "train.weight_decay": in_file["train.weight_decay"]
    }
    assert float(in_file["train.weight_decay"]) == ABLATIONS["published"].keys["train.weight_decay"]


def test_the_guide_tells_every_ablation_with_its_keys() -> None:
    rows = {line.split("|")[1].strip(" `"): line for line in GUIDE.read_text().splitlines() if line.startswith("| `")}
    for name, ablation in ABLATIONS.items():
        assert name in rows, name
        if name != "published":
            for key, value in ablation.keys.items():
                assert f"`{key}: {str(value).lower() if isinstance(value, bool) else value}`" in rows[name]


def test_all_are_trained_each_once_and_those_of_attention_on_the_published_network() -> None:
    entries = entries_of(configured({"ablations": "all", "seeds": [1, 2]}))
    labels = [entry.label for entry in entries if entry.seed == 1]
    assert labels[:3] == ["momkd", "momkd, published", "momkd, no distillation"]
    assert labels[-2:] == ["momkd, published, no graph", "momkd, published, learned attention"]
    assert len(labels) == len(set(labels)) == len(ABLATIONS)  # with momkd itself, without what is the default
    assert len({entry.folder for entry in entries}) == len(entries) == 2 * len(labels)
    # a configuration that is written down is read again, and a model that is listed is not repeated
    again = configured({"ablations": "all", "models": ["momkd", {"name": "momkd", "ablation": "no_teacher"}]})
    again = Config.model_validate(again.model_dump(mode="json"))
    assert sorted(entry.label for entry in entries_of(again)) == sorted(labels)
    of_attention = [e.label for e in entries_of(configured({"ablations": "all"}, model={"pooling": "attention"}))]
    assert "momkd, no graph" in of_attention and "momkd, attention pooling" not in of_attention
    without = [e.label for e in entries_of(configured({"ablations": "all"}, cohort={"omics": None}))]
    assert "momkd, memory fixed" in without and "momkd, no distillation" not in without


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"ablations": ["no_graph"]}, r"no_graph changes nothing, because model.pooling is components: write ablation: "
                                      r"\[published, no_graph\], or set model.pooling to attention"),
        ({"ablations": ["memory_ema"]}, r"memory_ema changes nothing, because memory.rule is ema already"),
        ({"ablations": [["memory_fixed", "momentum_0.9"]]}, r"0.9 changes nothing, because memory.rule is fixed"),
        ({"ablations": ["no_distillation"], "omics_fractions": [0]}, r"omics.fraction is 0 already"),
        ({"ablations": ["no_graf"]}, r"'no_graf' is no ablation; they are published, no_distillation"),
        ({"ablations": "none"}, r"it is 'none', but must be all, or a list of ablations"),
        ({"ablations": ["no_teacher", "no_teacher"]}, r"two models have the label 'momkd, no teacher'"),
        ({"models": [{"name": "abmil", "ablation": "no_teacher"}]}, r"the ablations are of momkd"),
        ({"models": [{"name": "momkd", "ablation": ["no_teacher"] * 2}]}, r"'no_teacher' is given twice"),
        ({"models": [{"name": "momkd", "set": "no_teacher"}]}, r"set is 'no_teacher', but must be values by"),
        ({"models": [{"name": "momkd", "set": {"model.graph": False}}]},
         r"momkd: model.graph is false, but pooling by components has no graph to change: set model.pooling to att"),
    ],
)  # fmt: skip
def test_an_ablation_that_makes_no_sense_is_refused_in_a_sentence(compare: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        entries_of(configured(compare))


def test_an_ablation_of_omics_without_omics_is_refused() -> None:
    for name in ("no_distillation", "no_teacher", "no_reconstruction"):
        with pytest.raises(InputError, match=rf"{name} changes nothing, because cohort.omics is null: name the table"):
            entries_of(configured({"ablations": [name]}, cohort={"omics": None}))


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_network_of_every_ablation_trains(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = {"pooling": "components", "schedule": "one_cycle", "keep": "last", "balanced": False}
    task = fold_task(tmp_path, dropout=0.3, **recipe)
    own = {key: value for n in names_of(name) for key, value in ABLATIONS[n].keys.items()}
    config = task.config.with_settings(own | {"train.epochs": 1})
    if own.get("omics.fraction") == 0:
        task = replace(task, omics={}, genes=0)
    elif config.omics.teacher == "cross_fitted":
        task = replace(task, targets={patient: 0.3 + 0.4 * (i % 2) for i, patient in enumerate(sorted(task.omics))})
    assert train_loop_per_worker({"task": replace(task, config=config)}) is not None
    losses = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert ("loss_align_omics" in losses) == (own.get("omics.fraction") != 0)
    predicted = pd.read_parquet(tmp_path / "test_slides.parquet")
    assert predicted["p_positive"].between(0, 1).all() and predicted["p_positive"].nunique() > 3


def test_only_rows_that_differ_in_omics_alone_are_paired() -> None:
    def row(label: str, own: dict[str, Any], omics: float = 1.0) -> Row:
        costs = (10, 1.5, 0.01, None)
        return Row(
            label, label, "momkd", own, 1.0, omics, [1], [[0.7, 0.8]], 0.75, 0.05, 0.74, (0.6, 0.9), None, *costs
        )

    fixed = {"memory.rule": "fixed"}
    rows = [row("fixed", fixed), row("without", {"omics.fraction": 0}, 0), row("with", {}),
            row("fixed without", fixed | {"omics.fraction": 0}, 0)]  # fmt: skip
    assert [(a.label, b.label) for a, b in omics_pairs(rows)] == [("without", "with"), ("fixed without", "fixed")]
