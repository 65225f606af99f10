"""What the omics bought: from the leaderboard of a comparison, with its interval, and plain about what is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import outcome
from support.finished_runs import write_run

from momkd_ray.report.omics import read_omics_gain
from momkd_ray.report.page import write_report


def row(label: str, pooled: float, omics: float, difference: Any = None, model: str = "momkd") -> dict[str, Any]:
    return {
        "label": label,
        "model": model,
        "label_fraction": 1.0,
        "omics_fraction": omics,
        "seeds": [1, 2],
        "fold_aucs": [[pooled - 0.02, pooled], [pooled - 0.02, pooled + 0.02]],
        "pooled": pooled,
        "interval": [pooled - 0.1, pooled + 0.1],
        "difference": difference,
    }


def write_board(folder: Path, rows: list[dict[str, Any]], reference: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "leaderboard.json").write_text(json.dumps({"rows": rows, "reference": reference}))
    return str(folder)


def interval(low: float, high: float) -> dict[str, Any]:
    return {"bootstrap_interval": [low, high]}


def test_the_gain_has_its_interval_whichever_of_the_two_is_the_reference(tmp_path: Path) -> None:
    having, without = row("momkd", 0.8, 1, interval(0.01, 0.19)), row("without", 0.7, 0)
    gain = read_omics_gain(write_board(tmp_path / "a", [having, without], "without"), None)
    assert gain is not None
    assert gain.rows == [
        ["momkd", "0.700 (0.600 to 0.800)", "0.800 (0.700 to 0.900)", "+0.100 (+0.010 to +0.190)", "2 of 2"]
    ]
    having, without = row("momkd", 0.8, 1), row("without", 0.7, 0, interval(-0.19, -0.01))
    gain = read_omics_gain(write_board(tmp_path / "b", [having, without], "momkd"), None)
    assert gain is not None and gain.rows[0][3] == "+0.100 (+0.010 to +0.190)"
    third = read_omics_gain(
        write_board(tmp_path / "c", [having, without, row("abmil", 0.6, 1, None, "abmil")], "abmil"), None
    )
    assert third is not None and third.rows[0][3] == "+0.100"


def test_figures_without_an_interval_are_shown_without(tmp_path: Path) -> None:
    having, without = row("momkd", 1.0, 1, {"bootstrap_interval": None}) | {"interval": None}, row("without", 0.5, 0)
    gain = read_omics_gain(write_board(tmp_path, [having, without], "without"), None)
    assert gain is not None
    assert gain.rows[0][1:4] == ["0.500 (0.400 to 0.600)", "1.000 (no interval)", "+0.500"]


def test_of_a_number_the_gain_is_in_the_correlation_that_it_is_ranked_by(tmp_path: Path) -> None:
    rows = [row("momkd", 0.9, 1), row("without", 0.2, 0, interval(0.5, 0.6))]
    for of_number, pooled, folds in zip(rows, (0.5, 0.4), ([0.6, 0.3], [0.5, 0.4]), strict=True):
        of_number["scores"] = {
            "spearman": {
                "folds": [folds, folds],
                "pooled": pooled,
                "interval": [pooled - 0.1, pooled + 0.1],
                "difference_interval": None if pooled == 0.5 else [-0.15, -0.05],
            }
        }
    gain = read_omics_gain(write_board(tmp_path, rows, "momkd"), None)
    assert gain is not None
    assert gain.rows == [
        ["momkd", "0.400 (0.300 to 0.500)", "0.500 (0.400 to 0.600)", "+0.100 (+0.050 to +0.150)", "1 of 2"]
    ]
    assert gain.header[1].startswith("pooled Spearman") and gain.header[-1] == "folds with a higher Spearman"


@pytest.mark.usefixtures("unrendered")
def test_the_page_says_what_they_bought_or_how_to_know(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", folds=2)
    assert "Not known from this run alone" in Path(write_report(run)).read_text()
    board = write_board(tmp_path / "compare", [row("momkd", 0.8, 1)], "momkd")
    assert "has no model both without and with omics" in Path(write_report(run, board)).read_text()
    write_board(tmp_path / "run", [row("momkd", 0.8, 1, interval(0.01, 0.19)), row("without", 0.7, 0)], "without")
    assert "+0.100 (+0.010 to +0.190)" in Path(write_report(run)).read_text()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [{}], "reference": "a"}', '{"rows": 3}'])
def test_a_comparison_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", folds=2)
    other = tmp_path / "compare"
    other.mkdir()
    if content is not None:
        (other / "leaderboard.json").write_text(content)
    assert outcome("report", "--run", run, "--compare", str(other)) == 1
    said = capsys.readouterr().err.strip()
    assert "leaderboard.json" in said and "compare" in said and len(said.splitlines()) == 1
