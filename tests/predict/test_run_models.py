"""Which model bundles a user names by a run directory, the folder of a fold, or a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import card_of, small_model

from momkd_ray.errors import InputError
from momkd_ray.model.bundle import save_bundle
from momkd_ray.predict.run_models import named_bundles

FOLDS = (0, 1, 10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose folds have models, and which is finished once it has metrics.json."""
    folder = tmp_path / "run"
    for fold in FOLDS:
        save_bundle(str(folder / f"fold={fold}" / "model"), small_model(), card_of(small_model()))
    (folder / "run.yaml").write_text("{}")
    (folder / "metrics.json").write_text(json.dumps({"folds": [{"fold": fold} for fold in FOLDS]}))
    return folder


def test_a_run_directory_its_folds_and_their_bundles_name_the_same_models(run: Path) -> None:
    expected = [str(run / f"fold={fold}" / "model") for fold in FOLDS]
    told: list[str] = []
    assert named_bundles(expected, told.append) == expected
    assert named_bundles([str(run / f"fold={fold}") for fold in FOLDS], told.append) == expected
    assert not told
    assert named_bundles([str(run), expected[0], str(run / "fold=1")], told.append) == expected
    assert told == [f"{run} is a run directory: the models of its 3 folds predict together"]


def test_what_is_neither_is_left_to_the_reader_of_bundles(tmp_path: Path) -> None:
    assert named_bundles([str(tmp_path), "none", "none"], pytest.fail) == [str(tmp_path), "none"]


def test_a_run_that_is_not_finished_or_a_comparison_is_refused_with_a_cure(run: Path) -> None:
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"run momkd-ray crossval first, or name the models of .*fold=0/model"):
        named_bundles([str(run)], pytest.fail)
    (run / "leaderboard.json").write_text("{}")
    with pytest.raises(InputError, match="is a comparison of several models: name the bundles of one"):
        named_bundles([str(run)], pytest.fail)
