"""What makes steps on small bags quick changes no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fold_tasks import fold_task

from momkd_ray.config.model_names import MODELS
from momkd_ray.model.dropout import COLUMN, Dropout, hash32
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.threads import threads_of_worker
from momkd_ray.train.worker import FoldTraining


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 3_000), st.floats(1e-6, 1 - 1e-6), st.booleans()
)
def test_a_mask_in_32_bits_is_that_of_the_definition(keys: list[int], width: int, p: float, odd: bool) -> None:
    dropout = Dropout(torch.tensor(keys, dtype=torch.int64), p)
    column_C = torch.arange(width + odd) * COLUMN
    kept_NC = hash32((dropout.keys_N[:, None] + column_C) & 0xFFFFFFFF) >= dropout.threshold
    mask_NC = dropout.keep(width + odd)
    assert mask_NC.dtype == torch.float32
    assert torch.equal(mask_NC, kept_NC * (1 / (1 - p)))


def test_prediction_leaves_out_what_the_logits_do_not_need(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    training = FoldTraining(fold_task(tmp_path, pooling="components"), SingleProcess())
    with training.checkpoints:
        training.begin()
        model = training.model.eval()
        for _, batch in training.data.single("val"):
            with torch.no_grad():
                whole = model(batch)
            p_BY, attention_P = model.predict(batch)
            assert torch.equal(p_BY, whole.logits_BY.softmax(dim=-1))
            assert torch.equal(attention_P, whole.attention_P)


@pytest.mark.parametrize(
    ("pooling", "patches", "cpus", "threads"),
    [
        ("components", 4, 8, 1),
        ("components", 10**9, 8, 8),
        ("attention", 4, 8, 1),
        ("attention", 10**6, 8, 8),
        ("attention", 10**6, 1, 1),
        ("attention", 10**6, 0.5, 1),
    ],
)
def test_threads_follow_the_size_of_a_pass(
    tmp_path: Path, pooling: str, patches: int, cpus: float, threads: int
) -> None:
    task = fold_task(tmp_path, pooling=pooling)
    config = task.config.model_copy(
        update={
            "cluster": task.config.cluster.model_copy(update={"cpus_per_worker": cpus}),
            "train": task.config.train.model_copy(update={"patches_per_pass": 10**9}),
        }
    )
    assert threads_of_worker(replace(task, config=config, bags=task.bags.assign(patches=patches))) == threads


def test_every_model_knows_what_occupies_a_thread(tmp_path: Path) -> None:
    task = fold_task(tmp_path)
    for name in MODELS:
        model = task.config.model.model_copy(update={"name": name})
        assert threads_of_worker(replace(task, config=task.config.model_copy(update={"model": model}))) == 1
