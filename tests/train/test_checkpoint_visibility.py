"""A checkpoint that a network file system shows late is waited for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from momkd_ray.errors import InputError
from momkd_ray.train import checkpoints
from momkd_ray.train.checkpoints import Checkpoints


def test_a_checkpoint_that_appears_late_is_read_and_one_that_never_does_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(str(tmp_path), "run") as written:
        written.save({"weights": torch.ones(3)}, 1, 0)
    name = written.newest()
    assert name is not None
    (tmp_path / name).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(checkpoints, "VISIBLE_WITHIN_S", 1.0)
    with pytest.raises(InputError, match=rf"not every worker sees .*{name}"):
        written.read(name)
    monkeypatch.setattr(checkpoints, "VISIBLE_WITHIN_S", 20.0)
    threading.Timer(0.3, (tmp_path / "elsewhere").rename, [tmp_path / name]).start()
    assert torch.equal(written.read(name)["weights"], torch.ones(3))
