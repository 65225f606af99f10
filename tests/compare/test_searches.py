"""Searches of a comparison: an equal budget, chosen on inner validation alone, told, and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from momkd_ray import storage
from momkd_ray.compare import training
from momkd_ray.compare.entries import entries_of
from momkd_ray.compare.leaderboard import Leaderboard, build_leaderboard
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.compare.training import train_entries
from momkd_ray.config.load import Config
from momkd_ray.crossval.search import Search
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.run.inputs import RunInputs

LR = {"train.lr": {"low": 1e-5, "high": 1e-2, "log": True}}
DECAYS = {"train.weight_decay": [0.0, 0.1, 0.2, 0.3]}


def configured(compare: dict[str, Any], folder: Path | str = "runs/none") -> Config:
    return Config.model_validate(
        {
            "cohort": {"clinical": "c.csv", "omics": "rna.csv", "label": "PR"},
            "features": {"dir": "features"},
            "run": {"dir": str(folder)},
            "compare": compare,
        }
    )


def test_every_search_tries_as_many_settings_which_follow_from_the_seed() -> None:
    models = ["mean_pool", {"name": "abmil", "search": LR}, {"name": "momkd", "search": DECAYS | LR}]
    few, more, other = (
        entries_of(configured({"models": models, "seeds": [1, 2]} | draw))
        for draw in ({"trials": 2}, {"trials": 5}, {"trials": 5, "search_seed": 2})
    )
    assert [len(entry.trials) for entry in more] == [0, 5, 5, 0, 5, 5]
    for a, b in zip(few, more, strict=True):
        assert b.trials[:2] == a.trials  # a larger budget goes on where the smaller one ended
    assert more[1].trials == more[4].trials != other[1].trials, "the settings are those of every seed"
    assert len({json.dumps(trial) for trial in more[1].trials}) == 5
    written = configured({"models": models, "trials": 5}).model_dump(mode="json")
    assert entries_of(Config.model_validate(written))[1].trials == more[1].trials


def test_the_budget_is_that_of_the_smallest_search_by_default() -> None:
    models = [{"name": "abmil", "search": LR}, {"name": "momkd", "search": DECAYS}]
    assert {len(entry.trials) for entry in entries_of(configured({"models": models}))} == {4}
    assert {len(entry.trials) for entry in entries_of(configured({"models": models[:1]}))} == {8}


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"models": ["abmil"], "trials": 4}, r"trials is 4, but no model has a search: leave trials out"),
        ({"models": [{"name": "abmil", "search": DECAYS}], "trials": 5},
         r"compare.trials is 5, but the search of abmil has only 4 combinations.*lower compare.trials to 4"),
        ({"models": [{"name": "abmil", "search": {"train.lrr": [1]}}]}, r"abmil: search.*'train.lrr'.*'train.lr'"),
        ({"models": [{"name": "abmil", "search": {"train.lr": []}}]}, r"abmil: search: there are no values for"),
        ({"models": [{"name": "abmil", "search": {"train.lr": [-1]}}]}, r"abmil: search: 'train.lr' is -1"),
        ({"models": [{"name": "abmil", "search": {"omics.fraction": [0, 1]}}]}, r"cannot vary 'omics.fraction'"),
        ({"models": [{"name": "abmil", "search": {"folds.n": [3]}}]}, r"search cannot vary 'folds.n'"),
        ({"models": [{"name": "abmil", "search": {"train.seed": [3, 4]}}]}, r"cannot vary 'train.seed'"),
        ({"models": [{"name": "abmil", "search": {"train.refit": [True, False]}}]}, r"train.refit cannot be searched"),
        ({"models": [{"name": "abmil", "search": LR, "set": {"train.lr": 1e-3}}]}, r"both set and searched"),
        ({"models": [{"name": "abmil", "search": {"model.hidden": {"low": 3, "high": 5, "step": 2},
                                                  "model.heads": [2]}}]}, r"abmil: .*hidden \(3\) must be a multiple"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_one_sentence(compare: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        entries_of(configured(compare))


class Recorder:
    """Stands in for the training: writes what a fold of a setting would leave, unless it is there."""

    def __init__(self, diverging: Set[float] = frozenset()) -> None:
        self.trained: list[tuple[int, dict[str, Any]]] = []
        self.diverging = diverging

    def __call__(
        self,
        inputs: RunInputs,
        folds: Sequence[int],
        progress: ProgressReporter,
        *,
        own_cluster: bool,
        search: Search,
        pairs: Set[tuple[int, int]] | None = None,
    ) -> None:
        for fold, setting in pairs or {(fold, setting) for fold in folds for setting in range(search.total)}:
            folder = inputs.fold_directory(fold, setting)
            if folder.is_finished() or folder.is_diverged():
                continue
            values = dict(search.settings[setting])
            self.trained.append((fold, values))
            decay = values.get("train.weight_decay", 0.0)
            if decay in self.diverging:
                storage.write_json(folder.diverged, {"reason": "diverged"})
                continue
            # fold 0 validates best at 0.1, fold 1 at 0.2; both test best at 0.3
            val_auc = 0.9 - abs(decay - (0.1, 0.2)[fold])
            rng = np.random.default_rng([fold, values["train.seed"]])
            label = np.arange(20) % 2
            p = np.clip(0.5 + (decay + 0.05) * (label - 0.5) + 0.1 * rng.standard_normal(20), 0, 1)
            table = {"patient_id": [f"P{fold}{i:02d}" for i in range(20)], "fold": fold, "p_yes": p}
            storage.write_table(
                folder.test_predictions, pd.DataFrame(table | {"label": np.array(["no", "yes"])[label]})
            )
            storage.write_json(
                folder.cost,
                {"parameters": 10, "training_seconds": 2.0, "prediction_seconds_per_bag": 0.1, "peak_memory_bytes": 5},
            )
            storage.write_json(
                folder.result, {"val_scores": {"auc": val_auc, "spearman": decay}, "test_scores": {"auc": 0.5 + decay}}
            )


def compared(config: Config, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Leaderboard:
    monkeypatch.setattr(training, "train_folds", recorder)
    cohort, plan = SimpleNamespace(classes=("no", "yes")), SimpleNamespace(folds=(0, 1))
    inputs = RunInputs(config, cohort, plan, None, None, "same")  # type: ignore[arg-type]
    entries = entries_of(config)
    return build_leaderboard(inputs, train_entries(inputs, entries, ProgressReporter(), own_cluster=True))


COMPARED = {"models": ["mean_pool", {"name": "abmil", "search": DECAYS}], "seeds": [1, 2]}


@pytest.mark.parametrize("refit", [True, False])
def test_each_fold_takes_what_validates_best_and_trains_it_like_other_models(
    refit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(COMPARED, tmp_path)
    config = config.model_copy(update={"train": config.train.model_copy(update={"refit": refit})})
    recorder = Recorder()
    board = compared(config, recorder, monkeypatch)
    by_label = {row.label: row for row in board.rows}
    search = by_label["abmil"].search
    assert search is not None and by_label["mean_pool"].search is None
    chosen = {(c["seed"], c["fold"]): c["setting"]["train.weight_decay"] for c in search.chosen}
    assert chosen == {(1, 0): 0.1, (1, 1): 0.2, (2, 0): 0.1, (2, 1): 0.2}  # not 0.3, which tests best
    assert all(c["score"] == max(c["scores"]) == pytest.approx(0.9) for c in search.chosen)
    assert by_label["abmil"].fold_aucs == [[0.6, 0.7]] * 2
    # mean_pool, four settings tried, and the chosen one again only where a refit is yet to come
    assert len(recorder.trained) == 4 + 16 + (4 if refit else 0)
    tried = [values for _, values in recorder.trained if values["model.name"] == "abmil"]
    assert sum(values.get("train.refit") is False for values in tried) == (16 if refit else 0)
    assert (search.tried, search.seconds) == (4, 8.0)

    again = Recorder()
    assert compared(config, again, monkeypatch) == board
    assert again.trained == []
    told = f"{to_markdown(board)}{to_latex(board)}"
    assert "settings tried" in told
    assert "abmil tried 4 settings in each fold" in told
    assert "train.weight_decay = 0.1 (2 of 4); train.weight_decay = 0.2 (2 of 4)" in told
    assert "abmil,abmil,{}" in to_csv(board)
    assert json.loads(json.dumps(board.to_json()))["rows"][0]["search"]["tried"] == 4


def test_of_a_number_a_search_goes_by_the_correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(COMPARED, tmp_path)
    config = config.model_copy(update={"cohort": config.cohort.model_copy(update={"task": "regression"})})
    board = compared(config, Recorder(), monkeypatch)
    search = next(row.search for row in board.rows if row.search)
    # its AUC is the lowest, and its correlation the highest
    assert {c["setting"]["train.weight_decay"] for c in search.chosen} == {0.3}
    assert "the highest Spearman's correlation on the fold's own inner validation" in to_markdown(board)


def test_a_setting_that_diverges_is_not_taken_and_a_model_whose_settings_all_do_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = compared(configured(COMPARED, tmp_path / "some"), Recorder({0.1}), monkeypatch)
    search = next(row.search for row in board.rows if row.search)
    assert {c["setting"]["train.weight_decay"] for c in search.chosen if c["fold"] == 0} <= {0.0, 0.2}
    assert all(c["scores"].count(None) == 1 for c in search.chosen)
    compare = COMPARED | {"models": ["mean_pool", {"name": "abmil", "search": {"train.weight_decay": [0.2, 0.3]}}]}
    board = compared(configured(compare, tmp_path / "all"), Recorder({0.2, 0.3}), monkeypatch)
    assert (board.diverged, [row.label for row in board.rows]) == (["abmil"], ["mean_pool"])


def test_a_larger_budget_keeps_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(configured(COMPARED | {"trials": 2}, tmp_path), Recorder(), monkeypatch)
    later = Recorder()
    compared(configured(COMPARED | {"trials": 4}, tmp_path), later, monkeypatch)
    tried = [values for _, values in later.trained if values.get("train.refit") is False]
    assert len(tried) == 2 * 2 * 2
