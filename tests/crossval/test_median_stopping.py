"""Which settings of a search are stopped early: those below the median of earlier ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from support.fold_tasks import fold_task
from support.processes import in_processes
from support.regression_runs import number_config
from support.runs import inputs_of, searched

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.crossval.median_stopping import COMPARE_EVERY, Curve, SettingScores, StopDecision, stop_decisions
from momkd_ray.crossval.search import Search
from momkd_ray.train.validation import AUC, SPEARMAN, Criterion
from momkd_ray.train.worker import train_loop_per_worker

GRACE = 2
AUCS = st.integers(0, 20).map(lambda n: n / 20)


def ended_curves(aucs: Sequence[float], diverged: bool = False) -> Curve:
    best = tuple(max(aucs[: n + 1]) for n in range(len(aucs)))
    return Curve(best, ended=True, diverged=diverged)


@st.composite
def searches(draw: st.DrawFn) -> list[list[Curve]]:
    n_settings, n_folds = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    curves = st.builds(ended_curves, st.lists(AUCS, min_size=1, max_size=20), st.integers(0, 9).map(lambda n: n == 9))
    return [[draw(curves) for _ in range(n_folds)] for _ in range(n_settings)]


@given(searches())
def test_only_settings_below_the_median_of_earlier_ones_are_stopped(settings: list[list[Curve]]) -> None:
    stopped = stop_decisions(settings, GRACE)
    assert not {0, 1, 2} & set(stopped)
    for number, verdict in stopped.items():
        assert (verdict.epoch - GRACE) % COMPARE_EVERY == 0
        values = [fold.after(verdict.epoch) for fold in settings[number]]
        assert None not in values
        assert verdict.score == pytest.approx(sum(v for v in values if v is not None) / len(values))
        assert verdict.score < verdict.median
        assert any(len(fold.best) >= verdict.epoch for fold in settings[number]), "it has come that far"


@pytest.mark.parametrize("over", [False, True])
def test_a_setting_that_ends_when_it_is_compared_is_judged_alike_before_and_after(over: bool) -> None:
    better, worse = ended_curves([0.5, 0.8, 0.8]), Curve((0.5, 0.6), ended=over)
    settings = [[better], [better], [better], [worse]]
    assert stop_decisions(settings, grace_epochs=2) == {3: StopDecision(2, 0.6, 0.8)}


@given(searches(), st.data())
def test_verdicts_do_not_depend_on_when_what_was_trained(settings: list[list[Curve]], data: st.DataObject) -> None:
    """At any moment what is known is a part of the verdicts of the end, and no stopped fold must go on for them."""
    expected = stop_decisions(settings, GRACE)

    def cut(fold: Curve) -> Curve:
        epochs = data.draw(st.integers(0, len(fold.best)))
        ended = epochs == len(fold.best) and data.draw(st.booleans())
        return Curve(fold.best[:epochs], ended, fold.diverged and ended)

    by_then = stop_decisions([[cut(fold) for fold in folds] for folds in settings], GRACE)
    assert by_then.items() <= expected.items()

    def stopped(number: int, fold: Curve) -> Curve:
        verdict = expected.get(number)
        if verdict is None or len(fold.best) <= verdict.epoch:
            return fold
        return Curve(fold.best[: data.draw(st.integers(verdict.epoch, len(fold.best) - 1))])

    left = [[stopped(number, fold) for fold in folds] for number, folds in enumerate(settings)]
    assert stop_decisions(left, GRACE) == expected


def test_a_hard_fold_does_not_stop_its_setting_nor_itself() -> None:
    hard, easy = [0.5] * 9, [0.9] * 9
    same = [ended_curves(hard), ended_curves(easy), ended_curves(easy)]
    assert stop_decisions([same] * 6, GRACE) == {}
    worse = [ended_curves(hard), ended_curves(hard), ended_curves(easy)]
    assert set(stop_decisions([same, same, same, worse, same], GRACE)) == {3}
    waiting = [Curve(), ended_curves(hard), ended_curves(hard)]
    assert stop_decisions([same, same, same, waiting], GRACE) == {}, "not all of its folds are running"


@pytest.mark.parametrize("criterion", [AUC, SPEARMAN])
@given(st.data())
def test_a_setting_that_works_is_not_stopped_for_those_that_diverge(criterion: Criterion, data: st.DataObject) -> None:
    lost = [Curve((), ended=True, diverged=True, worst=criterion.worst)] * 2
    figures = st.lists(st.floats(criterion.worst, 1), min_size=4, max_size=8)
    works = [ended_curves(data.draw(figures)) for _ in range(2)]
    assert stop_decisions([lost, lost, lost, works], GRACE) == {}
    assert set(stop_decisions([[ended_curves([1.0] * 4)] * 2] * 3 + [[lost[0], works[0]]], GRACE)) <= {3}


def test_a_diverged_fold_of_a_regression_counts_as_the_worst_correlation(
    tiny_config: Config, no_cluster: None, tmp_path: Path
) -> None:
    rates = [1e30, 1e29, 1e28, 1e-3]
    config = searched(number_config(tmp_path, tiny_config), {"train.lr": rates}, stop="median", grace_epochs=GRACE)
    inputs = inputs_of(config)
    for setting in range(3):
        for fold in inputs.plan.folds:
            storage.write_json(inputs.fold_directory(fold, setting).diverged, {"reason": "the loss is not finite"})
    lines = [json.dumps({"epoch": epoch, "val_auc": 0.5, "val_spearman": -0.2}) for epoch in range(8)]
    for fold in inputs.plan.folds:
        storage.write_text(inputs.fold_directory(fold, 3).metrics, "\n".join(lines) + "\n")
    scores = SettingScores(inputs, Search(config))
    assert not scores.stopped, "its correlation is negative, but it is the only setting that works"
    assert {curve.worst for curve in scores.curves.values()} == {-1.0}


def stopped_worker(rank: int, folder: str) -> None:
    """One of two workers of a fold; only the first is told to stop, when two epochs are done."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    reported: list[dict[str, Any]] = []
    loop = {"task": fold_task(Path(folder) / "fold", epochs=5), "report": reported.append}
    ended = train_loop_per_worker(loop | {"stop": lambda: rank == 0 and len(reported) == 2})
    Path(folder, f"rank-{rank}.json").write_text(json.dumps([ended, [line["epoch"] for line in reported]]))
    dist.destroy_process_group()


def test_all_workers_of_a_stopped_fold_leave_after_the_same_epoch(tmp_path: Path) -> None:
    in_processes(stopped_worker, 2, str(tmp_path))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == [None, [0, 1]]
