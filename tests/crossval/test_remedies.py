"""Every remedy that a message names can be followed in place, in the same run directory."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import outcome
from support.cures import cures_in, with_value
from support.runs import changed, crossval, inputs_of, saved

import momkd_ray
from momkd_ray import storage
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.dotted_keys import dotted_keys
from momkd_ray.config.load import Config, load_config
from momkd_ray.config.model_names import MODELS, OMICS_MODELS, ONE_WORKER_MODELS
from momkd_ray.config.sections import ModelConfig
from momkd_ray.crossval import early_checks
from momkd_ray.crossval.early_checks import check_own_machine
from momkd_ray.errors import InputError, RunError
from momkd_ray.model.kernels import linear
from momkd_ray.model.registry import model_class
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.run.layout import RunDirectory
from momkd_ray.run.prepare import open_cohort, open_run_inputs

KEY = re.compile(r"\b([a-z_]+\.[a-z_]+)\b")


def test_every_key_that_a_message_asks_to_set_exists() -> None:
    known = set(dotted_keys(Config))
    named: set[str] = set()
    for path in Path(momkd_ray.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"(?:set|lower|raise|choose another|leave) ([a-z_]+\.[a-z_]+)", node.value))
    assert len(named) > 20
    assert named - known <= {"a.b", "section.key"}, "placeholders"


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (["train.bags_per_step=1", "cluster.workers=2"], ["train.bags_per_step", "cluster.workers"]),
        (["train.bags_per_step=3", "cluster.workers=[2, 8]"], ["train.bags_per_step"]),
        (["cohort.omics=null", "model.name=late_fusion"], ["model.name"]),
        (["model.name=batch_alignment", "train.bags_per_step=2", "cluster.workers=2"], ["cluster.workers"]),
        (["memory.components=9", "memory.init_patches=8"], ["memory.init_patches", "memory.components"]),
    ],
)
def test_keys_that_do_not_agree_are_refused_before_anything_is_read(
    tiny_config: Config, tmp_path: Path, settings: list[str], keys: list[str]
) -> None:
    path = saved(tiny_config, tmp_path)
    with pytest.raises(InputError) as caught:
        load_config(path, settings)
    cures = cures_in(str(caught.value))
    assert [key for key, _ in cures] == keys
    for key, value in cures:
        load_config(path, [*settings, f"{key}={value}"])
    load_config(path, settings, trains=False)  # what `ingest`, `audit` and `split` do with it


def test_a_search_is_checked_with_its_values_alone(tiny_config: Config, tmp_path: Path) -> None:
    path = saved(tiny_config, tmp_path)
    workers = ["cluster.workers=2", "search={train.bags_per_step: [2, 4]}"]
    load_config(path, workers)
    with pytest.raises(InputError, match=r"bags_per_step is 1, fewer"):
        load_config(path, [*workers, "search={train.bags_per_step: [1, 4]}"])
    load_config(path, [*workers, "search={train.bags_per_step: [1, 4]}"], trains=False)


def test_the_models_that_need_omics_or_a_single_worker_are_known_without_pytorch() -> None:
    names = [name for name in MODELS if model_class(ModelConfig(name=name)).uses_omics and name != "momkd"]
    assert sorted(names) == sorted(OMICS_MODELS)
    alone = [name for name in MODELS if model_class(ModelConfig(name=name)).contrasts_bags]
    assert sorted(alone) == sorted(ONE_WORKER_MODELS)


def test_a_machine_that_is_too_small_is_told_before_ray_starts(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "starts_own_cluster", lambda address: True)
    monkeypatch.setattr(early_checks, "available_cpus", lambda: 3)
    config = changed(tiny_config, cluster__workers=4, cluster__cpus_per_worker=2)
    with pytest.raises(InputError, match=r"8 CPUs .* offers 3") as caught:
        check_own_machine(config, None)
    cures = cures_in(str(caught.value))
    assert [key for key, _ in cures] == ["cluster.workers", "cluster.cpus_per_worker"]
    for key, value in cures:
        check_own_machine(with_value(config, key, value), None)


def test_a_precision_that_the_machine_lacks_is_told_before_ray_starts(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "starts_own_cluster", lambda address: True)
    monkeypatch.setattr("momkd_ray.train.step.multiplies_bf16", lambda device: False)
    config = changed(tiny_config, train__precision="bf16")
    with pytest.raises(InputError, match=r"train\.precision is bf16") as caught:
        check_own_machine(config, None)
    ((key, value),) = cures_in(str(caught.value))
    check_own_machine(with_value(config, key, value), None)
    assert linear.multiplies_bf16 is not None


@pytest.mark.slow
def test_more_components_than_patches_and_what_is_set_then_in_one_directory(
    tiny_config: Config, ray_cluster: Connection
) -> None:
    config = changed(tiny_config, memory__components=5_000, train__epochs=1)
    with pytest.raises(InputError, match=r"memory\.components is 5000, but fold") as caught:
        crossval(config)
    assert not list(Path(config.run.dir).glob("fold=*"))
    ((key, value),) = cures_in(str(caught.value))
    follow = with_value(config, key, value)
    with pytest.raises(InputError, match=r"memory\.components"):
        crossval(with_value(config, key, value + 1))
    patches = RunDirectory(config.run.dir)
    assert storage.exists(patches.provenance)
    crossval(changed(follow, memory__components=4))  # as few as `or fewer` allows
    assert storage.exists(patches.metrics)


@pytest.mark.slow
def test_a_directory_in_which_something_was_trained_stays(tiny_config: Config, ray_cluster: Connection) -> None:
    config = changed(tiny_config, train__epochs=1)
    first = inputs_of(config)
    assert inputs_of(changed(config, train__lr=0.5)).fingerprint != first.fingerprint
    inputs = inputs_of(config)
    fold = Path(inputs.fold_directory(0).location)
    (fold / "checkpoints").mkdir(parents=True)
    (fold / "checkpoints" / ".00001-0-x.pt.1.tmp").touch()  # of a killed writer
    (fold / "genes.csv").touch()
    inputs_of(changed(config, train__lr=0.5))
    assert not (fold / "genes.csv").exists(), "it was selected by another configuration"
    (fold / "metrics.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"train\.lr was 0\.5 and is 0\.001; set run\.dir to") as caught:
        inputs_of(config)
    ((key, value),) = cures_in(str(caught.value))
    inputs_of(with_value(config, key, value))


def test_a_directory_where_others_work_is_not_taken_over(tiny_config: Config, ray_cluster: Connection) -> None:
    inputs_of(tiny_config)
    other = changed(tiny_config, train__lr=0.5)
    progress = ProgressReporter()
    cohort = open_cohort(other, progress)
    with pytest.raises(InputError, match="another configuration"):
        open_run_inputs(other, cohort, make_folds(other, cohort), progress, others_work=lambda: True)


@pytest.mark.slow
def test_a_store_of_another_format_and_features_without_coordinates(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    config = changed(tiny_config, train__epochs=1, store__neighbors=5)
    inputs_of(config)
    changed_format = changed(config, store__dtype="float32")
    with pytest.raises(InputError, match="holds float16") as caught:
        inputs_of(changed_format)
    ((key, value),) = cures_in(str(caught.value))
    crossval(with_value(changed_format, key, value))


def test_too_many_folds(tiny_config: Config) -> None:
    config = changed(tiny_config, folds__n=20)
    progress = ProgressReporter()
    cohort = open_cohort(config, progress)
    with pytest.raises(InputError) as caught:
        make_folds(config, cohort)
    ((key, value),) = cures_in(str(caught.value))
    follow = with_value(config, key, value)
    make_folds(follow, cohort)


@pytest.mark.slow
def test_a_run_that_diverged_says_where_its_remedy_is_followed(tiny_config: Config, ray_cluster: Connection) -> None:
    config = changed(tiny_config, train__lr=1e30, train__clip_norm=1e30)
    with pytest.raises(RunError, match=r"lower train\.lr") as caught:
        crossval(config)
    lower = changed(config, train__lr=1e-3, train__epochs=1)
    for key, value in cures_in(str(caught.value)):
        lower = with_value(lower, key, value)
    crossval(lower)


def test_folds_of_a_trained_run_are_not_overwritten_by_split(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs_of(tiny_config)
    run = Path(tiny_config.run.dir)
    before = (run / "folds.csv").read_text()
    (run / "fold=0").mkdir()
    (run / "fold=0" / "metrics.jsonl").touch()
    path = str(saved(tiny_config, tmp_path / "c"))
    assert outcome("split", "--config", path) == 0
    assert outcome("split", "--config", path, "--set", "folds.seed=9") == 1
    assert "trained on other folds" in capsys.readouterr().err
    assert (run / "folds.csv").read_text() == before
    shutil.rmtree(run / "fold=0")
    assert outcome("split", "--config", path, "--set", "folds.seed=9") == 0
    assert not pd.read_csv(run / "folds.csv").equals(pd.read_csv(tmp_path / "run" / "excluded.csv"))
