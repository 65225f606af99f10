"""The leaderboard of folds whose files are written here: DeLong's test, and what is said where there is none."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from momkd_ray import storage
from momkd_ray.compare.conclusion import conclusions, omics_gain
from momkd_ray.compare.entries import Entry
from momkd_ray.compare.leaderboard import Leaderboard, build_leaderboard
from momkd_ray.compare.page import write_page
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.compare.training import TrainedEntry
from momkd_ray.crossval.evaluate import evaluate_fold
from momkd_ray.run.layout import FoldDirectory
from momkd_ray.statistics.holm import holm

CLASSES = ("negative", "positive")
COST = {"parameters": 10, "training_seconds": 1.5, "prediction_seconds_per_bag": 0.01, "peak_memory_bytes": None}


def slides(role: str, y_N: np.ndarray, p_N: np.ndarray) -> pd.DataFrame:
    names = [f"{role}-{i:03}" for i in range(len(y_N))]
    labels = [CLASSES[y] for y in y_N]
    return pd.DataFrame(
        {"slide_id": names, "patient_id": names, "label": labels, "p_negative": 1 - p_N, "p_positive": p_N}
    )


def leaderboard(folder: Path, y_N: np.ndarray, models: dict[str, np.ndarray]) -> Leaderboard:
    """The leaderboard of models with one fold, by the probabilities that they give its test patients."""
    val = slides("val", np.array([0, 1]), np.array([0.3, 0.6]))
    trained = []
    for name, p_N in models.items():
        directory = FoldDirectory(str(folder / name))
        result, tested = evaluate_fold(0, val, slides("test", y_N, p_N), CLASSES, n_train=20, best_epoch=1)
        storage.write_table(directory.test_predictions, tested)
        storage.write_json(directory.result, result.to_json())
        storage.write_json(directory.cost, COST)
        entry = Entry(name, name, name, 1, 1.0, 1.0, {}, {"model.name": name}, name)
        trained.append(TrainedEntry(entry, {0: directory}, {}))
    config = SimpleNamespace(compare=None, folds=SimpleNamespace(seed=1))
    inputs: Any = SimpleNamespace(config=config, cohort=SimpleNamespace(classes=CLASSES))
    return build_leaderboard(inputs, trained)


def probabilities(y_N: np.ndarray, gain: float, seed: int) -> np.ndarray:
    """Probabilities that are the better the higher the gain."""
    p_N: np.ndarray = 1 / (1 + np.exp(-gain * y_N - np.random.default_rng(seed).normal(size=len(y_N))))
    return p_N


@pytest.mark.parametrize("rare", [0, 1])
def test_one_test_patient_of_a_class_leaves_delongs_columns_empty(tmp_path: Path, rare: int) -> None:
    y_N = np.where(np.arange(9) == 0, rare, 1 - rare)
    board = leaderboard(tmp_path, y_N, {"a": probabilities(y_N, 1, 0), "b": probabilities(y_N, 1, 1)})
    (difference,) = (row.difference for row in board.rows if row.difference is not None)
    assert (difference.delong, difference.delong_interval, difference.delong_p, difference.delong_p_holm) == (None,) * 4
    assert difference.bootstrap_interval[0] <= difference.bootstrap <= difference.bootstrap_interval[1]
    for line in csv.DictReader(io.StringIO(to_csv(board))):
        assert [line[f"delong{part}"] for part in ("", "_low", "_high", "_p", "_p_holm")] == [""] * 5
    said = "DeLong's test takes two patients of each class, so there is none here, with 1 of one."
    assert said in to_markdown(board) and said in to_latex(board)


def test_a_difference_without_a_variance_has_no_p_and_the_others_are_corrected(tmp_path: Path) -> None:
    y_N = np.arange(60) % 2
    models = {"perfect": 0.2 + 0.6 * y_N, "constant": np.full(60, 0.5)}
    models |= {f"good {i}": probabilities(y_N, 2, i) for i in (1, 2)}
    board = leaderboard(tmp_path, y_N, models)
    differences = {row.label: row.difference for row in board.rows if row.difference is not None}
    assert set(differences) == {"constant", "good 1", "good 2"}
    constant, *good = (differences[label] for label in ("constant", "good 1", "good 2"))
    assert (constant.delong, constant.delong_interval) == (-0.5, None)
    assert constant.delong_p is None and constant.delong_p_holm is None
    assert [one.delong_p_holm for one in good] == holm([one.delong_p or 0.0 for one in good])
    of_csv = {line["label"]: line for line in csv.DictReader(io.StringIO(to_csv(board)))}
    assert [of_csv["constant"][f"delong{part}"] for part in ("", "_low", "_high", "_p_holm")] == ["-0.5", "", "", ""]
    page = Path(write_page(str(tmp_path), "PR", board)).read_text().replace("&#39;", "'")
    assert (constant.bootstrap, constant.bootstrap_interval) == (-0.5, None)
    assert constant.bootstrap_p is None and constant.bootstrap_p_holm is None
    assert [one.bootstrap_p_holm for one in good] == holm([one.bootstrap_p or 0.0 for one in good])
    assert [of_csv["constant"][f"bootstrap{part}"] for part in ("_low", "_high", "_p", "_p_holm")] == [""] * 4
    assert [of_csv[name]["auc_low"] for name in ("perfect", "constant")] == ["", ""]
    (first,) = conclusions(board)
    assert first.endswith("for 'constant' there is none, as the bootstrap replicates have the same value.")
    for text, row in (
        (to_markdown(board), "| 0.500 (no interval) | -0.500 (no interval) | none | none |"),
        (to_latex(board), "& 0.500 (no interval) & -0.500 (no interval) & none & none &"),
        (page, "<td>0.500 (no interval)</td><td>-0.500 (no interval)</td><td>none</td><td>none</td>"),
    ):
        assert text.count(row) == 1
        assert "1.000 (no interval)" in text and "[1.000, 1.000]" not in text
        assert "There is no interval, and no p-value of a difference, where the bootstrap replicates" in text
        assert "there is none of constant, as DeLong's variance is 0." in text


def test_what_the_comparison_shows_is_said_first(tmp_path: Path) -> None:
    y_N = np.arange(200) % 2
    reference = probabilities(y_N, 1.5, 0)
    models = {"momkd": reference, "worse": probabilities(y_N, 0, 1), "better": 0.5 * y_N + reference / 2}
    models["alike"] = np.clip(reference + 0.02 * np.random.default_rng(3).normal(size=200), 0, 1)
    board = leaderboard(tmp_path, y_N, models)
    first = (
        "Beside momkd, the 95 % interval of the difference in pooled AUC is above 0 for 'better' and below 0 for "
        "'worse'; for 'alike' it includes 0."
    )
    assert conclusions(board) == [first]
    page = Path(write_page(str(tmp_path), "PR", board)).read_text().replace("&#39;", "'")
    assert page.index(first) < page.index("<table>") and first in to_markdown(board)
    same = leaderboard(tmp_path / "same", y_N, {"momkd": reference, "alike": models["alike"]})
    assert conclusions(same)[0].endswith("includes 0 for every model.")
    assert conclusions(leaderboard(tmp_path / "one", y_N, {"momkd": reference})) == []


@pytest.mark.parametrize(("reference", "gain"), [("with", 1.5), ("without", 1.5), ("other", 1.5), ("with", 0.0)])
def test_what_the_omics_changed_has_its_interval_where_one_of_both_is_the_reference(
    tmp_path: Path, reference: str, gain: float
) -> None:
    y_N = np.arange(200) % 2
    models = {"with": probabilities(y_N, 1.5, 0), "without": probabilities(y_N, 1.5 - gain, 1)}
    models["other"] = probabilities(y_N, 1, 2)
    order = [reference, *(name for name in models if name != reference)]
    board = leaderboard(tmp_path, y_N, {name: models[name] for name in order})
    rows = {row.label: row for row in board.rows}
    pair = [replace(rows[name], model="momkd", omics_fraction=share) for name, share in (("without", 0), ("with", 1))]
    sentence = conclusions(replace(board, rows=[*pair, rows["other"]]))[1]
    measured = rows["with"].pooled - rows["without"].pooled
    assert sentence.startswith(f"The omics changed the pooled AUC of with by {measured:+.3f}")
    value, interval = omics_gain(*pair)
    assert value == pytest.approx(measured)
    if reference == "other":
        assert interval is None and "set compare.reference" in sentence
        return
    assert interval is not None and interval[0] <= value <= interval[1]
    assert sentence.endswith("a gain.") == (interval[0] > 0) == (gain > 0)
