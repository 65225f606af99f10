"""benchmarks/compare_revisions.py sees any figure that changed, and passes over times and sentences."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare_revisions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_revisions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(run: Path) -> Path:
    (run / "fold=0" / "model").mkdir(parents=True)
    (run / "fold=0" / "model" / "weights.safetensors").write_bytes(b"weights")
    (run / "fold=0" / "genes.csv").write_text("gene,mean\nA,0.25\n")
    (run / "fold=0" / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "val_auc": 0.5, "seconds_train": 1.0}) + "\n")
    pd.DataFrame({"patient_id": ["P1"], "p_positive": [0.125]}).to_parquet(run / "predictions.parquet")
    (run / "metrics.json").write_text(json.dumps({"auc": {"folds": [0.5]}, "cohort": ["1 patient."], "version": "1"}))
    return run


def compare(script: ModuleType, first: Path, second: Path) -> Any:
    return script.print_comparison(["a", "b"], [], script.read_answers(first), script.read_answers(second))


def test_equal_runs(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(script, write_run(tmp_path / "a"), write_run(tmp_path / "b")) == 0
    printed = capsys.readouterr().out
    assert "| weights (SHA-256) | 1 | 0 | 0 | 0 |" in printed
    assert "Identical." in printed


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics.json", lambda text: text.replace("1 patient.", "1 patient in all.").replace('"1"', '"2"')),
        ("fold=0/metrics.jsonl", lambda text: text.replace('"seconds_train": 1.0', '"seconds_train": 2.0')),
    ],
)
def test_times_versions_and_sentences_may_differ(
    script: ModuleType, tmp_path: Path, file: str, change: Callable[[str], str]
) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (second / file).write_text(change((second / file).read_text()))
    assert compare(script, first, second) == 0


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("metrics.json", "0.5", "0.5000000000000001"),
        ("fold=0/metrics.jsonl", "0.5", "0.75"),
        ("fold=0/genes.csv", "0.25", "0.250"),
        ("fold=0/model/weights.safetensors", "weights", "Weights"),
    ],
)
def test_any_figure_that_differs_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str
) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (second / file).write_text((second / file).read_text().replace(old, new))
    assert compare(script, first, second) == 1
    assert file in capsys.readouterr().out


def test_a_missing_file_and_a_changed_prediction_differ(script: ModuleType, tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    pd.DataFrame({"patient_id": ["P1"], "p_positive": [0.25]}).to_parquet(second / "predictions.parquet")
    assert compare(script, first, second) == 1
    (second / "predictions.parquet").unlink()
    assert compare(script, first, second) == 1


def test_nothing_to_compare_is_no_success(script: ModuleType, tmp_path: Path) -> None:
    assert compare(script, tmp_path, tmp_path) == 1
