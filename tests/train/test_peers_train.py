"""Peers are trained by MoMKD's loop: each finishes a fold, and the number of workers does not change the answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from support.fold_tasks import GENES, fold_task
from support.peers import PEERS
from support.processes import in_processes

from momkd_ray.config.load import Config
from momkd_ray.config.sections import ModelConfig
from momkd_ray.model.registry import model_class
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker


def peer_task(location: Path, name: str, **train: Any) -> FoldTask:
    task = fold_task(location, **train)
    tree = task.config.model_dump(mode="json")
    task = replace(task, config=Config.model_validate(tree | {"model": tree["model"] | {"name": name}}))
    if model_class(ModelConfig(name=name)).needs_omics_to_predict:
        everyone = {p: np.full(GENES, i % 2, np.float32) for i, p in enumerate(task.bags["patient_id"]) if i % 3}
        task = replace(task, omics=everyone)
    return task


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_finishes_a_fold(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    task = peer_task(tmp_path, name, dropout=0.3, epochs=2)
    outcome = train_loop_per_worker({"task": task, "report": lambda m: None})
    assert outcome is not None
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {f"loss_{term}" for term in model_class(ModelConfig(name=name)).loss_names} <= set(lines[0])
    assert len(pd.read_parquet(tmp_path / "test_slides.parquet")) == 6


def trained(rank: int, world: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    task = peer_task(Path(folder) / f"workers-{world}", name, dropout=0.3)
    train_loop_per_worker({"task": task, "report": lambda m: None})
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["clam_sb", "soft_labels"])
def test_two_workers_give_what_one_gives(name: str, tmp_path: Path) -> None:
    trained(0, 1, str(tmp_path), name)
    in_processes(trained, 2, 2, str(tmp_path), name)
    one, two = (pd.read_parquet(tmp_path / f"workers-{n}" / "test_slides.parquet") for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["batch_alignment", "clam_sb"])
def test_the_memory_given_to_a_pass_changes_nothing(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for limit in (1, 10**9):
        task = peer_task(tmp_path / str(limit), name, dropout=0.3, patches_per_pass=limit)
        train_loop_per_worker({"task": task, "report": lambda m: None})
    one, all_of_a_step = (pd.read_parquet(tmp_path / str(limit) / "test_slides.parquet") for limit in (1, 10**9))
    pd.testing.assert_frame_equal(one, all_of_a_step, atol=1e-5, rtol=1e-4)
