"""The report says of the validation patients what they did, and no more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.finished_runs import write_run

from momkd_ray.report.page import write_report


def text_of(folder: Path, classes: tuple[str, ...], train: dict[str, object]) -> str:
    """The words of a report on a run with these keys of `train`."""
    run = write_run(folder, classes=classes, folds=2)
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    tree["train"] |= train
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return " ".join(re.sub(r"<[^>]*>", " ", Path(write_report(run)).read_text()).split())


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("classes", [("low", "high"), ("zero", "low", "high")], ids=["two", "three"])
def test_an_epoch_is_chosen_only_where_the_best_is_kept(
    classes: tuple[str, ...], keep: str, refit: bool, tmp_path: Path
) -> None:
    text = text_of(tmp_path, classes, {"keep": keep, "refit": refit})
    figure = "AUC" if len(classes) == 2 else "macro AUC"
    assert ("the epoch" in text.split("it chooses")[-1][:60]) == (keep == "best")
    assert (f"The validation {figure} chose the epoch and is therefore optimistic" in text) == (keep == "best")
    assert (f"the one with the best validation {figure}" in text) == (keep == "best")
    assert ("Dashed: the kept epoch, the last." in text) == (keep == "last")
    assert ("trained again on training and validation patients together, and that one is tested" in text) == refit
    assert ("before it was trained again" in text) == (refit and keep == "last")
    assert ("chooses nothing" in text) == (len(classes) == 3 and keep == "last")
    assert ("it chooses the threshold (highest F1" in text) == (len(classes) == 2 and keep == "last")
