"""A run that is interrupted, killed and asked for twice ends like one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from support.held_fold import HELD_AFTER
from support.hooks import hooked
from support.runs import changed, comparable, crossval, finished, momkd, saved

from momkd_ray.config.load import Config
from momkd_ray.ray_runtime.cluster import Connection

EPOCHS = HELD_AFTER + 3


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_and_killed_the_same_command_ends_like_an_undisturbed_run(
    tiny_config: Config, tmp_path: Path, ray_cluster: Connection
) -> None:
    settings = {"train__epochs": EPOCHS, "train__patience": EPOCHS, "train__bags_per_step": 2}
    whole = changed(tiny_config, **settings)
    broken = changed(whole, run__dir=str(tmp_path / "broken"))
    command, run = ("crossval", "--config", str(saved(broken, tmp_path / "b"))), Path(broken.run.dir)

    # one fold ends, the other waits in its middle
    first = momkd(*command, variables=hooked("support.held_fold.hold"), start_new_session=True)
    until(lambda: [*run.glob("fold=*/result.json")], first)
    [done] = run.glob("fold=*/result.json")
    told = run / ("fold=1" if done.parent.name == "fold=0" else "fold=0") / "metrics.jsonl"
    checkpoints = told.parent / "checkpoints"
    until(lambda: told.exists() and [*checkpoints.glob(f"{HELD_AFTER + 1:05d}-*.pt")], first)
    before, stamp = told.read_text(), done.stat().st_mtime_ns
    assert before.count("\n") == HELD_AFTER

    second = momkd(*command)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 3
    assert f"is in use by process {first.pid} on " in output.strip().splitlines()[-1]

    os.kill(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 130, output
    assert "run the same command again to resume" in output.strip().splitlines()[-1]
    assert "Traceback" not in output

    killed = momkd(*command, variables=hooked("support.held_fold.hold"), start_new_session=True)
    until(lambda: [*checkpoints.glob(f"{HELD_AFTER + 2:05d}-*.pt")], killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (run / "metrics.json").exists()

    output = finished(momkd(*command))
    assert "1 of 2 folds are finished already" in output
    assert "sign that it is alive" not in output
    assert done.stat().st_mtime_ns == stamp
    # the seconds of these epochs are those measured before: they were not trained again
    assert told.read_text().startswith(before)
    crossval(whole)
    metrics, predictions = comparable(broken.run.dir)
    expected, expected_predictions = comparable(whole.run.dir)
    assert metrics == expected
    pd.testing.assert_frame_equal(predictions, expected_predictions)
