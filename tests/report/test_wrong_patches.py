"""The error review: patches that spoke for a wrong call, by the model of the fold, from the bag store of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from support.bags import grid
from support.finished_runs import write_run
from support.models import card_of, small_model
from support.stores import write_store

from momkd_ray import storage
from momkd_ray.batches.collate import collate
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model import bundle
from momkd_ray.model.bundle import load_bundle, save_bundle
from momkd_ray.report.finished_run import read_finished_run
from momkd_ray.report.page import write_report
from momkd_ray.report.patients import wrong_calls
from momkd_ray.report.wrong_patches import MOST_PATCHES, MOST_SLIDES, review_patches
from momkd_ray.run.layout import RunDirectory

N = 40


def bag_of(slide: str, seed: int) -> Bag:
    features = np.random.default_rng(seed).normal(size=(N, 12)).astype("float32")
    coords = grid(N).astype(np.int32)
    return Bag(slide, features, coords, *knn_graph(coords, 4), {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two folds with a store, whose test predictions are those of its models."""
    folder = tmp_path / "run"
    write_run(folder, folds=2)
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    tree["cohort"] |= {"clinical": "clinical.csv", "slides": "slides.csv"}
    tree |= {"features": {"dir": "features"}, "store": {"uri": str(tmp_path / "bags")}, "run": {"dir": str(folder)}}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    model = small_model()
    bags = {}
    for fold in range(2):
        save_bundle(f"{folder}/fold={fold}/model", model, card_of(model))
        table = pd.read_parquet(folder / f"fold={fold}" / "test_slides.parquet")
        for slide in table["slide_id"]:
            bags[slide] = bag_of(slide, len(bags))
        with torch.no_grad():
            p = [float(model.eval().predict(collate([bags[s]]))[0][0, 1]) for s in table["slide_id"]]
        storage.write_table(
            f"{folder}/fold={fold}/test_slides.parquet", table.assign(p_positive=p, p_negative=1 - np.array(p))
        )
    write_store(str(tmp_path / "bags"), list(bags.values()))
    return folder


def test_the_patches_are_those_that_a_model_without_them_would_miss_most(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = read_finished_run(RunDirectory(str(run)))
    wrong = wrong_calls(finished)
    loaded: list[str] = []

    def load_once(location: str) -> object:
        assert location not in loaded
        loaded.append(location)
        return load_bundle(location)

    monkeypatch.setattr(bundle, "load_bundle", load_once)
    review = review_patches(finished, wrong)
    assert not review.note
    assert 0 < len(loaded) < MOST_SLIDES
    assert len(review.slides) == MOST_SLIDES
    for shown, call in zip(review.slides, wrong.to_dict("records"), strict=False):
        assert f"Patient {call['patient_id']}" in shown.title and f"called {call['predicted']}" in shown.title
        assert len(shown.rows) == MOST_PATCHES
        values = [float(row[-1]) for row in shown.rows]
        assert values == sorted(values, reverse=True)
        assert shown.drawing is not None and shown.drawing.data["patches"].sum() == N
        assert np.average(shown.drawing.data["mean_attention"], weights=shown.drawing.data["patches"]) == pytest.approx(
            1
        )


def test_the_page_has_them_and_loads_nothing(run: Path) -> None:
    page = Path(write_report(str(run))).read_text()
    assert "Patches that spoke most for the wrong class" in page
    assert page.count("times the mean") >= MOST_SLIDES
    assert (run / "figures" / "wrong-call-1.csv").exists()
    assert 'href="data:image/png' in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("fault", ["store", "slide", "model", "other features", "run.yaml"])
def test_what_is_missing_is_said(run: Path, tmp_path: Path, fault: str) -> None:
    if fault == "store":
        (tmp_path / "bags" / "manifest.json").unlink()
    elif fault == "slide":
        write_store(str(tmp_path / "other"), [bag_of("another", 0)])
        text = (run / "run.yaml").read_text().replace(str(tmp_path / "bags"), str(tmp_path / "other"))
        (run / "run.yaml").write_text(text)
    elif fault == "model":
        for fold in range(2):
            (run / f"fold={fold}" / "model" / "model.json").unlink()
    elif fault == "other features":
        slides = [s for f in range(2) for s in pd.read_parquet(run / f"fold={f}" / "test_slides.parquet")["slide_id"]]
        write_store(str(tmp_path / "other"), [bag_of(slide, 500 + i) for i, slide in enumerate(slides)])
        for fold in range(2):
            own = run / f"fold={fold}" / "test_slides.parquet"
            storage.write_table(str(own), pd.read_parquet(own).assign(p_positive=0.99, p_negative=0.01))
        text = (run / "run.yaml").read_text().replace(str(tmp_path / "bags"), str(tmp_path / "other"))
        (run / "run.yaml").write_text(text)
    else:
        (run / "run.yaml").write_text((run / "run.yaml").read_text() + "\nunknown: 1\n")
    finished = read_finished_run(RunDirectory(str(run)))
    review = review_patches(finished, wrong_calls(finished))
    assert "not shown" in review.note
    assert not review.slides


@pytest.mark.usefixtures("unrendered")
def test_the_page_is_written_without_patches(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bags" / "manifest.json").unlink()
    page = Path(write_report(str(run))).read_text()
    assert "not shown" in page
    assert "Patches that spoke most" not in page
