"""The report: complete, self-contained, safe with hostile names, and plain about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from momkd_ray import storage
from momkd_ray.crossval.evaluate import evaluate_fold, summarise
from momkd_ray.errors import InputError
from momkd_ray.report.page import write_report

CLASSES = ("negative", "positive")
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)> $x_')


def slides(rng: np.random.Generator, patients: list[str], classes: tuple[str, str], spread: float = 1) -> pd.DataFrame:
    rows = []
    for place, patient in enumerate(patients):
        y = place % 3 == 0
        for slide in range(1 + place % 2):
            p = 1 / (1 + np.exp(-(2 * y - 1) - rng.normal(scale=spread)))
            rows.append((f"{patient}-{slide}", patient, classes[int(y)], 1 - p, p))
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", f"p_{classes[0]}", f"p_{classes[1]}"])


def write_run(
    folder: Path,
    classes: tuple[str, str] = CLASSES,
    label: str = "PR",
    folds: int = 5,
    *,
    every_patient_in_every_fold: bool = False,
) -> str:
    rng = np.random.default_rng(0)
    results, tables = [], []
    for fold in range(folds):
        validation = slides(rng, [f"V{fold}-{i:02}" for i in range(24)], classes)
        own = 0 if every_patient_in_every_fold else fold
        test = slides(rng, [f"T{own}-{i:02}" for i in range(30)], classes)
        result, table = evaluate_fold(fold, validation, test, classes, n_train=96, best_epoch=7)
        results.append(result)
        tables.append(table)
        lines = [
            {
                "epoch": e,
                "loss_total": 2 * 0.9**e,
                "loss_task": 1.0,
                "lr": 2e-4,
                "val_auc": 0.9 - abs(e - 7) / 30,
            }
            for e in range(18)
        ]
        storage.write_text(f"{folder}/fold={fold}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    pooled = pd.concat(tables)
    figures = summarise(results, pooled, classes, seed=1)
    figures |= {"cohort": [f"{len(pooled)} patients have a slide and a label.", "3 patients left out (no slide)."]}
    storage.write_json(f"{folder}/metrics.json", figures)
    pooled.to_parquet(folder / "predictions.parquet")
    cohort = {"label": label, "negative": classes[0], "positive": classes[1]}
    storage.write_text(f"{folder}/run.yaml", yaml.safe_dump({"cohort": cohort, "train": {"epochs": 18}}))
    return str(folder)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta", "link", "img", "br", "hr", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    location = write_report(write_run(tmp_path_factory.mktemp("run")))
    assert location.endswith("/report.html")
    return Path(location).read_text()


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open, "every tag is closed"
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert name not in {"src", "srcset", "data", "action"}, (tag, name, value)
        if name.endswith("href"):
            assert value.startswith("#"), (tag, value)
        if not name.startswith("xmlns"):
            assert not re.search(r"https?:|//", value), (tag, name, value)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_references_inside_the_page_resolve(page: str) -> None:
    parsed = Page(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, name, value in parsed.attributes if name.endswith("href")}
    used |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids)
    assert used


def test_every_drawing_has_a_description_and_follows_the_mode(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags.count("svg") == 3 + 5
    labels = [value for tag, name, value in parsed.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == 3 + 5
    assert all(len(label) > 20 for label in labels)
    assert "var(--ink)" in page
    assert not re.search("#0[123]0[123]0[123]", page), "a stand-in colour was left"
    assert "prefers-color-scheme: dark" in page


def test_page_contains_the_figures(tmp_path: Path, page: str) -> None:
    figures = json.loads(Path(write_run(tmp_path), "metrics.json").read_text())
    parsed = Page(page)
    for one in figures["metrics"].values():
        assert f"{one['mean']:.3f} ± {one['sd']:.3f}" in parsed.text
        assert f"{one['interval'][0]:.3f} to {one['interval'][1]:.3f}" in parsed.text
        for value in (one["pooled"], *one["folds"]):
            assert f"{value:.3f}" in parsed.text
    assert "150 patients have a slide and a label." in parsed.text
    assert "3 patients left out (no slide)." in parsed.text
    assert "epochs: 18" in parsed.text


def test_page_describes_the_search(tmp_path: Path, page: str) -> None:
    run = write_run(tmp_path)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    figures["search"] = {
        "settings": [{"memory.components": k} for k in (8, 16, 32, 64)],
        "chosen": {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1},
        "val_auc": [[0.5, 0.6], [0.7, 0.9], [None, None], [0.6, None]],
        "stopped": [{"setting": 2, "epoch": 10, "val_auc": 0.51, "median": 0.7}],
        "drawn_by": None,
        "stopped_by": "the mean over folds",
    }
    storage.write_json(f"{run}/metrics.json", figures)
    text = Page(Path(write_report(run)).read_text()).text
    assert re.search(r"memory.components = 8\s*0.550\s*none", text)
    assert re.search(r"memory.components = 16\s*0.800\s*0, 1, 2, 3, 4", text)
    assert re.search(r"memory.components = 32\s*stopped after 10 epochs at 0.510, median 0.700\s*none", text)
    assert re.search(r"memory.components = 64\s*diverged in 1 fold\s*none", text)
    assert "chooses the setting" in text
    assert "stopped in all folds by the mean over folds" in text
    assert "they influenced the settings" in text
    assert "they influenced the settings" not in page
    assert "memory.components" not in page


def test_same_run_gives_the_same_page(tmp_path: Path, page: str) -> None:
    assert Path(write_report(write_run(tmp_path))).read_text() == page


@pytest.mark.filterwarnings("error")
def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = Path(write_report(write_run(tmp_path, HOSTILE, label="</title><script>x</script>"))).read_text()
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    for name in HOSTILE:
        assert f"truly {name}" in parsed.text


def test_patients_tested_in_several_folds_count_once(tmp_path: Path, page: str) -> None:
    run = write_run(tmp_path, folds=3, every_patient_in_every_fold=True)
    text = Page(Path(write_report(run)).read_text()).text
    assert "30 patients:" in text
    assert "pooled, each counts once" in text
    assert "pooled, each counts once" not in page
    cells = re.search(r"truly negative\s*(\d+)\s*(\d+)\s*truly positive\s*(\d+)\s*(\d+)", text)
    assert cells is not None
    assert sum(map(int, cells.groups())) == 30
    pooled = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["auc"]["pooled"]
    assert f"pooled AUC {pooled:.3f}" in Path(run, "report.html").read_text()


def test_many_folds_fit(tmp_path: Path) -> None:
    assert "fold 11" in Page(Path(write_report(write_run(tmp_path, folds=12))).read_text()).text


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "run.yaml", "fold=3/metrics.jsonl"])
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_missing_or_damaged_file_is_named(tmp_path: Path, name: str, fault: str) -> None:
    run = write_run(tmp_path)
    if fault == "missing":
        (tmp_path / name).unlink()
        message = f"no finished cross-validation in {run}: {name} is missing; run momkd-ray crossval first"
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            write_report(run)
    else:
        (tmp_path / name).write_bytes(b"{ \xff\x00:")
        with pytest.raises(InputError, match=re.escape(name)):
            write_report(run)
    assert not (tmp_path / "report.html").exists()


def test_predictions_of_other_folds_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    table[table["fold"] != 2].to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match="different folds"):
        write_report(run)
