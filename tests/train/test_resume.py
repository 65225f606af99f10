"""A fold that is interrupted anywhere, damaged on disk, or divided anew in its middle ends like an undisturbed one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from support.fold_tasks import fold_task, state_of
from support.processes import in_processes

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError
from momkd_ray.train.checkpoints import Checkpoints
from momkd_ray.train.step import Stepper
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker

STEPS = 12  # three epochs of four


class InterruptionError(Exception):
    """What ends a worker in its middle."""


def task_of(location: Path, **train: Any) -> FoldTask:
    """A fold with dropout and a checkpoint every second step."""
    task = fold_task(location, dropout=0.4, **train)
    cluster = task.config.cluster.model_copy(update={"checkpoint_steps": 2})
    return replace(task, config=task.config.model_copy(update={"cluster": cluster}))


def trained(task: FoldTask, steps: int | None = None, refit: FoldTask | None = None) -> list[dict[str, Any]]:
    """Train on, for so many steps before an interruption, or to the end; what was reported."""
    step, left = Stepper.step, iter(range(steps if steps is not None else 10**6))

    def limited(self: Stepper, *args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise InterruptionError
        return step(self, *args, **kwargs)

    reported: list[dict[str, Any]] = []
    Stepper.step = limited  # type: ignore[method-assign]
    try:
        train_loop_per_worker({"task": task, "refit": refit, "report": reported.append})
    except InterruptionError:
        pass
    finally:
        Stepper.step = step  # type: ignore[method-assign]
    return reported


def end_of(location: Path) -> dict[str, Any]:
    """All that a fold leaves, but for its times."""
    lines = [json.loads(line) for line in (location / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": state_of(location)["model"],
        "lines": [{k: v for k, v in line.items() if "seconds" not in k} for line in lines],
        "steps": pd.concat([pd.read_parquet(path) for path in sorted((location / "steps").iterdir())]),
        "test": pd.read_parquet(location / "test_slides.parquet"),
    }


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, atol=tolerance, rtol=tolerance, msg=name)
    assert len(one["lines"]) == len(other["lines"])
    for line, other_line in zip(one["lines"], other["lines"], strict=True):
        assert line == (pytest.approx(other_line, abs=tolerance) if tolerance else other_line)
    for table in ("steps", "test"):
        pd.testing.assert_frame_equal(
            one[table], other[table], check_exact=not tolerance, atol=tolerance, rtol=tolerance
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    trained(task_of(folder))
    return end_of(folder)


@pytest.mark.parametrize("steps", range(1, STEPS))
def test_stopped_after_any_step_a_fold_ends_bit_for_bit_like_an_undisturbed_one(
    undisturbed: dict[str, Any], tmp_path: Path, steps: int
) -> None:
    before = trained(task_of(tmp_path), steps)
    after = trained(task_of(tmp_path))
    assert [line["epoch"] for line in (*before, *after)] == [0, 1, 2]
    assert_same(undisturbed, end_of(tmp_path))
    if steps >= 2:
        assert f"from epoch {steps // 4}" in after[0]["notes"][0]
        assert ("step 2" in after[0]["notes"][0]) == (steps % 4 >= 2)


def test_a_refit_goes_on_where_it_was_interrupted_and_its_fold_is_not_trained_again(tmp_path: Path) -> None:
    def fold_and_refit(location: Path) -> tuple[FoldTask, FoldTask]:
        fold = task_of(location, keep="last", schedule="one_cycle")
        bags = fold.bags.assign(role=fold.bags["role"].replace("val", "train"))
        return fold, replace(fold, bags=bags, location=str(location / "refit"))

    (whole, whole_refit), (parts, parts_refit) = (fold_and_refit(tmp_path / name) for name in ("whole", "parts"))
    trained(whole, refit=whole_refit)
    assert [line["epoch"] for line in trained(parts, STEPS + 7, refit=parts_refit)] == [0, 1, 2]
    assert trained(parts, refit=parts_refit) == [], "a refit reports nothing"
    for folder in (".", "refit"):
        assert_same(end_of(tmp_path / "whole" / folder), end_of(tmp_path / "parts" / folder))


def test_a_step_s_losses_are_those_of_its_bags(undisturbed: dict[str, Any]) -> None:
    steps, lines = undisturbed["steps"], undisturbed["lines"]
    assert steps["bags"].tolist() == [4, 4, 4, 2] * 3
    for line in lines:
        of_epoch = steps[steps["epoch"] == line["epoch"]]
        mean = (of_epoch["loss_total"] * of_epoch["bags"]).sum() / of_epoch["bags"].sum()
        assert line["loss_total"] == pytest.approx(mean)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_told(
    undisturbed: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    trained(task_of(tmp_path), 7)
    newest = max((tmp_path / "checkpoints").iterdir())
    content = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = random.Random(0).randrange(len(content))
        newest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "emptied":
        newest.write_bytes(b"")
    else:
        newest.unlink()
    after = trained(task_of(tmp_path))
    notes = after[0]["notes"]
    assert any(newest.name in note and "damaged" in note for note in notes) == (damage != "gone")
    assert_same(undisturbed, end_of(tmp_path))


def test_when_no_checkpoint_is_whole_the_fold_begins_again(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    trained(task_of(tmp_path), 5)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert [line["epoch"] for line in trained(task_of(tmp_path))] == [0, 1, 2]
    assert_same(undisturbed, end_of(tmp_path))


def test_two_checkpoints_are_kept_and_what_a_killed_writer_left_counts_for_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), "print")
    for epoch in range(5):
        checkpoints.save({"at": epoch, "weight": torch.full((3,), float(epoch))}, epoch, 0)
        checkpoints.wait()
    (tmp_path / ".00009-0000000-abc.pt.12345678.tmp").write_bytes(b"half")
    names = sorted(name for name in storage.list_names(str(tmp_path)) if not name.startswith("."))
    assert [name[:5] for name in names] == ["00003", "00004"]
    newest = checkpoints.newest()
    assert newest == names[1]
    assert checkpoints.read(newest)["weight"].tolist() == [4.0, 4.0, 4.0]
    with pytest.raises(InputError, match="another configuration"):
        Checkpoints(str(tmp_path), "other").read(newest)
    checkpoints.remove_all()
    assert not storage.list_names(str(tmp_path))


def test_what_is_saved_is_the_state_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(1000)
    checkpoints = Checkpoints(str(tmp_path), "print")
    checkpoints.save({"nested": [{"weight": weight}]}, 0, 0)
    weight += 1  # training goes on while it is written
    checkpoints.wait()
    newest = checkpoints.newest()
    assert newest is not None
    assert not checkpoints.read(newest)["nested"][0]["weight"].any()


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(location: str, content: bytes) -> None:
        raise RunError(f"cannot write {location}: the disk is full")

    checkpoints = Checkpoints(str(tmp_path), "print")
    monkeypatch.setattr(storage, "write_bytes", full)
    checkpoints.save({}, 0, 0)
    with pytest.raises(RunError, match="full"):
        checkpoints.save({}, 0, 1)


def leg_of_workers(rank: int, world: int, folder: str, name: str, steps: int | None, train: dict[str, Any]) -> None:
    """One of `world` ranks, training on until an interruption."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet-{name}-{world}-{steps}-{random.Random(str(train)).random()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    trained(task_of(Path(folder) / name, **train), steps)
    dist.destroy_process_group()


def legs(folder: Path, name: str, *worlds_and_steps: tuple[int, int | None], **train: Any) -> dict[str, Any]:
    for world, steps in worlds_and_steps:
        if world == 1:
            trained(task_of(folder / name, **train), steps)
        else:
            in_processes(leg_of_workers, world, world, str(folder), name, steps, train)
    return end_of(folder / name)


def test_workers_may_go_and_come_in_the_middle_of_an_epoch(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    elastic = legs(tmp_path, "elastic", (2, 3), (1, 4), (2, None))
    assert_same(undisturbed, elastic, tolerance=1e-4)


def test_deterministic_workers_give_the_same_bits_also_when_they_were_interrupted(tmp_path: Path) -> None:
    once = legs(tmp_path, "once", (3, None), deterministic=True)
    again = legs(tmp_path, "again", (3, 7), (3, None), deterministic=True)
    assert_same(once, again)
