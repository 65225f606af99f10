"""Runs on the tiny cohort: in this process, or by the command line in another."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from momkd_ray import storage
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import cross_validate_inputs
from momkd_ray.progress import ProgressReporter
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.prepare import open_cohort, open_run_inputs


def inputs_of(config: Config) -> RunInputs:
    progress = ProgressReporter()
    cohort = open_cohort(config, progress)
    return open_run_inputs(config, cohort, make_folds(config, cohort), progress)


def crossval(config: Config) -> dict[str, Any]:
    return cross_validate_inputs(inputs_of(config), ProgressReporter(), own_cluster=True)


def changed(config: Config, **settings: Any) -> Config:
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        section, name = key.split("__")
        tree[section][name] = value
    return Config.model_validate(tree)


def searched(config: Config, search: dict[str, Any], **tuning: Any) -> Config:
    """The configuration with a search over settings."""
    return Config.model_validate(config.model_dump(mode="json") | {"search": search, "tuning": tuning})


def saved(config: Config, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


def without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel work then runs in this process, whatever cluster another test has started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in ("cluster", "parallel_map"):
        monkeypatch.setattr(f"momkd_ray.ray_runtime.{module}.is_connected", lambda: False)


def momkd(*arguments: str, variables: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | (variables or {})
    return subprocess.Popen(
        [sys.executable, "-m", "momkd_ray.cli", *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def comparable(run: str) -> tuple[Any, pd.DataFrame]:
    predictions = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{run}/predictions.parquet")))
    return storage.read_json(f"{run}/metrics.json"), predictions
