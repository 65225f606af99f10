"""A generated cohort with a number to predict, and folds that are trained in this process, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from momkd_ray.config.load import Config
from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.crossval import fold as fold_module
from momkd_ray.synthetic.cohort import generate_cohort
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker


def number_config(folder: Path, tiny: Config) -> Config:
    cohort = folder / "cohort"
    generate_cohort(SyntheticConfig(dir=str(cohort), patients=36, patches=24, width=16, genes=30, score=True))
    tree = tiny.model_dump(mode="json") | {"run": {"dir": str(folder / "run")}}
    tree["cohort"] |= {
        "clinical": str(cohort / "clinical.csv"),
        "slides": str(cohort / "slides.csv"),
        "omics": str(cohort / "rna.parquet"),
        "label": "SCORE",
        "task": "regression",
        "quantile_classes": 3,
    }
    tree["features"]["dir"] = str(cohort / "features")
    return Config.model_validate(tree)


def fit_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_fold` then trains without a Tune trial."""

    def fit(task: FoldTask, stop: Any = None, *, refit: FoldTask | None = None) -> Any:
        return train_loop_per_worker({"task": task, "refit": refit, "stop": stop})

    monkeypatch.setattr(fold_module, "fit", fit)
