"""Models that predict a number: their figures against scipy, and the leaderboard with its tables."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score
from support.regression_runs import fit_here, number_config
from support.runs import inputs_of

from momkd_ray.compare.entries import Entry
from momkd_ray.compare.figures import fraction_figure, omics_figure
from momkd_ray.compare.leaderboard import Row, build_leaderboard
from momkd_ray.compare.page import write_page
from momkd_ray.compare.scores import ScoredModel, ScoreSummary, score_summaries
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.compare.training import TrainedEntry
from momkd_ray.config.load import Config
from momkd_ray.crossval.fold import run_fold


def test_figures_are_those_of_scipy_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=90)
    good = np.stack([true + rng.normal(size=90) for _ in range(2)])
    bad = np.stack([true + 3 * rng.normal(size=90) for _ in range(2)])
    folds = {name: [[0.1, 0.3], [0.2, 0.4]] for name in ("spearman", "r2", "mae")}
    models = {"bad": ScoredModel(bad, folds), "good": ScoredModel(good, folds), "same": ScoredModel(bad, folds)}
    found = score_summaries(true, models, "bad", seed=1)
    for label, scores in (("good", good), ("bad", bad)):
        own = found[label]
        assert own["spearman"].pooled == pytest.approx(np.mean([spearmanr(true, score)[0] for score in scores]))
        assert own["r2"].pooled == pytest.approx(np.mean([r2_score(true, score) for score in scores]))
        assert own["mae"].pooled == pytest.approx(np.mean([mean_absolute_error(true, score) for score in scores]))
        assert own["mae"].mean == pytest.approx(0.25)
        assert all(one.interval[0] < one.pooled < one.interval[1] for one in own.values())
    assert found["bad"]["spearman"].difference is None
    better = found["good"]
    assert better["spearman"].difference_interval is not None and better["spearman"].difference_interval[0] > 0
    assert better["mae"].difference_interval is not None and better["mae"].difference_interval[1] < 0
    assert better["spearman"].p_holm is not None and better["spearman"].p is not None
    assert better["spearman"].p_holm == pytest.approx(2 * better["spearman"].p)
    assert found["same"]["spearman"].difference == 0


def test_the_leaderboard_of_a_number(
    tiny_config: Config, no_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_here(monkeypatch)
    names = ("mean_pool", "max_pool")
    inputs = replace(inputs_of(number_config(tmp_path, tiny_config)), setting_names=names)
    trained = []
    for setting, name in enumerate(names):
        for fold in inputs.plan.folds:
            assert run_fold(inputs, fold, setting, {"model.name": name}) is not None
        entry = Entry(name, name, name, 1, 1.0, 1.0, {}, {"model.name": name}, name)
        trained.append(TrainedEntry(entry, {fold: inputs.fold_directory(fold, setting) for fold in (0, 1)}, {}))
    board = build_leaderboard(inputs, trained)
    assert board.predicts_number and board.reference == "mean_pool"
    assert [row.scores["spearman"].pooled for row in board.rows if row.scores] == sorted(
        (row.scores["spearman"].pooled for row in board.rows if row.scores), reverse=True
    )
    tables = [pd.read_parquet(inputs.fold_directory(fold, 1).test_predictions) for fold in (0, 1)]
    pooled = pd.concat(tables)
    own = next(row for row in board.rows if row.label == "max_pool")
    assert own.scores is not None
    assert own.scores["spearman"].pooled == pytest.approx(spearmanr(pooled["score"], pooled["true_score"])[0])
    csv = pd.read_csv(io.StringIO(to_csv(board))).set_index("label")
    assert csv.loc["max_pool", "r2_pooled"] == pytest.approx(own.scores["r2"].pooled)
    assert csv.loc["max_pool", "mae_difference"] == pytest.approx(own.scores["mae"].difference)
    markdown = to_markdown(board)
    assert "| Spearman, mean ± sd |" in markdown and "in the quantile classes 12 under" in markdown
    assert "reference" in markdown and "pooled R2" in to_latex(board)
    plain = board.to_json()["rows"][0]
    assert set(plain["scores"]) == {"spearman", "r2", "mae"}
    page = Path(write_page(str(tmp_path / "page"), "SCORE", board)).read_text()
    assert "pooled Spearman minus that of mean_pool" in page and page.count("<tr>") == 3


def test_figures_of_a_number_show_its_correlation_and_not_the_macro_auc() -> None:
    drawn = [own.headline for own in (number_row("momkd", 0.4, 1.0), number_row("without", 0.3, 0.0))]
    assert [own.pooled for own in drawn] == [0.4, 0.3]
    pair = (number_row("without", 0.3, 0.0), number_row("momkd", 0.4, 1.0))
    omics = omics_figure([pair])
    assert "Test Spearman of each fold" in omics and "AUC" not in omics
    fractions = fraction_figure(
        [number_row("momkd (1 labels, 0.5 omics)", 0.35, 0.5), number_row("momkd (1 labels, 1 omics)", 0.4, 1.0)],
        "omics_fraction",
        "omics",
    )
    assert fractions is not None and "Pooled Spearman over the fraction" in fractions and "AUC" not in fractions


def number_row(label: str, spearman: float, omics: float) -> Row:
    own = ScoreSummary([[spearman - 0.1, spearman + 0.1]], spearman, 0.1, spearman, (spearman - 0.2, spearman + 0.2))
    aucs = [[0.9, 0.9]]
    return Row(
        name="momkd",
        label=label,
        model="momkd",
        own={},
        label_fraction=1.0,
        omics_fraction=omics,
        seeds=[1],
        fold_aucs=aucs,
        mean=0.9,
        sd=0.0,
        pooled=0.9,
        interval=(0.85, 0.95),
        difference=None,
        parameters=10,
        training_seconds=1.5,
        prediction_seconds_per_bag=0.01,
        peak_memory_bytes=None,
        scores={"spearman": own},
    )
