"""A comparison from configuration to leaderboard: it resumes, shares the store, and says what it did."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.browser import CHROMIUM, opened

from momkd_ray import storage
from momkd_ray.compare.entries import entries_of, reference_of
from momkd_ray.compare.figures import fraction_figure
from momkd_ray.compare.leaderboard import Leaderboard, Row
from momkd_ray.compare.run import compare_models
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.report.omics import omics_pairs
from momkd_ray.run.prepare import open_cohort, open_folds, open_run_inputs

WITHOUT_OMICS = {"name": "momkd", "label": "momkd without omics", "set": {"omics.fraction": 0}}


def comparing(config: Config, **compare: Any) -> Config:
    return Config.model_validate(config.model_dump(mode="json") | {"compare": compare})


def compared(config: Config) -> Leaderboard:
    with ProgressReporter() as progress:
        cohort = open_cohort(config, progress)
        plan = open_folds(config, cohort, progress)
        study = open_run_inputs(config, cohort, plan, progress)
        return compare_models(study, progress, own_cluster=True)


def test_models_seeds_and_fractions_become_entries(tiny_config: Config) -> None:
    config = comparing(tiny_config, models=["mean_pool", WITHOUT_OMICS], seeds=[1, 2], label_fractions=[0.5, 1])
    entries = entries_of(config)
    assert [(e.label, e.seed) for e in entries[:3]] == [
        ("mean_pool (0.5 of the labels)", 1), ("mean_pool", 1), ("momkd without omics (0.5 of the labels)", 1),
    ]  # fmt: skip
    assert [e.seed for e in entries] == [1] * 4 + [2] * 4, "every model has a first figure as early as it can"
    assert {e.omics_fraction for e in entries if e.model == "momkd"} == {0}
    assert len({e.folder for e in entries}) == len(entries) == 8


def test_a_model_that_uses_no_omics_is_trained_once_for_all_fractions_of_them(tiny_config: Config) -> None:
    compare = {"models": ["momkd", WITHOUT_OMICS, "abmil", "soft_labels"], "omics_fractions": [0.5, 1, 0.25]}
    entries = entries_of(comparing(tiny_config, **compare))
    assert [entry.label for entry in entries] == [
        "momkd (0.5 of the omics)", "momkd", "momkd (0.25 of the omics)", "momkd without omics", "abmil",
        "soft_labels (0.5 of the omics)", "soft_labels", "soft_labels (0.25 of the omics)",
    ]  # fmt: skip
    alone = entries_of(comparing(tiny_config, models=["abmil"]))
    assert alone[0].folder in {entry.folder for entry in entries}, "with or without fractions"


@pytest.mark.parametrize(
    ("omics_fractions", "reference", "found"),
    [
        ([0.5, 1], None, "momkd"),
        ([0.5, 1], "momkd", "momkd"),
        ([0.25, 0.5], "momkd", "momkd (0.5 of the omics)"),
        ([0.5, 1], "momkd (0.5 of the omics)", "momkd (0.5 of the omics)"),
        ([0.5, 1], "abmil", "abmil"),
    ],
)
def test_the_reference_is_the_model_with_the_most_unless_another_is_named(
    tiny_config: Config, omics_fractions: list[float], reference: str | None, found: str
) -> None:
    given = {"models": ["momkd", "abmil"], "omics_fractions": omics_fractions, "reference": reference}
    config = comparing(tiny_config, **given)
    assert reference_of(reference, entries_of(config)) == found


def test_a_later_comparison_keeps_the_folders_of_an_earlier_one(tiny_config: Config) -> None:
    few = entries_of(comparing(tiny_config, models=["abmil"]))
    more = entries_of(comparing(tiny_config, models=["mean_pool", "abmil"], seeds=[3, 1]))
    assert few[0].folder in {entry.folder for entry in more}


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"models": ["resnet"]}, r"'resnet', but must be one of momkd"),
        ({"models": ["abmil", "abmil"]}, r"two models have the label 'abmil'"),
        ({"models": [{"title": "abmil"}]}, r"is no model: write its name"),
        ({"models": ["abmil"], "reference": "momkd"}, r"reference is 'momkd', but the models are abmil"),
        ({"models": [{"name": "abmil", "set": {"folds.n": 3}}]}, r"'folds.n' of abmil cannot vary"),
        ({"models": [{"name": "abmil", "set": {"train.lrr": 3}}]}, r"'train.lrr'; the nearest valid key is 'train.lr'"),
    ],
)
def test_a_wrong_comparison_is_one_sentence(tiny_config: Config, compare: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        entries_of(comparing(tiny_config, **compare))


def test_the_fingerprint_of_earlier_runs_is_unchanged(tiny_config: Config) -> None:
    tree = tiny_config.model_dump(mode="json")
    assert comparing(tiny_config, models=["abmil"]).answer_fingerprint() == tiny_config.answer_fingerprint()
    other = Config.model_validate(tree | {"model": tree["model"] | {"name": "abmil"}})
    assert other.answer_fingerprint() != tiny_config.answer_fingerprint()


@pytest.mark.slow
def test_models_are_trained_compared_and_resumed(tiny_config: Config, ray_cluster: Connection) -> None:
    searched = {"name": "max_pool", "label": "searched", "search": {"train.lr": [1e-3, 1e-2]}}
    models = ["mean_pool", "momkd", WITHOUT_OMICS, searched]
    config = comparing(tiny_config, models=models, seeds=[1, 2])
    board = compared(config)
    run = Path(config.run.dir)
    assert {row.label for row in board.rows} == {"mean_pool", "momkd", "momkd without omics", "searched"}
    assert board.reference == "mean_pool"
    for row in board.rows:
        assert row.interval[0] <= row.pooled <= row.interval[1]
        assert np.shape(row.fold_aucs) == (2, 2)
        assert (row.difference is None) == (row.label == "mean_pool")
        assert row.training_seconds > 0
    by_label = {row.label: row for row in board.rows}
    assert by_label["mean_pool"].parameters < by_label["momkd without omics"].parameters < by_label["momkd"].parameters
    _assert_pooled_as_written(config, by_label["mean_pool"])
    search = by_label["searched"].search
    assert search is not None and len(search.chosen) == 4 and "searched tried 2 settings" in to_markdown(board)
    page = (run / "compare.html").read_text()
    assert "What the omics bought" in page
    assert "Differences to the reference" in page
    if CHROMIUM is not None:
        found = opened(page, 360, dark=False, folder=run)
        assert (found["faults"], found["wide"], found["remote"]) == ([], False, [])
    assert json.loads((run / "leaderboard.json").read_text())["reference"] == "mean_pool"

    written = {path: path.stat().st_mtime_ns for path in run.glob("model=*/fold=*/result.json")}
    assert len(written) == 12 + 8 + 4  # the settings of the search, and what each fold chose
    more = compared(comparing(tiny_config, models=[*models, "max_pool"], seeds=[1, 2]))
    assert len(more.rows) == 5
    assert {path: path.stat().st_mtime_ns for path in written} == written


def _assert_pooled_as_written(config: Config, row: Row) -> None:
    """The pooled AUC is what the folds' own files say."""
    aucs = []
    for entry in entries_of(config):
        if entry.label == row.label:
            folders = [f"{config.run.dir}/{entry.folder}/fold={fold}" for fold in (0, 1)]
            tables = [storage.read_table(f"{folder}/test_predictions.parquet") for folder in folders]
            y = np.concatenate([table["label"] == "positive" for table in tables])
            aucs.append(roc_auc_score(y, np.concatenate([table["p_positive"] for table in tables])))
    assert row.pooled == pytest.approx(np.mean(aucs))


