"""A checkpoint that a network file system shows late is waited for; it holds the kept weights once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from support.fold_tasks import fold_task, state_of

from momkd_ray.errors import RunError
from momkd_ray.train import checkpoints
from momkd_ray.train.checkpoints import Checkpoints, kept_weights
from momkd_ray.train.worker import train_loop_per_worker


def test_a_checkpoint_that_appears_late_is_read_and_one_that_never_does_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(str(tmp_path), "run") as written:
        written.save({"weights": torch.ones(3)}, 1, 0)
    name = written.newest()
    assert name is not None
    (tmp_path / name).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(checkpoints, "VISIBLE_WITHIN_S", 1.0)
    # no fault of the inputs: exit code 3
    with pytest.raises(RunError, match=rf"does not see .*{name}.* mount that folder on every node"):
        written.read(name)
    monkeypatch.setattr(checkpoints, "VISIBLE_WITHIN_S", 20.0)
    threading.Timer(0.3, (tmp_path / "elsewhere").rename, [tmp_path / name]).start()
    assert torch.equal(written.read(name)["weights"], torch.ones(3))


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_kept_weights_are_in_a_checkpoint_once_and_those_of_earlier_versions_are_read(
    tmp_path: Path, keep: str
) -> None:
    task = fold_task(tmp_path, keep=keep, epochs=3, patience=3)
    result = train_loop_per_worker({"task": task, "report": None})
    assert result is not None
    content = state_of(tmp_path)
    of_the_last_epoch = result["best_epoch"] == 2
    assert bool(content["progress"]["best_weights"]) != of_the_last_epoch
    kept = kept_weights(content)
    assert kept.keys() == content["model"].keys()
    earlier = content | {"progress": content["progress"] | {"best_weights": kept}}
    assert kept_weights(earlier) is kept
