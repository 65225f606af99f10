"""The figures of the validation patients, and the one by which an epoch is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from support.fold_tasks import fold_task

from momkd_ray.train.task import FoldTask
from momkd_ray.train.validation import criterion_of, validation_metrics
from momkd_ray.train.worker import train_loop_per_worker

CLASSES = 3


def number_task(location: Path, **train: Any) -> FoldTask:
    """A fold of a number whose classes are its thirds."""
    task = fold_task(location, classes=CLASSES, **train)
    config = task.config.model_copy(
        update={"cohort": task.config.cohort.model_copy(update={"task": "regression", "ordered": True})}
    )
    rng = np.random.default_rng(0)
    return replace(task, config=config, bags=task.bags.assign(number=task.bags["y"] + rng.random(len(task.bags))))


@given(seed=st.integers(0, 2**32 - 1), pooling=st.sampled_from(["attention", "components"]), balanced=st.booleans())
def test_of_a_number_the_correlation_of_the_expected_score_chooses(seed: int, pooling: str, balanced: bool) -> None:
    task = number_task(Path("unused"), pooling=pooling, balanced=balanced)
    rng = np.random.default_rng(seed)
    p_NY = rng.dirichlet(np.ones(CLASSES), size=6)
    val = task.bags[task.bags["role"] == "val"]
    slides = pd.DataFrame({"slide_id": val["bag_id"], "patient_id": val["patient_id"], "y": val["y"]})
    slides = slides.assign(**{f"p_{y}": p_NY[:, y] for y in range(CLASSES)})
    metrics = validation_metrics(task, slides)
    training = task.bags[task.bags["role"] == "train"]
    shares = training["y"].value_counts(normalize=True).sort_index().to_numpy()
    # balanced drawing showed all classes equally often; the ridge start has seen every bag once
    weighted_NY = p_NY * (shares if balanced and pooling == "attention" else 1)
    score_N = weighted_NY @ training.groupby("y")["number"].mean().to_numpy() / weighted_NY.sum(axis=1)
    assert criterion_of(task.config).metric == "val_spearman"
    assert metrics["val_spearman"] == pytest.approx(spearmanr(score_N, val["number"]).statistic)
    assert 0 <= (metrics["val_auc"] or 0) <= 1


def test_equal_scores_rank_nobody() -> None:
    task = number_task(Path("unused"))
    val = task.bags[task.bags["role"] == "val"].rename(columns={"bag_id": "slide_id"})
    slides = val[["slide_id", "patient_id", "y"]].assign(**{f"p_{y}": 1 / CLASSES for y in range(CLASSES)})
    assert validation_metrics(task, slides)["val_spearman"] == 0


@pytest.mark.parametrize("number", [True, False])
def test_the_kept_epoch_is_the_one_that_the_task_chooses_by(number: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": "best", "epochs": 8, "patience": 8, "lr": 0.02}
    task = number_task(tmp_path, **options) if number else fold_task(tmp_path, classes=CLASSES, **options)
    result = train_loop_per_worker({"task": task})
    epochs = [json.loads(line) for line in Path(task.directory.metrics).read_text().splitlines()]
    by_epoch = [epoch[criterion_of(task.config).metric] for epoch in epochs]
    assert result is not None and result["best"] == max(by_epoch)
    assert result["best_epoch"] == by_epoch.index(max(by_epoch))
    assert ("val_spearman" in epochs[0]) == number
    assert all(math.isfinite(epoch["val_auc"]) for epoch in epochs)
