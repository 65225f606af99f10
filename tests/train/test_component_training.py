"""Training of the default network: the same for every number of workers, resumed or not, and without decay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from support.fold_tasks import GENES, WIDTH, fold_task, state_of
from support.processes import in_processes

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.sections import MemoryConfig
from momkd_ray.export.program import Program
from momkd_ray.model.component_memory import ComponentMemory
from momkd_ray.model.explain import explain
from momkd_ray.model.interface import MILModel
from momkd_ray.model.memory import MomentumMemory
from momkd_ray.model.registry import build_model
from momkd_ray.train.checkpoints import kept_weights
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker


def component_task(location: Path, **train: object) -> FoldTask:
    recipe = {"pooling": "components", "schedule": "one_cycle", "keep": "last", "balanced": False, "lr": 1e-3}
    task = fold_task(location, **(recipe | train))
    return replace(task, targets={patient: 0.3 + 0.4 * (i % 2) for i, patient in enumerate(sorted(task.omics))})


def trained(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    train_loop_per_worker({"task": component_task(Path(folder) / f"workers-{world}", dropout=0.3)})
    if world > 1:
        dist.destroy_process_group()


def test_any_number_of_workers_gives_the_same_answer(tmp_path: Path) -> None:
    trained(0, 1, str(tmp_path))
    one = pd.read_parquet(tmp_path / "workers-1" / "test_slides.parquet")
    assert one["p_positive"].nunique() == 6
    for world in (2, 3):
        in_processes(trained, world, world, str(tmp_path))
        several = pd.read_parquet(tmp_path / f"workers-{world}" / "test_slides.parquet")
        pd.testing.assert_frame_equal(one, several, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_fold_ends_as_if_it_had_not_been(stop_after: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train_loop_per_worker({"task": component_task(tmp_path / "whole", dropout=0.3, deterministic=True)})
    task = component_task(tmp_path / "parts", dropout=0.3, deterministic=True)
    epochs = iter(range(10))
    assert train_loop_per_worker({"task": task, "stop": lambda: next(epochs) >= stop_after}) is None
    train_loop_per_worker({"task": task})
    whole, parts = (state_of(tmp_path / name) for name in ("whole", "parts"))
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name


def test_the_last_epoch_is_kept_and_a_refit_needs_no_validation_patients(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    task = component_task(tmp_path)
    bags = task.bags.assign(role=task.bags["role"].replace("val", "train"))
    outcome = train_loop_per_worker({"task": replace(task, bags=bags)})
    assert outcome is not None and outcome["best_epoch"] == 2
    assert not (tmp_path / "val_slides.parquet").exists()
    assert len(pd.read_parquet(tmp_path / "test_slides.parquet")) == 6


@pytest.mark.parametrize("by_component", [False, True])
def test_a_class_without_evidence_does_not_decay(by_component: bool) -> None:
    torch.manual_seed(0)
    memory = (ComponentMemory if by_component else MomentumMemory)(MemoryConfig(components=3), 2, 5)
    before_YKS, before_YK = memory.accumulator_YKS.clone(), memory.mass_YK.clone()
    for _ in range(300):
        vectors_NS = torch.nn.functional.normalize(torch.randn(4, 5), dim=-1)
        weights_NC = torch.zeros(4, 6)
        weights_NC[:, 3:] = 1 / 3
        memory.update(vectors_NS, weights_NC if by_component else torch.ones(4, dtype=torch.int64), 4)
    assert torch.equal(memory.accumulator_YKS[0], before_YKS[0])
    assert torch.equal(memory.mass_YK[0], before_YK[0])
    assert not torch.equal(memory.accumulator_YKS[1], before_YKS[1])
    cosine_KK = memory.components[0] @ memory.components[0].T
    assert np.abs(cosine_KK - torch.eye(3)).max() < 0.99


def trained_model(location: Path) -> tuple[MILModel, BagBatch]:
    """A trained model in evaluation mode, and a bag."""
    torch.set_num_threads(1)
    task = component_task(location)
    train_loop_per_worker({"task": task})
    model = build_model(task.config.model, task.config.memory, task.config.loss, width=WIDTH, genes=GENES)
    model.load_state_dict(kept_weights(state_of(location)))
    return model.eval(), collate([task.source.read("slide-03")])


def test_contributions_of_patches_add_up_to_the_logits(tmp_path: Path) -> None:
    model, batch = trained_model(tmp_path)
    with torch.no_grad():
        readout = model.readout(batch)
        assert readout is not None and readout.similarity_PYK is not None
        torch.testing.assert_close(readout.classify(readout.pooled_1H), model(batch).logits_BY)
    assert readout.similarity_PYK.shape == (len(batch.features_PD), 2, 4)
    # without one patch, the prediction of the bag without it
    left_out = explain(readout).contribution_PY
    assert np.isfinite(left_out).all() and np.abs(left_out).max() > 0


def test_an_exported_program_predicts_what_the_model_predicts(tmp_path: Path) -> None:
    model, batch = trained_model(tmp_path)
    with torch.no_grad():
        p_Y, attention_P = Program([model])(batch.features_PD)
    expected_BY, expected_P = model.predict(batch)
    torch.testing.assert_close(p_Y, expected_BY[0])
    torch.testing.assert_close(attention_P, expected_P)
