"""A search the whole way: its settings are trained, stopped and chosen, and Optuna reads what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.runs import changed, crossval, inputs_of, searched

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import choose_settings, train_folds
from momkd_ray.crossval.optuna_journal import write_study
from momkd_ray.errors import InputError, StoppedError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection, total_resource
from momkd_ray.report.page import write_report

GRACE = 2


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
