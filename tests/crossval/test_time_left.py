"""What is told of folds that are trained: epochs, early ends, and a remaining time that comes from finished folds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import changed

from momkd_ray.config.load import Config
from momkd_ray.crossval.progress_callback import ProgressCallback
from momkd_ray.crossval.search import Search
from momkd_ray.crossval.time_left import TimeLeft
from momkd_ray.progress import ProgressReporter


@given(seconds=st.floats(1, 1e4), n=st.integers(2, 20), side_by_side=st.integers(1, 4))
def test_equal_folds_end_when_it_was_told(seconds: float, n: int, side_by_side: int) -> None:
    clock = [0.0]
    left = TimeLeft({"momkd": n}, lambda: clock[0])
    waiting, running = list(range(n)), list[int]()
    while waiting or running:
        while waiting and len(running) < side_by_side:
            running.append(waiting.pop(0))
            left.start(str(running[-1]), "momkd")
        clock[0] += seconds
        while running:
            left.end(str(running.pop(0)))
        told = left.seconds()
        rounds = -(-len(waiting) // side_by_side)
        if not waiting:
            assert told is None
        else:
            assert told is not None
            assert told <= rounds * seconds + 1e-6
            assert told >= len(waiting) * seconds / side_by_side - 1e-6


def test_nothing_is_told_before_a_whole_fold_has_ended_and_a_resumed_one_is_none() -> None:
    clock = [0.0]
    left = TimeLeft({"momkd": 3}, lambda: clock[0])
    left.start("a", "momkd")
    left.resumed("a")
    clock[0] = 2
    assert left.seconds() is None
    left.end("a")
    assert left.seconds() is None
    left.start("b", "momkd")
    clock[0] = 12
    left.end("b")
    assert left.seconds() == 10
    left.start("c", "momkd")
    clock[0] = 15
    left.start("c", "momkd")  # its worker was lost
    clock[0] = 17
    assert left.seconds() == 8
    left.end("c")
    assert left.seconds() is None


@given(seconds=st.lists(st.floats(1, 1e4), min_size=1, max_size=6), n=st.integers(2, 5))
def test_a_slow_model_is_told_by_its_own_folds(seconds: list[float], n: int) -> None:
    """Models one after another, seed by seed: after the first seed, what is told is right."""
    clock = [0.0]
    left = TimeLeft({str(model): n for model in range(len(seconds))}, lambda: clock[0])
    for seed in range(n):
        for model, of_a_fold in enumerate(seconds):
            left.start(f"{model}-{seed}", str(model))
            clock[0] += of_a_fold
            left.end(f"{model}-{seed}")
        assert left.seconds() == (pytest.approx(sum(seconds) * (n - 1 - seed)) if seed < n - 1 else None)


def test_a_model_of_which_no_fold_has_ended_is_taken_for_the_mean_of_the_others() -> None:
    clock = [0.0]
    left = TimeLeft({"quick": 4, "slow": 1, "other": 2}, lambda: clock[0])
    for trial_id, model, seconds in (("a", "quick", 1), ("b", "quick", 3), ("c", "slow", 40)):
        left.start(trial_id, model)
        clock[0] += seconds
        left.end(trial_id)
    assert left.seconds() == 2 * 2 + 2 * (2 + 40) / 2
    left.start("d", "other")
    clock[0] += 6
    assert left.seconds() == 2 * 2 + 21 + (21 - 6)


def trial(fold: int, **values: Any) -> Any:
    return SimpleNamespace(trial_id=f"{fold}-{values}", config={"fold": fold, "setting": 0, "values": values})


def test_a_fold_that_stops_early_is_told_as_such(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = changed(tiny_config, train__epochs=100)
    scores: Any = SimpleNamespace(scores=dict, stopped={}, inputs=SimpleNamespace(config=config))
    told = ProgressCallback(ProgressReporter(), 100, {"": 4}, Search(config), scores)
    folds = [trial(0), trial(1), trial(2), trial(3, **{"train.epochs": 17})]
    for one in folds:
        told.on_trial_start(0, folds, one)
        told.on_trial_result(0, folds, one, {"epoch": 16, "val_auc": 0.5})
    told.on_trial_result(0, folds, folds[0], {"finished": True, "kept": 0.75, "epochs_trained": 17})
    told.on_trial_result(0, folds, folds[1], {"finished": True, "kept": 0.5, "epochs_trained": 100})
    told.on_trial_result(0, folds, folds[2], {"ended_early": True})
    told.on_trial_result(0, folds, folds[3], {"finished": True, "kept": 0.5, "epochs_trained": 17})
    lines = capsys.readouterr().err.splitlines()
    shown = ["17/100", "17/100", "17/100", "16/17"]
    assert lines[:4] == [f"fold {i}: {count} validation AUC 0.500" for i, count in enumerate(shown)]
    assert "fold 0: stopped after 17 of 100 epochs, validation AUC 0.750 of the kept epoch" in lines
    assert "fold 1: 100/100 validation AUC 0.500 of the kept epoch" in lines
    assert "fold 2: ended after 17 of 100 epochs: its setting is out" in lines
    assert "fold 3: 17/17 validation AUC 0.500 of the kept epoch" in lines, "a setting may have a number of its own"
    assert lines[-1] == "folds: 4/4"
