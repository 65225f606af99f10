"""The model card of a bundle: made of the card alone, in Hugging Face's form, and plain about what is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import brier_score_loss
from support.models import card_of, small_model

from momkd_ray.crossval.card_facts import card_facts
from momkd_ray.crossval.evaluate import evaluate_fold
from momkd_ray.model.bundle import README, load_bundle, save_bundle
from momkd_ray.model.model_card import bundle_readme
from momkd_ray.statistics.delong import delong


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    tree: dict[str, Any] = yaml.safe_load(front)
    return tree, body


def patients(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3 == 0
    p = 1 / (1 + np.exp(-(2 * y - 1) - rng.normal(size=n)))
    names = [f"{seed}-{i}" for i in range(n)]
    label = np.where(y, "positive", "negative")
    return pd.DataFrame({"slide_id": names, "patient_id": names, "label": label, "p_negative": 1 - p, "p_positive": p})


def test_the_card_states_what_the_fold_measured(tmp_path: Path) -> None:
    val, test = patients(24, 1), patients(30, 2)
    result, tested = evaluate_fold(0, val, test, ("negative", "positive"), n_train=90, best_epoch=7)
    bags = pd.DataFrame(
        {"patient_id": [f"t{i}" for i in range(90)], "role": "train", "y": [int(i < 18) for i in range(90)]}
    )
    facts = card_facts(result, bags, tested, ("negative", "positive"), balanced=True)
    y = tested["label"] == "positive"
    assert facts["test_brier"] == pytest.approx(brier_score_loss(y, tested["p_positive"]))
    low, high = delong(y, tested["p_positive"]).interval(0) or (0, 0)
    assert (facts["test_auc_low"], facts["test_auc_high"]) == (low, high)
    model = small_model()
    card = card_of(model).model_copy(update={"origin": {"fold": 0, "seed": 1, "fingerprint": "ab12", **facts}})
    save_bundle(str(tmp_path), model, card)
    front, body = front_matter((tmp_path / README).read_text())
    assert {"library_name", "license", "tags", "pipeline_tag", "metrics", "model-index"} <= front.keys()
    assert front["license"] == "unknown"
    values = {m["type"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert values["auc"] == pytest.approx(result.test_scores["auc"], abs=1e-4)
    assert "| 90, 24, 30 |" in body and "ab12" in body and "multiply the odds by 0.25 " in body
    by_component = card.model_copy(update={"model": card.model.model_copy(update={"pooling": "components"})})
    assert "multiply" not in bundle_readme(by_component) and "at the training prevalence." in bundle_readme(
        by_component
    )
    auc = f"{result.val_scores['auc']:.3f} | {result.test_scores['auc']:.3f} ({low:.3f} to {high:.3f}) |"
    assert f"| auc | {auc}" in body


def test_a_perfect_auc_has_no_interval_on_the_card() -> None:
    val, test = patients(24, 1), patients(30, 2)
    test["p_positive"] = np.where(test["label"] == "positive", 0.8, 0.3)
    result, tested = evaluate_fold(0, val, test, ("negative", "positive"), n_train=90, best_epoch=7)
    bags = pd.DataFrame({"patient_id": ["t0", "t1"], "role": "train", "y": [0, 1]})
    facts = card_facts(result, bags, tested, ("negative", "positive"), balanced=True)
    assert facts["test_auc"] == 1 and not {"test_auc_low", "test_auc_high"} & facts.keys()
    card = card_of(small_model()).model_copy(update={"origin": {"fold": 0, **facts}})
    assert f"| auc | {result.val_scores['auc']:.3f} | 1.000 |" in bundle_readme(card)


def test_the_text_follows_from_the_card_alone(tmp_path: Path) -> None:
    model = small_model()
    save_bundle(str(tmp_path), model, card_of(model))
    text = (tmp_path / README).read_text()
    assert bundle_readme(load_bundle(str(tmp_path))[1]) == text
    front, body = front_matter(text)
    assert "model-index" not in front and front["metrics"] == []
    for sentence in (
        "Nothing is recorded.",
        "Which patients it learnt from is not recorded.",
        "Calibration: not recorded",
    ):
        assert sentence in body


def test_a_bundle_without_it_stays_readable(tmp_path: Path) -> None:
    model = small_model()
    save_bundle(str(tmp_path), model, card_of(model))
    (tmp_path / README).unlink()
    assert load_bundle(str(tmp_path))[1].label == "PR"


def test_hostile_names_break_neither_front_matter_nor_tables() -> None:
    card = card_of(small_model()).model_copy(
        update={"label": "a: b\n---\n| c", "classes": ("low", "<b>|x", "high"), "threshold": None, "encoder": "u|ni"}
    )
    card = card.model_copy(update={"origin": {"test_auc_low": 0.7, "test_auc": 0.8, "balanced": 0, "fold": 2}})
    front, body = front_matter(bundle_readme(card))
    assert front["model-index"][0]["name"].startswith("a: b")
    assert "\n---" not in body and "<b>" not in body and "u\\|ni" in body
    assert "| auc\\_low |  | 0.700 |" in body, "the AUC of a class that is called low is no interval"


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_card_says_what_the_validation_patients_chose(keep: str, refit: bool) -> None:
    card = card_of(small_model()).model_copy(update={"origin": {"keep": keep, "refit": refit}})
    text = " ".join(bundle_readme(card).split())
    assert ("chose the epoch and the threshold" in text) == (keep == "best")
    assert ("chose the threshold, so that their figures at it" in text) == (keep == "last")
    assert ("before it was trained again with them" in text) == refit
    assert "The test patients were in neither training nor validation." in text
