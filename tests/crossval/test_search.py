"""A search: how settings are drawn, who is trained next, which settings are stopped, and what is said of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.experimental import internal_kv
from ray.tune.search import Searcher
from support.fold_tasks import fold_task
from support.processes import in_processes
from support.regression_runs import number_config
from support.runs import changed, crossval, inputs_of

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.config.search_space import Range
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval import tune_trials as trials
from momkd_ray.crossval.cross_validate import choose_settings, train_folds
from momkd_ray.crossval.median_stopping import COMPARE_EVERY, Curve, SettingScores, StopDecision, stop_decisions
from momkd_ray.crossval.optuna_journal import write_study
from momkd_ray.crossval.search import Search
from momkd_ray.crossval.tune_trials import FoldAndSetting, FoldSearcher, threads_of_folds, trial_resources
from momkd_ray.errors import InputError, StoppedError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection, concurrent_folds, missing_resources_note, total_resource
from momkd_ray.report.page import write_report
from momkd_ray.train.validation import AUC, SPEARMAN, Criterion
from momkd_ray.train.worker import train_loop_per_worker

GRACE = 2
AUCS = st.integers(0, 20).map(lambda n: n / 20)


def searched(config: Config, search: dict[str, Any], **tuning: Any) -> Config:
    return Config.model_validate(config.model_dump(mode="json") | {"search": search, "tuning": tuning})


# spaces


@st.composite
def ranges(draw: st.DrawFn, integers: bool) -> Range:
    low = draw(st.integers(1, 50)) if integers else draw(st.floats(1e-6, 10))
    width = draw(st.integers(1, 50)) if integers else draw(st.floats(0.01, 100))
    log = draw(st.booleans())
    parts = None if log else draw(st.none() | st.integers(1, 7))
    step = None if parts is None else (max(1, width // parts) if integers else width / parts)
    return Range(low=low, high=low + width, log=log, step=step)


@given(st.data(), st.booleans())
def test_a_range_gives_its_own_values_and_both_ends(data: st.DataObject, integers: bool) -> None:
    space = data.draw(ranges(integers))
    value = space.quantile(data.draw(st.floats(0, 1, exclude_max=True)), integers)
    assert space.low <= value <= space.high * (1 + 1e-9)
    assert isinstance(value, int) or not integers
    assert space.quantile(0.0, integers) == pytest.approx(space.low)
    last = space.quantile(1 - 1e-12, integers)
    assert space.high - (space.step or float(integers)) < last * (1 + 1e-9)
    if (n_values := space.count(integers)) is not None:
        values = {space.value(place, integers) for place in range(n_values)}
        assert len(values) == n_values
        assert value in values


SPACE = {
    "train.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "memory.components": {"low": 4, "high": 8, "step": 2},
    "memory.rule": ["ema", "fixed"],
}


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_drawn_settings_are_new_valid_and_recorded_before_they_are_used(tiny_config: Config, method: str) -> None:
    config = searched(tiny_config, SPACE, method=method, settings=12)
    search = Search(config)
    while len(search.settings) < search.total:
        number = search.draw({n: n / 20 for n in range(len(search.settings))})
        assert storage.read_json(search.location)[number] == search.settings[number]
    assert len({json.dumps(setting) for setting in search.settings}) == search.total == 12
    for setting in search.settings:
        assert isinstance(setting["memory.components"], int)
        config.with_settings(setting)
    assert Search(config).settings == search.settings


def test_random_settings_follow_from_seed_and_number_alone(tiny_config: Config, tmp_path: Path) -> None:
    few = Search(searched(tiny_config, SPACE, method="random", settings=4)).settings
    many = Search(searched(changed(tiny_config, run__dir=str(tmp_path / "b")), SPACE, method="random")).settings
    assert len(many) == 20
    assert many[:4] == few
    other = searched(changed(tiny_config, run__dir=str(tmp_path / "c")), SPACE, method="random", seed=2)
    assert Search(other).settings[:4] != few


def test_optuna_learns_from_scores_and_goes_on_with_what_is_recorded(tiny_config: Config, tmp_path: Path) -> None:
    def drawn(folder: str, cut: int | None = None) -> list[Any]:
        config = searched(changed(tiny_config, run__dir=str(tmp_path / folder)), SPACE, method="optuna", settings=30)
        search = Search(config)
        while len(search.settings) < search.total:
            if len(search.settings) == cut:
                search = Search(config)
            # a high learning rate is good; one setting failed
            scores = {n: setting["train.lr"] * 100 for n, setting in enumerate(search.settings)}
            search.draw(scores | ({3: None} if 3 in scores else {}))
        return search.settings

    settings = drawn("whole")
    assert drawn("cut", cut=17) == settings
    rates = [setting["train.lr"] for setting in settings]
    assert sum(rates[15:]) / 15 > 2 * sum(rates[:10]) / 10


def test_a_grid_is_every_combination_in_the_order_of_its_keys(tiny_config: Config) -> None:
    config = searched(tiny_config, {"train.lr": [0.1, 0.2], "memory.components": {"low": 4, "high": 8, "step": 2}})
    settings = Search(config).settings
    assert [tuple(setting.values()) for setting in settings] == list(product([0.1, 0.2], [4, 6, 8]))


def test_values_that_do_not_go_together_are_refused_in_a_grid_and_not_drawn(tiny_config: Config) -> None:
    space = {"model.hidden": [15, 16, 18], "model.heads": [2, 3]}
    config = tiny_config.model_copy(update={"search": space})
    with pytest.raises(InputError, match="multiple of heads"):
        Search(config)
    tuning = config.tuning.model_copy(update={"method": "random", "settings": 4})
    settings = Search(config.model_copy(update={"tuning": tuning})).settings
    assert all(setting["model.hidden"] % setting["model.heads"] == 0 for setting in settings)
    for method in ("random", "optuna"):
        with pytest.raises(InputError, match="both new and valid"):
            Search(config.model_copy(update={"tuning": tuning.model_copy(update={"method": method, "settings": 5})}))


# who is next


class Pretended:
    """A search of given settings."""

    def __init__(self, settings: int) -> None:
        self.settings = [{"train.lr": setting} for setting in range(settings)]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10)), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_units_come_in_order_each_once_and_never_more_than_there_is_room(
    happenings: list[tuple[int, int]], folds: int, n_settings: int
) -> None:
    units: list[FoldAndSetting] = [(fold, setting) for setting in range(n_settings) for fold in range(folds)]
    room = 1
    given_out: list[FoldAndSetting] = []
    live: list[str] = []
    searcher = FoldSearcher(iter(units), Pretended(n_settings), Counter(), lambda: room)  # type: ignore[arg-type]
    for asked, (room, ends) in enumerate(happenings):  # the searcher asks for it
        offer = searcher.suggest(str(asked))
        if offer == Searcher.FINISHED:
            assert len(given_out) == len(units)
        elif offer is None:
            assert len(live) >= room
        else:
            assert isinstance(offer, dict)
            assert len(live) < room
            assert offer["values"] == {"train.lr": offer["setting"]}
            given_out.append((offer["fold"], offer["setting"]))
            live.append(str(asked))
        if live and ends < 5:
            searcher.on_trial_complete(live.pop(ends % len(live)), {})
    while live:
        searcher.on_trial_complete(live.pop(), {})
    while (offer := searcher.suggest("rest")) != Searcher.FINISHED:
        assert isinstance(offer, dict)
        given_out.append((offer["fold"], offer["setting"]))
        searcher.on_trial_complete("rest", {})
    assert given_out == units


def test_after_bad_input_nothing_begins() -> None:
    searcher = FoldSearcher(iter([(0, 0), (1, 0)]), Pretended(1), Counter(), lambda: 1)  # type: ignore[arg-type]
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"bad_input": "a slide is damaged"})
    assert searcher.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "folds"),
    [
        ({}, 4, 0, 4),
        ({"cpus_per_worker": 0.1}, 1, 0, 10),
        ({"workers": 2}, 5, 0, 2),
        ({"gpus_per_worker": 0.25}, 16, 2, 8),
        ({"gpus_per_worker": 0.6}, 16, 3, 3),
        ({"workers": 2, "gpus_per_worker": 1}, 16, 5, 2),
        ({"workers": 8}, 2, 0, 1),
    ],
)
def test_as_many_folds_side_by_side_as_there_is(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], cpus: float, gpus: float, folds: int
) -> None:
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", {"CPU": cpus, "GPU": gpus}.__getitem__)
    assert concurrent_folds(ClusterConfig(**cluster), own=False) == folds


@pytest.mark.parametrize(
    ("cluster", "cpus", "folds", "expected"),
    [
        ({}, 2, 5, [1, 1, 1, 1, 2]),
        ({}, 4, 5, [1, 1, 1, 1, 4]),
        ({}, 2, 4, [1, 1, 1, 1]),
        ({}, 16, 5, [3, 3, 3, 3, 3]),
        ({"cpus_per_worker": 2}, 8, 5, [2, 2, 2, 2, 8]),
        ({}, 1, 3, [1, 1, 1]),
        ({"gpus_per_worker": 1}, 16, 5, [1, 1, 1, 1, 1]),
        ({"workers": 2}, 16, 5, [1, 1, 1, 1, 1]),
    ],
)
def test_the_last_folds_take_what_would_be_idle_of_a_machine_of_its_own(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], cpus: float, folds: int, expected: list[float]
) -> None:
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", {"CPU": cpus, "GPU": 1.0}.__getitem__)
    config = SimpleNamespace(cluster=ClusterConfig(**cluster), search={})
    inputs: Any = SimpleNamespace(config=config, plan=SimpleNamespace(folds=range(folds)), setting_names=None)
    assert list(threads_of_folds(inputs, own_cluster=True).values()) == expected
    each = config.cluster.cpus_per_worker
    assert set(threads_of_folds(inputs, own_cluster=False).values()) == {each}, "nodes come and go, and may be smaller"
    config.search = {"train.lr": [1, 2]}
    assert set(threads_of_folds(inputs, own_cluster=True).values()) == {each}


def test_what_a_cluster_lacks_for_a_fold_is_said(ray_cluster: Connection) -> None:
    assert missing_resources_note(ClusterConfig()) is None
    words = "needs 2000 CPUs and the cluster has [0-9]+: it waits"
    assert re.search(words, missing_resources_note(ClusterConfig(workers=[2000, 4000])) or "")
    assert "needs 1 GPU and the cluster has 0" in (missing_resources_note(ClusterConfig(gpus_per_worker=1)) or "")


def test_what_there_is_is_asked_of_the_cluster_that_is_connected(
    monkeypatch: pytest.MonkeyPatch, ray_cluster: Connection
) -> None:
    before = total_resource("CPU")
    monkeypatch.setattr(internal_kv, "global_gcs_client", None)  # what the end of another cluster leaves
    assert total_resource("CPU") == before > 0


def test_the_room_follows_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus, clock = {"CPU": 2.0, "GPU": 0.0}, [0.0]
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.total_resource", cpus.__getitem__)
    monkeypatch.setattr(trials.time, "monotonic", lambda: clock[0])
    room = trials.concurrency_limit(ClusterConfig())
    assert room() == 2
    cpus["CPU"], clock[0] = 6.0, 60.0
    assert room() == 6


def test_a_fold_alone_holds_its_share_of_a_gpu_and_a_driver_holds_nothing_its_workers_need() -> None:
    assert trial_resources(ClusterConfig(gpus_per_worker=0.25)) == {"cpu": 1, "gpu": 0.25}
    driver = trial_resources(ClusterConfig(workers=2, gpus_per_worker=1))
    assert driver["cpu"] == 0
    assert "gpu" not in driver


# who is stopped


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


def test_a_finished_search_is_an_optuna_study(tiny_config: Config, tmp_path: Path) -> None:
    space = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "memory.momentum": [0.9, 0.99]}
    config = searched(tiny_config, space)
    settings = [{"train.lr": 10.0**-k, "memory.momentum": m} for k, m in ((2, 0.9), (3, 0.99), (4, 0.9), (3, 0.9))]
    stopped = [{"setting": 3, "epoch": 2, "score": 0.5, "median": 0.7}]
    aucs = [[0.7, 0.8], [0.9, 0.7], [0.6, None], [None, None]]
    report = {"settings": settings, "chosen": {"0": 1, "1": 0}, "stopped": stopped, "criterion": "AUC", "scores": aucs}
    write_study(config, report, [0, 1], str(tmp_path / "study.log"))

    journal = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    [study] = [optuna.load_study(study_name=name, storage=journal) for name in optuna.get_all_study_names(journal)]
    assert [trial.params for trial in study.trials] == settings
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert study.best_trial.number == 1
    assert study.best_value == pytest.approx(0.8)
    assert study.best_trial.user_attrs == {
        "validation AUC of fold 0": 0.9,
        "validation AUC of fold 1": 0.7,
        "chosen by folds": [0],
    }


# the whole way


HOPELESS = 1e-12


@pytest.fixture
def small_search(tiny_config: Config) -> Config:
    # the default network starts from a good classifier, so that no learning rate is hopeless for it
    published = {"model__pooling": "attention", "omics__teacher": "none", "loss__task": 0.5, "loss__align_slide": 0.2}
    recipe = {"schedule": "plateau", "keep": "best", "refit": False, "balanced": True, "bags_per_step": 1}
    recipe |= {"epochs": 8, "patience": 8, "weight_decay": 1e-4}
    config = changed(tiny_config, **published, **{f"train__{key}": value for key, value in recipe.items()})
    rates = [3e-3, 1e-2, 5e-3, HOPELESS]
    return searched(config, {"train.lr": rates}, stop="median", grace_epochs=GRACE)


def placement_groups_left() -> list[Any]:
    from ray.util import placement_group_table

    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.mark.slow
def test_a_hopeless_setting_is_stopped_in_all_folds_and_said_to_be(
    small_search: Config, ray_cluster: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = crossval(small_search)
    run, search = Path(small_search.run.dir), metrics["search"]
    [hopeless] = [stop for stop in search["stopped"] if stop["setting"] == 3]
    assert hopeless["epoch"] < 8
    assert hopeless["score"] < hopeless["median"]
    assert search["scores"][3] == [None, None]
    assert all(value is not None for value in search["scores"][0])
    assert 3 not in search["chosen"].values()
    assert "own inner validation" in search["chosen_by"]
    assert "mean over folds" in search["stopped_by"]
    assert storage.read_json(str(run / "setting=3" / "stopped.json"))["epoch"] == hopeless["epoch"]
    told = capsys.readouterr().err
    assert "setting 3 (train.lr = 1e-12): stopped after" in told
    assert "setting 0 (train.lr = 0.003): mean validation AUC" in told
    page = Path(write_report(str(run))).read_text()
    assert f"stopped after {hopeless['epoch']} epochs" in page

    ends = [json.loads(path.read_text().splitlines()[0]) for path in run.glob("tune/*/result.json")]
    assert len(ends) == 8
    if total_resource("CPU") < 8:
        assert len({end["pid"] for end in ends}) < 8, "each fold had a process of its own"

    stamps = {path: path.stat().st_mtime_ns for path in run.glob("setting=*/fold=*/*")}
    (run / "metrics.json").unlink()
    assert crossval(small_search) == metrics
    assert stamps == {path: path.stat().st_mtime_ns for path in run.glob("setting=*/fold=*/*")}
    assert choose_settings(inputs_of(small_search)) == {int(f): s for f, s in search["chosen"].items()}
    assert not placement_groups_left()


@pytest.mark.slow
def test_optuna_is_told_the_means_and_a_setting_that_diverges_is_left_out(
    tiny_config: Config, ray_cluster: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.lr": [1e-3, 1e30], "loss.margin": {"low": 0.1, "high": 0.5}}
    config = searched(changed(tiny_config, train__bags_per_step=2), space, method="optuna", settings=4)
    with pytest.raises(InputError, match="over all folds"):
        train_folds(inputs_of(config), [0], ProgressReporter(), own_cluster=True)
    metrics = crossval(config)
    search = metrics["search"]
    assert storage.read_json(f"{config.run.dir}/settings.json") == search["settings"]
    assert len(search["settings"]) == 4
    rates = [setting["train.lr"] for setting in search["settings"]]
    assert {1e-3, 1e30} == set(rates)
    for rate, aucs in zip(rates, search["scores"], strict=True):
        assert (None in aucs) == (rate == 1e30)
    assert {rates[setting] for setting in search["chosen"].values()} == {1e-3}
    assert "mean over folds" in search["drawn_by"]
    journal = JournalStorage(JournalFileBackend(f"{config.run.dir}/optuna-study.log"))
    assert len(optuna.load_study(study_name=config.cohort.label, storage=journal).trials) == 4
    assert "diverged" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_of_two_workers_each_on_two_cpus_end_and_leave_no_placement_group(
    tiny_config: Config, ray_cluster: Connection
) -> None:
    config = changed(tiny_config, cluster__workers=2, train__bags_per_step=2, train__epochs=1, train__refit=False)
    config = searched(config, {"train.lr": [1e-3]}, stop="median")
    marker = Path(config.run.dir) / "setting=0" / "stopped.json"
    storage.write_json(str(marker), {"epoch": 1, "score": 0.4, "median": 0.5})
    inputs = inputs_of(config)
    with pytest.raises(StoppedError):
        train_folds(inputs, inputs.plan.folds, ProgressReporter(), own_cluster=True)
    assert not placement_groups_left()
    marker.unlink()
    assert len(crossval(config)["folds"]) == 2
    assert not placement_groups_left()