def row(label: str, labels: float = 1.0, omics: float = 1.0, name: str | None = None) -> Row:
    return Row(
        name or label,
        label,
        "momkd",
        {},
        labels,
        omics,
        [1],
        [[0.7, 0.8]],
        0.75,
        0.05,
        0.74,
        (0.6, 0.9),
        None,
        10,
        1.5,
        0.01,
        None,
    )


def test_tables_hold_every_row_and_escape_names() -> None:
    board = Leaderboard([row("a_b & c|d"), row("e")], "e", 20, 9, ["lost one"])
    assert [line["label"] for line in csv.DictReader(io.StringIO(to_csv(board)))] == ["a_b & c|d", "e"]
    assert r"a_b & c\|d" in to_markdown(board)
    assert r"a\_b \& c|d" in to_latex(board)
    assert "diverged in a fold: lost one" in to_markdown(board)


def test_rows_with_and_without_omics_are_paired() -> None:
    rows = [row("without", omics=0), row("half", omics=0.5), row("with"), row("few", labels=0.2)]
    assert [(a.label, b.label) for a, b in omics_pairs(rows)] == [("without", "with")]
    assert fraction_figure(rows[:1], "omics_fraction", "omics") is None


def legend_of(rows: list[Row], key: str, name: str) -> list[str] | None:
    """The names of the lines, which begin with that of a model."""
    figure = fraction_figure(rows, key, name)
    return None if figure is None else re.findall(r">(momkd[^<]*|abmil[^<]*)</text>", figure)


def test_a_line_over_a_fraction_is_one_models_whatever_its_label() -> None:
    models = ["momkd (16 components)", "momkd (32 components)"]
    fractions = [
        (f"{model} ({omics:g} labels, {omics:g} omics)", omics, model) for omics in (1, 0.5) for model in models
    ]
    over = [row(label, 1.0, omics, model) for label, omics, model in fractions]
    assert legend_of(over, "omics_fraction", "omics") == models
    assert legend_of(over, "label_fraction", "patients") is None
    own = [row("momkd (all omics)"), row("momkd (half of the omics)", omics=0.5)]
    assert legend_of(own, "omics_fraction", "omics") is None, "these are two models with a fraction each"


def test_with_several_fractions_of_both_kinds_a_line_has_one_of_the_other() -> None:
    rows = [row(f"momkd ({a}, {b})", a, b, "momkd") for a in (0.5, 1.0) for b in (0.0, 1.0)]
    rows += [row(f"abmil ({a}, 1)", a, 1.0, "abmil") for a in (0.5, 1.0)]
    over_labels = ["momkd (0 omics)", "momkd (1 omics)", "abmil"]
    assert legend_of(rows, "label_fraction", "patients") == over_labels
    assert legend_of(rows[:4], "omics_fraction", "omics") == ["momkd (0.5 labels)", "momkd (1 labels)"]
