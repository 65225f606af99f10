"""Metrics of several classes: those of two classes agree with the binary ones, and all with independent formulas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from momkd_ray.crossval.class_evaluate import pool_classes
from momkd_ray.crossval.class_metrics import class_intervals, class_metric_names, class_scores
from momkd_ray.crossval.evaluate import evaluate_fold, summarise
from momkd_ray.crossval.metrics import bootstrap_intervals, scores_of_predictions
from momkd_ray.errors import InputError

GRADES = ("low", "middle", "high")


def cases(classes: int, patients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y_N = np.concatenate([np.arange(classes), rng.integers(classes, size=patients)])
    logits = rng.normal(size=(len(y_N), classes)).round(1) + 1.5 * (y_N[:, None] == np.arange(classes))
    odds = np.exp(logits)
    return y_N, odds / odds.sum(axis=1, keepdims=True)


@given(st.integers(2, 60), st.integers(0, 10_000))
def test_two_classes_given_as_several_have_the_binary_metrics(patients: int, seed: int) -> None:
    y_N, p_N2 = cases(2, patients, seed)
    positive_N = p_N2[:, 1].round(6)  # so that 1 - p has the same ties
    p_N2 = np.stack([1 - positive_N, positive_N], axis=1)
    predicted_N = (positive_N >= 0.5).astype(int)
    several = class_scores(y_N, p_N2, predicted_N, ("no", "yes"), ordered=True)
    binary = scores_of_predictions(y_N, positive_N, predicted_N)
    assert several["auc"] == pytest.approx(binary["auc"])
    assert several["auc_yes"] == binary["auc"]
    assert several["accuracy"] == binary["accuracy"]
    assert several["macro_f1"] == pytest.approx(binary["macro_f1"])
    assert several["balanced_accuracy"] == pytest.approx((binary["sensitivity"] + binary["specificity"]) / 2)


def test_intervals_of_two_classes_are_the_binary_ones() -> None:
    y_N, p_N2 = cases(2, 80, 3)
    p_N2 = np.stack([1 - p_N2[:, 1], p_N2[:, 1]], axis=1)
    predicted_N = (p_N2[:, 1] >= 0.5).astype(int)
    several = class_intervals(y_N, p_N2, predicted_N, ("no", "yes"), 5, ordered=False, n=300)
    binary = bootstrap_intervals(y_N, p_N2[:, 1], predicted_N, 5, n=300)
    # the patients' canonical order differs, so the replicates do
    assert several["auc"] == pytest.approx(binary["auc"], abs=0.04)
    assert several["accuracy"] == pytest.approx(binary["accuracy"], abs=0.04)


@given(st.integers(3, 6), st.integers(5, 60), st.integers(0, 10_000))
def test_the_metrics_are_those_of_scikit_learn(classes: int, patients: int, seed: int) -> None:
    y_N, p_NY = cases(classes, patients, seed)
    predicted_N = p_NY.argmax(axis=1)
    names = tuple(f"c{y}" for y in range(classes))
    found = class_scores(y_N, p_NY, predicted_N, names, ordered=True)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y_N, p_NY, multi_class="ovr"))
    assert found["auprc"] == pytest.approx(
        np.mean([sk.average_precision_score(y_N == y, p_NY[:, y]) for y in range(classes)])
    )
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(y_N, predicted_N, weights="quadratic"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y_N, predicted_N, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y_N, predicted_N))
    assert set(found) == set(class_metric_names(names, ordered=True))


def test_classes_without_order_have_no_kappa() -> None:
    y_N, p_NY = cases(3, 20, 0)
    assert "kappa" not in class_scores(y_N, p_NY, p_NY.argmax(axis=1), GRADES, ordered=False)


def slides_of(prefix: str, patients: int, seed: int) -> pd.DataFrame:
    y_N, p_NY = cases(3, patients - 3, seed)
    table = pd.DataFrame(p_NY, columns=[f"p_{name}" for name in GRADES])
    names = [f"{prefix}{i:03}" for i in range(patients)]
    table.insert(0, "label", [GRADES[y] for y in y_N])
    table.insert(0, "patient_id", names)
    table.insert(0, "slide_id", names)
    return table


def test_folds_of_several_classes_call_the_likeliest_class() -> None:
    results, tables = [], []
    for fold in (0, 1):
        result, table = evaluate_fold(fold, slides_of("V", 20, 9), slides_of(f"T{fold}", 30, fold), GRADES, 40, 2)
        assert result.threshold is None
        assert (table["predicted"] == table[[f"p_{n}" for n in GRADES]].idxmax(axis=1).str[2:]).all()
        results.append(result)
        tables.append(table)
    summary = summarise(results, pd.concat(tables), GRADES, seed=1)
    assert summary["counts"]["patients"] == 60
    assert sum(summary["counts"]["classes"].values()) == 60
    assert summary["classes"] == {"names": list(GRADES), "ordered": True}
    auc = summary["metrics"]["auc"]
    assert auc["interval"][0] < auc["pooled"] < auc["interval"][1]
    assert summary == summarise(results[::-1], pd.concat(tables[::-1]), GRADES, seed=1)


def test_a_patient_of_two_labels_is_refused() -> None:
    table = slides_of("T", 12, 0).drop(columns="slide_id").assign(predicted="low", fold=0)
    other = table.assign(fold=1, label=table["label"].to_numpy()[::-1])
    with pytest.raises(InputError, match="another label in another fold"):
        pool_classes(pd.concat([table, other]), GRADES)
