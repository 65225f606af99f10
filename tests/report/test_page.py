"""The report: complete, self-contained, safe with hostile names, and plain about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from support.finished_runs import write_run
from support.models import card_of, small_model

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.model.bundle import save_bundle
from momkd_ray.report.page import write_report
from momkd_ray.statistics.spread import metrics_table

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)> $x_')
DRAWINGS = 6  # besides those of folds


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


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("classes", [("negative", "positive"), ("zero", "low", "high")])
def test_what_depends_on_few_validation_patients_is_told_with_the_scores(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    folder = write_run(tmp_path, classes=classes)
    assert "on fewer than" not in Path(write_report(folder)).read_text(), "a run of an earlier version has no such key"
    metrics = storage.join(folder, "metrics.json")
    sentence = "Fold 1 validates on fewer than 5 patients of a class, on whom the epoch depends."
    storage.write_json(metrics, storage.read_json(metrics) | {"few_validated": [sentence]})
    page = Path(write_report(folder)).read_text()
    assert page.index('<h2 id="scores">') < page.index(sentence) < page.index("<h3>How to read this</h3>")


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open, "every tag is closed"
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert name not in {"src", "srcset", "data", "action"}, (tag, name, value)
        if name.endswith("href"):
            assert value.startswith("#") or re.fullmatch(r"figures/[\w-]+\.(png|svg|csv)", value), (tag, value)
        if not name.startswith("xmlns"):
            assert not re.search(r"https?:|//", value), (tag, name, value)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_references_inside_the_page_resolve(page: str) -> None:
    parsed = Page(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for _, name, value in parsed.attributes if name.endswith("href") and value.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids)
    assert used


def test_every_drawing_has_a_description_and_follows_the_mode(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags.count("svg") == DRAWINGS + 5 + 1
    labels = [value for tag, name, value in parsed.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == DRAWINGS + 5 + 1
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


@pytest.mark.usefixtures("unrendered")
def test_page_describes_the_search(tmp_path: Path, page: str) -> None:
    run = write_run(tmp_path)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    figures["search"] = {
        "settings": [{"memory.components": k} for k in (8, 16, 32, 64)],
        "chosen": {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1},
        "criterion": "AUC",
        "scores": [[0.5, 0.6], [0.7, 0.9], [None, None], [0.6, None]],
        "stopped": [{"setting": 2, "epoch": 10, "score": 0.51, "median": 0.7}],
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


@pytest.mark.usefixtures("unrendered")
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


@pytest.mark.usefixtures("unrendered")
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


def test_the_page_begins_with_its_verdict(page: str, tmp_path: Path) -> None:
    figures = json.loads(Path(write_run(tmp_path), "metrics.json").read_text())["metrics"]["auc"]
    low, high = figures["interval"]
    text = " ".join(Page(page).text.split())
    assert "PR: positive against negative" in text
    assert f"the pooled AUC is {figures['pooled']:.3f} (95 % interval {low:.3f} to {high:.3f})" in text
    assert "LABEL" not in page


@pytest.mark.usefixtures("unrendered")
def test_a_perfect_model_has_no_interval_and_the_page_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    note = "No interval: the bootstrap replicates have the same value"
    assert note not in Page(Path(write_report(run)).read_text()).text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["metrics"]["auc"] |= {"pooled": 1.0, "interval": None}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = Path(write_report(run)).read_text()
    text = " ".join(Page(page).text.split())
    assert "the pooled AUC is 1.000 (no interval, as the bootstrap replicates have the same value)." in text
    assert "<td>no interval</td>" in page and note in text
    assert "no interval" in metrics_table(metrics["metrics"])


def test_everybody_is_in_the_flow(page: str) -> None:
    text = " ".join(Page(page).text.split())
    assert "153 patients named by the tables" in text
    assert "150 patients with a usable label and slide 3 left out: no slide" in text


def test_every_figure_is_also_a_png_svg_and_csv(tmp_path: Path) -> None:
    run = write_run(tmp_path, folds=2)
    text = Path(write_report(run)).read_text()
    linked = set(re.findall(r'href="(figures/[^"]+)"', text))
    assert linked == {f"figures/{path.name}" for path in (tmp_path / "figures").iterdir()}
    assert len(linked) == 3 * text.count('role="img"')
    for name in linked:
        content = (tmp_path / name).read_bytes()
        assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml"}.get(name[-3:], b""))
        assert b"#010101" not in content
        if name.endswith("csv"):
            assert len(pd.read_csv(tmp_path / name))


@pytest.mark.usefixtures("unrendered")
def test_calibration_is_of_the_pooled_patients_corrected_by_fold(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    rows = re.findall(
        r"(raw|corrected)</th><td>([\d.]+)</td>.*?<td>([\d.]+)</td><td>", Path(write_report(run)).read_text()
    )
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    y, p = table["label"] == "positive", table["p_positive"]
    (raw, mean, score), (corrected, shifted, _) = rows
    assert (raw, corrected) == ("raw", "corrected")
    assert float(mean) == pytest.approx(p.mean(), abs=6e-4)
    assert float(score) == pytest.approx(brier_score_loss(y, p), abs=6e-4)
    # a third of the training patients are positive, so the odds of every probability are about halved
    assert float(shifted) == pytest.approx((p / (p + 2 * (1 - p))).mean(), abs=0.02)
    unbalanced = Path(write_report(write_run(tmp_path / "other", balanced=False))).read_text()
    assert ">corrected</th>" not in unbalanced


@pytest.mark.usefixtures("unrendered")
def test_table_1_has_the_clinical_columns_by_class_and_fold(tmp_path: Path) -> None:
    run = write_run(tmp_path, clinical=str(tmp_path / "clinical.csv"))
    patients = pd.read_parquet(tmp_path / "predictions.parquet")["patient_id"]
    rng = np.random.default_rng(1)
    clinical = pd.DataFrame({"PATIENT": patients, "age": rng.integers(30, 90, len(patients)), "note": patients})
    clinical["site"] = rng.choice(["Lyon", "Basel"], len(patients))
    clinical.to_csv(tmp_path / "clinical.csv", index=False)
    page = Path(write_report(run)).read_text()
    text = " ".join(Page(page).text.split())
    assert text.count("age, mean (SD)") == 2
    assert text.count("site, n (%): Basel") == 2
    assert "note, n" not in text, "a column of names describes nobody"
    mean, sd = clinical["age"].mean(), clinical["age"].std()
    assert f"{mean:.1f} ({sd:.1f})" in text
    table = pd.read_parquet(tmp_path / "predictions.parquet").merge(clinical, left_on="patient_id", right_on="PATIENT")
    lyon = table[table["site"] == "Lyon"]
    assert f">Lyon</th><td>{len(lyon)}</td>" in page
    assert f"{roc_auc_score(lyon['label'] == 'positive', lyon['p_positive']):.3f} (" in text


@pytest.mark.usefixtures("unrendered")
def test_a_site_with_a_perfect_auc_has_no_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path, clinical=str(tmp_path / "clinical.csv"))
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    lyon = np.arange(len(table)) % 2 == 0
    sites = pd.DataFrame({"PATIENT": table["patient_id"], "site": np.where(lyon, "Lyon", "Basel")})
    sites.to_csv(tmp_path / "clinical.csv", index=False)
    reason = "DeLong's variance is 0"
    assert reason not in Page(Path(write_report(run)).read_text()).text
    positive = np.where(table["label"] == "positive", 0.8, 0.3)
    table["p_positive"] = np.where(lyon, positive, table["p_positive"])
    table.assign(p_negative=1 - table["p_positive"]).to_parquet(tmp_path / "predictions.parquet")
    page = Path(write_report(run)).read_text()
    assert page.count("<td>1.000 (no interval)</td>") == 1
    assert f"No interval: {reason}" in Page(page).text
    groups = pd.read_csv(tmp_path / "figures" / "groups.csv").set_index("name")
    assert groups.loc["  Lyon", ["low", "high"]].isna().all() and groups.loc["  Basel", ["low", "high"]].notna().all()


@pytest.mark.usefixtures("unrendered")
def test_the_most_confident_wrong_calls_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    text = Path(write_report(run)).read_text()
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    wrong = pd.read_csv(tmp_path / "wrong_calls.csv")
    assert len(wrong) == (table["label"] != table["predicted"]).sum()
    assert wrong["margin"].is_monotonic_decreasing
    assert wrong["slides"].str.startswith("T").all()
    places = [text.index(f">{patient}</th>") for patient in wrong["patient_id"].head(5)]
    assert places == sorted(places)


def test_genes_are_counted_over_folds(page: str) -> None:
    text = " ".join(Page(page).text.split())
    assert "7 genes were chosen in at least one of 5 folds, 2 in all of them; two folds share 50 %" in text


@pytest.mark.usefixtures("unrendered")
def test_the_memory_is_shown_where_it_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path, folds=2)
    model = small_model()
    save_bundle(f"{run}/fold=0/model", model, card_of(model))
    for fold in range(2):
        path = tmp_path / f"fold={fold}" / "metrics.jsonl"
        lines = [
            json.loads(line) | {"memory_use_0": 1.0, "memory_use_1": 0.75} for line in path.read_text().splitlines()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run)
    cosine = pd.read_csv(tmp_path / "figures" / "memory-similarity-fold-0.csv").set_index("component")
    assert list(cosine.index) == list(cosine.columns)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-5)
    within = cosine.to_numpy()[4:, 4:][~np.eye(4, dtype=bool)].mean()
    largest = cosine.to_numpy()[4:, :4].max()
    row = [f">{cell}</td>" for cell in ("positive", 4, "75 %", f"{within:.2f}", f"{largest:.2f}")]
    assert "<td" + "<td".join(row) in (tmp_path / "report.html").read_text()
    assert pd.read_csv(tmp_path / "figures" / "memory-use.csv")["positive"].eq(0.75).all()


@pytest.mark.usefixtures("unrendered")
def test_the_components_show_what_they_hold_where_heatmaps_were_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path, folds=2)
    model = small_model()
    save_bundle(f"{run}/fold=0/model", model, card_of(model))
    assert "Which patches each component holds: momkd-ray heatmap" in Path(write_report(run)).read_text()
    held = pd.DataFrame({"model": ["fold 0"], "component_class": ["positive"], "component": [3], "patches": [10]})
    held = held.assign(slides=7, share=0.125)
    (tmp_path / "heatmaps").mkdir()
    held.to_csv(tmp_path / "heatmaps" / "components.csv", index=False)
    assert "<td>3</td><td>12.5 %</td><td>7</td>" in Path(write_report(run)).read_text()


@pytest.mark.usefixtures("unrendered")
def test_the_methods_name_the_hardware(tmp_path: Path) -> None:
    run = write_run(tmp_path, folds=2)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    machine = {"processor": "AMD EPYC 7B13", "cores": 8, "memory_gib": 62.7, "gpu": "H100", "workers": 2}
    figures["folds"][0]["machines"] = [machine]
    figures["folds"][1]["machines"] = [machine | {"gpu": "", "workers": 1, "cores": 1}]
    storage.write_json(f"{run}/metrics.json", figures)
    text = Path(write_report(run)).read_text()
    assert "2 workers, each on AMD EPYC 7B13, 8 cores, 63 GiB, GPU H100" in text
    assert "AMD EPYC 7B13, 1 core, 63 GiB" in text


@pytest.mark.usefixtures("unrendered")
def test_the_methods_count_the_time_of_start_and_refit(tmp_path: Path) -> None:
    run = write_run(tmp_path, folds=2)
    assert "36 s (median), 72 s in all" in Path(write_report(run)).read_text()
    for fold in (0, 1):
        seconds = {"seconds_start": 30, "seconds_train": 20, "seconds_validate": 0}
        epoch = {"fold": fold, "epoch": 0, "loss_total": 1.0, "val_auc": None} | seconds
        storage.write_text(f"{run}/fold={fold}/refit/metrics.jsonl", json.dumps(epoch) + "\n")
    assert "86 s (median), 3 min in all" in Path(write_report(run)).read_text()


@pytest.mark.usefixtures("unrendered")
def test_a_run_that_kept_less_has_a_shorter_report(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for name in ("folds.csv", "excluded.csv", "provenance.json"):
        (tmp_path / name).unlink()
    for fold in range(5):
        for name in ("genes.csv", "val_slides.parquet", "test_slides.parquet"):
            (tmp_path / f"fold={fold}" / name).unlink()
    text = Page(Path(write_report(run)).read_text()).text
    assert "Table 1" in text
    assert "Genes" not in text


def test_the_checklist_has_every_item_and_claims_nothing_unknown(page: str) -> None:
    text = Page(page).text
    for item in ("3a-c", "12g", "18f", "27a-c"):
        assert item in text
    assert "to be written by the authors" in text
    assert "150 patients, all of the tables that can be used" in text


def test_sections_can_be_reached_by_keyboard_and_reader(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags.count("h1") == 1
    regions = [value for tag, name, value in parsed.attributes if name == "aria-label" and tag == "div"]
    assert all(regions)
    assert page.index("Skip to the content") < page.index("<main")
    assert re.findall(r"<th(?![^>]*scope)[ >]", page) == []
