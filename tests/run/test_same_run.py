"""A run goes on where only that has changed which cannot change a result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.runs import changed, crossval, inputs_of

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.run.layout import RunDirectory
from momkd_ray.run.provenance import _computed_otherwise

SAME: dict[str, dict[str, Any]] = {
    "resources": {"cluster__cpus_per_worker": 0.5, "cluster__checkpoint_steps": 7},
    "where bags are kept": {"store__memory_share": 0.1, "store__cache": {"gb": 0.5}, "store__reader": "direct"},
    "where it is watched": {"watch__mlflow": "$MLFLOW", "watch__wandb": "project"},
    "how the folds were drawn, if they are the same": {"folds__stratify": True, "folds__column": "unused"},
    "memory of a pass": {"train__patches_per_pass": 99, "store__part_mb": 3},
}


def trained(config: Config) -> str:
    """Leaves a trace of training in the run directory."""
    inputs = inputs_of(config)
    storage.write_text(inputs.fold_directory(0).metrics, "{}\n")
    return inputs.fingerprint


@pytest.mark.parametrize("what", SAME)
def test_it_goes_on_with_other(tiny_config: Config, no_cluster: None, what: str) -> None:
    fingerprint = trained(tiny_config)
    for _ in range(2):  # also after it has gone on once
        assert inputs_of(changed(tiny_config, **SAME[what])).fingerprint == fingerprint
    assert inputs_of(tiny_config).fingerprint == fingerprint
    with pytest.raises(InputError, match=r"loss\.margin was 0\.3 and is 0\.2"):
        inputs_of(changed(tiny_config, loss__margin=0.2, **SAME[what]))


def test_it_goes_on_with_another_base_value_of_what_is_searched(tiny_config: Config, no_cluster: None) -> None:
    config = tiny_config.model_copy(update={"search": {"train.lr": [1e-3, 1e-2]}})
    fingerprint = trained(config)
    assert inputs_of(changed(config, train__lr=0.5, tuning__seed=9)).fingerprint == fingerprint
    with pytest.raises(InputError, match="holds a run of another"):
        inputs_of(config.model_copy(update={"search": {"train.lr": [1e-3, 1e-4]}}))


def test_it_goes_on_with_a_list_of_genes_elsewhere(tiny_config: Config, no_cluster: None, tmp_path: Path) -> None:
    genes = [str(name) for name in storage.read_table(str(tiny_config.cohort.omics)).columns[1:9]]
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(genes))
    fingerprint = trained(changed(tiny_config, genes__select=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").unlink()
    assert inputs_of(changed(tiny_config, genes__select=str(tmp_path / "b.txt"))).fingerprint == fingerprint
    (tmp_path / "b.txt").write_text("\n".join(genes[:-1]))
    with pytest.raises(InputError, match="another configuration or other data"):
        inputs_of(changed(tiny_config, genes__select=str(tmp_path / "b.txt")))


def test_it_is_another_run_where_its_numbers_were_computed_otherwise(tiny_config: Config) -> None:
    """Of these an earlier state chose other penalties, or left other patients to the refit, or other bags to a pass."""
    attention = changed(tiny_config, model__pooling="attention")
    of_number = tiny_config.model_copy(update={"cohort": tiny_config.cohort.model_copy(update={"task": "regression"})})
    for config, reason in (
        (tiny_config, "ridge start"),
        (changed(attention, train__fraction=0.5), "refit"),
        (changed(attention, omics__missing="drop"), "refit"),
        (changed(tiny_config, model__name="batch_alignment"), "pass"),
        (attention, ""),
        (changed(of_number, train__balanced=True), "as in training"),
        (changed(of_number, train__balanced=True, model__pooling="attention"), ""),
        (changed(attention, train__fraction=0.5, train__refit=False), ""),
    ):
        found = _computed_otherwise(config)
        assert any(reason in one for one in found) if reason else not found


@pytest.mark.slow
def test_it_goes_on_where_it_was_moved_with_its_bags_and_copied_features(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    metrics = crossval(changed(tiny_config, train__epochs=1))
    moved, features = tmp_path / "moved", tmp_path / "features"
    shutil.move(tiny_config.run.dir, moved)
    shutil.copytree(tiny_config.features.dir, features, copy_function=shutil.copy)
    results = {path: path.stat().st_mtime_ns for path in moved.glob("fold=*/result.json")}
    config = changed(tiny_config, train__epochs=1, run__dir=f"{moved}/", features__dir=str(features))
    assert crossval(config) == metrics
    assert results == {path: path.stat().st_mtime_ns for path in moved.glob("fold=*/result.json")}
    shutil.rmtree(moved / "bags")  # read again, with the same content
    assert crossval(config) == metrics


def test_a_damaged_provenance_is_named(tiny_config: Config, no_cluster: None) -> None:
    trained(tiny_config)
    Path(RunDirectory(tiny_config.run.dir).provenance).write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json is damaged.*set run\.dir to"):
        inputs_of(tiny_config)
