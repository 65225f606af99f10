"""One fold: the number of workers changes nothing, resuming changes nothing, sampling and sharding are exact."""

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
from support.fold_tasks import fold_task, state_of
from support.processes import in_processes

from momkd_ray.batches import tiles
from momkd_ray.errors import InputError
from momkd_ray.train.fit import fit
from momkd_ray.train.step import Stepper, dtype_of_products
from momkd_ray.train.worker import FoldTraining, TrainState, train_loop_per_worker

RULES = ["ema", "gradient", "fixed"]


def recorded_course(rank: int, world: int, folder: str) -> None:
    """Train three epochs of four steps under every rule as one of `world` ranks and save what each step left.

    Of three ranks, each encodes all but the smallest bags in tiles.
    """
    torch.set_num_threads(1)
    if world == 3:
        tiles.MAX_UNTILED_PATCHES["cpu"], tiles.TILE_PATCHES["cpu"] = 10, 8
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    step = Stepper.step
    course: dict[str, list[Any]] = {}

    def recording(self: Stepper, *args: Any, **kwargs: Any) -> Any:
        outcome = step(self, *args, **kwargs)
        model = self.model
        losses = self.collective.sum(outcome.sum(0)[: len(model.loss_names)])
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        course[rule].append([losses, grads, model.memory.raw_YKS.detach().clone()])
        return outcome

    Stepper.step = recording  # type: ignore[method-assign]
    try:
        for rule in RULES:
            course[rule] = []
            task = fold_task(Path(folder) / f"{rule}-{world}", rule=rule)
            reported: list[dict[str, Any]] = []
            train_loop_per_worker({"task": task, "report": reported.append})
            weights = state_of(Path(task.location))["model"] if rank == 0 else {}
            told = [
                {k: v for k, v in m.items() if "seconds" not in k and k not in ("workers", "notes")} for m in reported
            ]
            course[rule] += [weights, told]
    finally:
        Stepper.step = step  # type: ignore[method-assign]
    torch.save(course, Path(folder) / f"course-{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """What every rank of 1, 3 and 4 processes recorded."""
    folder = tmp_path_factory.mktemp("courses")
    recorded_course(0, 1, str(folder))
    for world in (3, 4):
        in_processes(recorded_course, world, world, str(folder))
    ranks = [(world, rank) for world in (1, 3, 4) for rank in range(world)]
    return {r: torch.load(folder / f"course-{r[0]}-{r[1]}.pt", weights_only=False) for r in ranks}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("world", [3, 4])
def test_the_number_of_workers_does_not_change_the_answer(courses: Any, rule: str, world: int) -> None:
    alone = courses[1, 0][rule]
    *steps, weights, reported = alone
    assert len(steps) == 12
    for rank in range(world):
        *their_steps, _, their_reported = courses[world, rank][rule]
        for (losses, grads, memory), (their_losses, their_grads, their_memory) in zip(steps, their_steps, strict=True):
            torch.testing.assert_close(their_losses, losses, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(their_memory, memory, atol=1e-5, rtol=1e-5)
            for name, grad in grads.items():
                torch.testing.assert_close(their_grads[name], grad, atol=1e-5, rtol=1e-5, msg=name)
        for mine, theirs in zip(reported, their_reported, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
    for name, value in courses[world, 0][rule][-2].items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_hold_the_same_memory_to_the_last_bit(courses: Any, rule: str) -> None:
    for step in range(12):
        first, *others = [courses[4, rank][rule][step][2] for rank in range(4)]
        assert all(torch.equal(first, other) for other in others)


def test_the_memory_moves_under_ema_and_gradient_only(courses: Any) -> None:
    for rule in RULES:
        *steps, _, _ = courses[1, 0][rule]
        assert torch.equal(steps[0][2], steps[-1][2]) == (rule == "fixed")


def outcome_of(location: Path) -> tuple[dict[str, Any], list[dict[str, Any]], pd.DataFrame]:
    state = state_of(location)
    lines = [json.loads(line) for line in (location / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
    return state["model"], lines, pd.read_parquet(location / "test_slides.parquet")


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_fold_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path, rule: str) -> None:
    whole = fold_task(tmp_path / "whole", rule=rule, dropout=0.4)
    train_loop_per_worker({"task": whole, "report": lambda m: None})

    broken = fold_task(tmp_path / "broken", rule=rule, dropout=0.4)

    def fall_over(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_loop_per_worker({"task": broken, "report": fall_over})
    torch.manual_seed(12345)
    seen: list[int] = []
    train_loop_per_worker({"task": broken, "report": lambda m: seen.append(m["epoch"])})
    assert seen == [2]

    weights, lines, test = outcome_of(tmp_path / "whole")
    weights_again, lines_again, test_again = outcome_of(tmp_path / "broken")
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert lines == lines_again
    pd.testing.assert_frame_equal(test, test_again)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    task = fold_task(tmp_path, epochs=1)
    train_loop_per_worker({"task": task, "report": lambda m: None})
    with pytest.raises(InputError, match="another configuration"):
        train_loop_per_worker({"task": replace(task, fingerprint="other"), "report": lambda m: None})


def test_a_fold_trains_without_any_omics(tmp_path: Path) -> None:
    task = fold_task(tmp_path, omics=False, epochs=2)
    train_loop_per_worker({"task": task, "report": lambda m: None})
    _, lines, test = outcome_of(tmp_path)
    assert "loss_align_omics" not in lines[0]
    assert len(test) == 6
    assert np.isfinite(test[["p_negative", "p_positive"]]).all(axis=None)


def test_early_stopping_counts_epochs_without_a_better_validation_auc(tmp_path: Path) -> None:
    training = FoldTraining(fold_task(tmp_path, patience=2, epochs=50), collective=_alone())
    assert not training.finished(TrainState(epoch=4, stale_epochs=1))
    assert training.finished(TrainState(epoch=4, stale_epochs=2))
    assert training.finished(TrainState(epoch=50))


def _alone() -> Any:
    from momkd_ray.train.collectives import SingleProcess

    return SingleProcess()


def test_more_workers_than_bags_a_step_are_refused(tmp_path: Path) -> None:
    task = fold_task(tmp_path)
    config = task.config.model_copy(update={"cluster": task.config.cluster.model_copy(update={"workers": 5})})
    with pytest.raises(InputError, match="bags_per_step"):
        fit(replace(task, config=config))


def test_memory_larger_than_the_patches_of_a_class_is_refused(tmp_path: Path) -> None:
    task = fold_task(tmp_path)
    memory = task.config.memory.model_copy(update={"components": 500})
    with pytest.raises(InputError, match=r"memory\.components"):
        train_loop_per_worker(
            {"task": replace(task, config=task.config.model_copy(update={"memory": memory})), "report": print}
        )


def test_half_precision_changes_rounding_only(tmp_path: Path) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        training = FoldTraining(fold_task(tmp_path / str(dtype)), collective=_alone())
        training.stepper.dtype = dtype  # which any CPU computes in, if slowly
        losses.append(training.run_epoch(training.begin())["loss_total"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("capable", [False, True])
def test_bf16_is_chosen_where_the_cpu_has_it_alone(monkeypatch: pytest.MonkeyPatch, capable: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capable)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu = torch.device("cpu")
    assert dtype_of_products("fp32", cpu) == torch.float32
    assert dtype_of_products("auto", cpu) == (torch.bfloat16 if capable else torch.float32)
    if capable:
        assert dtype_of_products("bf16", cpu) == torch.bfloat16
    else:
        with pytest.raises(InputError, match="precision"):
            dtype_of_products("bf16", cpu)
