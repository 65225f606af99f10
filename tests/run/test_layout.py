"""The run directory: its files have one owner, and the names of a run before are those of a run after."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from momkd_ray.run import layout
from momkd_ray.run.layout import FoldDirectory, RunDirectory

PACKAGE = Path(layout.__file__).parents[1]
RUN = RunDirectory("s3://bucket/pr")


@pytest.mark.parametrize(
    ("location", "name"),
    [
        (RUN.configuration, "run.yaml"),
        (RUN.provenance, "provenance.json"),
        (RUN.lease, "lease.json"),
        (RUN.folds, "folds.csv"),
        (RUN.excluded, "excluded.csv"),
        (RUN.rejected, "rejected.csv"),
        (RUN.settings, "settings.json"),
        (RUN.study, "optuna-study.log"),
        (RUN.predictions, "predictions.parquet"),
        (RUN.metrics, "metrics.json"),
        (RUN.report, "report.html"),
        (RUN.audit, "audit"),
        (RUN.stop_decision(3), "setting=3/stopped.json"),
        (RUN.fold(1).result, "fold=1/result.json"),
        (RUN.fold(1).diverged, "fold=1/lost.json"),
        (RUN.fold(1).genes, "fold=1/genes.csv"),
        (RUN.fold(1).metrics, "fold=1/metrics.jsonl"),
        (RUN.fold(1).steps(7), "fold=1/steps/epoch=0007.parquet"),
        (RUN.fold(1).slides("val"), "fold=1/val_slides.parquet"),
        (RUN.fold(1).test_predictions, "fold=1/test_predictions.parquet"),
        (RUN.fold(1).checkpoints, "fold=1/checkpoints"),
        (RUN.fold(1, setting=12).model, "setting=12/fold=1/model"),
    ],
)
def test_names_of_files_do_not_change(location: str, name: str) -> None:
    assert location == f"s3://bucket/pr/{name}"


def test_a_fold_is_finished_when_its_result_is_there(tmp_path: Path) -> None:
    fold = FoldDirectory(str(tmp_path))
    assert not fold.is_finished()
    assert not fold.is_diverged()
    Path(fold.result).write_text("{}")
    Path(fold.diverged).write_text("{}")
    assert fold.is_finished()
    assert fold.is_diverged()


def names_in_code(path: Path) -> set[str]:
    """The strings of a module that are used as values: no docstrings, no parts of messages."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


def test_only_the_layout_names_the_files_of_a_run() -> None:
    names = {name for name in names_in_code(Path(layout.__file__)) if name.endswith((".json", ".jsonl", ".yaml"))}
    names |= {"folds.csv", "excluded.csv", "genes.csv", "predictions.parquet", "report.html", "checkpoints"}
    assert len(names) > 10
    for path in PACKAGE.rglob("*.py"):
        if path != Path(layout.__file__):
            assert not names & names_in_code(path), path
