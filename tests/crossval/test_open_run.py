"""Two commands in one run directory: the second is refused before it reads anything; folds are trained side by side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.command_line import outcome
from support.runs import finished, momkd, saved

from momkd_ray.config.load import Config
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.run.layout import RunDirectory
from momkd_ray.storage.lease import lease


def test_a_directory_in_use_is_refused_in_one_sentence(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(tiny_config, tmp_path / "c"))
    run = RunDirectory(tiny_config.run.dir)
    with lease(run.lease, run.location):
        for verb in (["crossval"], ["train", "--fold", "0"]):
            assert outcome(*verb, "--config", path) == 3
            told = capsys.readouterr()
            assert told.out == ""
            last = told.err.strip().splitlines()[-1]
            assert last.startswith(f"momkd-ray: {run.location} is in use by process {os.getpid()} on ")
            assert "Ray" not in told.err.replace("momkd-ray", "")
    with lease(run.lease, run.location, "fold 1"):
        assert outcome("crossval", "--config", path) == 3
        assert outcome("train", "--fold", "1", "--config", path) == 3
        assert "(fold 1)" in capsys.readouterr().err
        assert outcome("train", "--fold", "7", "--config", path) == 1
        assert "there is no fold 7" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_of_an_array_are_trained_side_by_side(
    tiny_config: Config, tmp_path: Path, ray_cluster: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved(tiny_config, tmp_path / "c"))
    folds = [momkd("train", "--fold", str(fold), "--config", path) for fold in (0, 1)]
    for process in folds:
        finished(process)
    assert outcome("crossval", "--config", path) == 0
    assert "2 of 2 folds are finished already" in capsys.readouterr().err
