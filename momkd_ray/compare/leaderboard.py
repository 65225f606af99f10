"""The leaderboard of a comparison: metrics with intervals, differences to a reference, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.compare.entries import Entry, reference_of
from momkd_ray.compare.scores import ScoredModel, ScoreSummary, score_summaries
from momkd_ray.compare.training import TrainedEntry
from momkd_ray.crossval.score_metrics import SCORE_METRICS, TRUE_SCORE
from momkd_ray.errors import RunError
from momkd_ray.model.expected_score import SCORE
from momkd_ray.run.inputs import RunInputs
from momkd_ray.statistics.delong import DeLongResult, delong
from momkd_ray.statistics.holm import holm_of_known
from momkd_ray.statistics.paired_bootstrap import paired_bootstrap
from momkd_ray.train.validation import criterion_of

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A model's AUC minus the reference's, by two methods, each with an interval and a p-value corrected by Holm.

    Attributes:
        delong, delong_interval, delong_p, delong_p_holm: of the predictions averaged over seeds (DeLong); None with
            more than two classes, for which it is not, and with fewer than two patients of a class. Where the variance
            of the difference is 0, interval and p-values alone are None.
        bootstrap, bootstrap_interval, bootstrap_p, bootstrap_p_holm: of the mean AUC over seeds, with patients and
            seeds resampled. Where the replicates of the difference have the same value, interval and p-values alone
            are None.
    """

    delong: float | None
    delong_interval: Interval | None
    delong_p: float | None
    bootstrap: float
    bootstrap_interval: Interval | None
    bootstrap_p: float | None
    delong_p_holm: float | None = None
    bootstrap_p_holm: float | None = None


@dataclass(frozen=True)
class SearchSummary:
    """What a model's search of settings tried and chose.

    Attributes:
        tried: the number of settings that each fold chose from.
        space: the values of each key.
        chosen: of every seed and fold the `setting`, its `score` on the fold's inner validation patients, and
            `scores`, those of all tried settings (None for one that diverged).
        criterion: what the scores are: the AUC or, of a number, Spearman's correlation.
        seconds: the training of all tried settings in one fold, median over folds and seeds.
    """

    tried: int
    space: Mapping[str, Any]
    chosen: list[dict[str, Any]]
    criterion: str
    seconds: float


@dataclass(frozen=True)
class Headline:
    """The metric by which models are ranked and drawn: the AUC or, of a number, Spearman's correlation.

    Attributes:
        name: of the metric.
        folds: its value of each seed (rows) and fold (columns).
        pooled, interval: of all folds' test patients together, with its bootstrap interval, None if it has no width.
        difference, difference_interval: to the reference; None for the reference itself. The interval alone is None if
            it has no width.
    """

    name: str
    folds: Sequence[Sequence[float]]
    pooled: float
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None


@dataclass(frozen=True)
class Row:
    """One model of the leaderboard.

    Attributes:
        name, label, model: of the entry.
        own: values by dotted key in which the model differs from the configuration.
        label_fraction, omics_fraction: that it was trained with.
        seeds: of its runs.
        fold_aucs: test AUC of each seed (rows) and fold (columns).
        mean, sd: over folds and seeds; no sd of one fold with one seed.
        pooled, interval: mean over seeds of the AUC of all folds' patients together, with its bootstrap interval over
            patients and seeds, None if it has no width.
        difference: to the reference; None for the reference itself.
        search: what the model chose from and what each seed and fold chose; None without a search.
        parameters, training_seconds, prediction_seconds_per_bag, peak_memory_bytes: medians over folds and seeds;
            training is one fold's, without its search.
        scores: of a regression the summaries of the predicted number, by metric; None of a classification.
    """

    name: str
    label: str
    model: str
    own: Mapping[str, Any]
    label_fraction: float
    omics_fraction: float
    seeds: list[int]
    fold_aucs: list[list[float]]
    mean: float
    sd: float | None
    pooled: float
    interval: Interval | None
    difference: Difference | None
    parameters: float
    training_seconds: float
    prediction_seconds_per_bag: float
    peak_memory_bytes: float | None
    search: SearchSummary | None = None
    scores: Mapping[str, ScoreSummary] | None = None

    @property
    def settings_tried(self) -> int:
        """The number of settings that each fold chose from."""
        return 1 if self.search is None else self.search.tried

    @property
    def headline(self) -> Headline:
        """The metric by which the row is ranked."""
        if self.scores is None:
            auc = self.difference
            to_reference = (None, None) if auc is None else (auc.bootstrap, auc.bootstrap_interval)
            return Headline("AUC", self.fold_aucs, self.pooled, self.interval, *to_reference)
        own = self.scores["spearman"]
        return Headline("Spearman", own.folds, own.pooled, own.interval, own.difference, own.difference_interval)


@dataclass(frozen=True)
class Leaderboard:
    """All rows, the name of the reference, and the models that are not comparable.

    Rows with the best pooled AUC are first or, of a number, those with the best Spearman's correlation.

    `classes` has the number of patients of each of more than two classes, and AUCs are then means over classes of each
    against the rest; it is None with two, of which `positives` are positive.
    """

    rows: list[Row]
    reference: str
    patients: int
    positives: int
    diverged: list[str]
    classes: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a JSON file."""
        plain = asdict(self)
        if self.classes is None:
            del plain["classes"]
        for row in plain["rows"]:
            if row["scores"] is None:
                del row["scores"]
        return plain

    @property
    def predicts_number(self) -> bool:
        """Whether the models predict a number."""
        return any(row.scores is not None for row in self.rows)


@dataclass(frozen=True)
class _Model:
    """Predictions and costs of one label, by seed."""

    entries: list[Entry]
    # of each seed the pooled probability of the positive class (N,) or those of more than two classes (N, Y), patients
    # in one order for all models
    p_S: np.ndarray
    fold_aucs: list[list[float]]
    costs: list[dict[str, Any]]
    search: SearchSummary | None
    scored: ScoredModel | None = None


def build_leaderboard(inputs: RunInputs, trained: Sequence[TrainedEntry]) -> Leaderboard:
    """Reads the test predictions of every model's folds and compares the models.

    Raises:
        RunError: the reference diverged in a fold, or all models did.
    """
    by_label: dict[str, list[TrainedEntry]] = {}
    for one in trained:
        by_label.setdefault(one.entry.label, []).append(one)
    lost = [label for label, of in by_label.items() if any(one.is_diverged for one in of)]
    compare = inputs.config.compare
    reference = reference_of(compare.reference if compare else None, [one.entry for one in trained])
    if reference in lost:
        raise RunError(
            f"{reference}, the reference, diverged in a fold: lower its train.lr, or choose another reference"
        )
    y_N, true_N, models = _read(inputs, {label: of for label, of in by_label.items() if label not in lost})
    rows = _rows(y_N, models, reference, inputs.config.folds.seed)
    scored = {label: model.scored for label, model in models.items() if model.scored is not None}
    if true_N is not None:
        scores = score_summaries(true_N, scored, reference, inputs.config.folds.seed)
        rows = [replace(row, scores=scores[label]) for row, label in zip(rows, models, strict=True)]
    rows.sort(key=lambda row: -row.headline.pooled)
    names = inputs.cohort.classes
    if len(names) == 2:
        return Leaderboard(rows, reference, len(y_N), int(y_N.sum()), lost)
    counts = {name: int((y_N == y).sum()) for y, name in enumerate(names)}
    return Leaderboard(rows, reference, len(y_N), 0, lost, counts)


def _read(
    inputs: RunInputs, by_label: Mapping[str, Sequence[TrainedEntry]]
) -> tuple[np.ndarray, np.ndarray | None, dict[str, _Model]]:
    """Reads the predictions of all folds, pooled by patient, the folds' AUCs and their costs.

    Returns:
        The patients' classes, of a regression their numbers, and the models by label.
    """
    classes = inputs.cohort.classes
    number = {name: y for y, name in enumerate(classes)}
    columns: str | list[str] = f"p_{classes[1]}" if len(classes) == 2 else [f"p_{name}" for name in classes]
    models: dict[str, _Model] = {}
    y, true_N = pd.Series(dtype=np.int64), None
    for label, of_label in by_label.items():
        pooled, aucs, costs = [], [], []
        scores: list[np.ndarray] = []
        of_folds: dict[str, list[list[float]]] = {name: [] for name in SCORE_METRICS}
        for one in of_label:
            folders = [folder for folder in one.folders.values() if folder is not None]
            tables = [storage.read_table(folder.test_predictions) for folder in folders]
            by_patient = pd.concat(tables).sort_values(["patient_id", "fold"]).groupby("patient_id", sort=True)
            pooled.append(by_patient[columns].mean().to_numpy())
            y = by_patient["label"].first().map(number)
            results = [storage.read_json(folder.result) for folder in folders]
            aucs.append([float(result["test_scores"]["auc"]) for result in results])
            if SCORE in tables[0].columns:
                true_N = by_patient[TRUE_SCORE].first().to_numpy(dtype=np.float64)
                scores.append(by_patient[SCORE].mean().to_numpy(dtype=np.float64))
                for name, values in of_folds.items():
                    values.append([float(result["test_scores"][name]) for result in results])
            costs += [storage.read_json(folder.cost) for folder in folders]
        entries = [one.entry for one in of_label]
        scored = ScoredModel(np.stack(scores), of_folds) if scores else None
        models[label] = _Model(entries, np.stack(pooled), aucs, costs, _search_summary(of_label, inputs), scored)
    return y.to_numpy(dtype=np.int64), true_N, models


def _search_summary(of_label: Sequence[TrainedEntry], inputs: RunInputs) -> SearchSummary | None:
    first = of_label[0].entry
    if not first.trials:
        return None
    choices = [(one.entry, fold, choice) for one in of_label for fold, choice in one.choices.items()]
    chosen = [
        {
            "seed": entry.seed,
            "fold": fold,
            "setting": dict(entry.trials[choice.trial]),
            "score": choice.scores[choice.trial],
            "scores": list(choice.scores),
        }
        for entry, fold, choice in choices
        if choice.trial is not None
    ]
    seconds = float(np.median([choice.seconds for _, _, choice in choices]))
    return SearchSummary(len(first.trials), dict(first.search), chosen, criterion_of(inputs.config).name, seconds)


def _rows(y_N: np.ndarray, models: Mapping[str, _Model], reference: str, seed: int) -> list[Row]:
    bootstrap = paired_bootstrap(y_N, {label: list(model.p_S) for label, model in models.items()}, seed)
    labels = list(models)
    averaged = _by_delong(y_N, list(models.values()))
    differences: dict[str, Difference] = {}
    for label in labels:
        if label == reference:
            continue
        by_delong: tuple[float | None, Interval | None, float | None] = (None, None, None)
        if averaged is not None:
            by_delong = averaged.difference(labels.index(label), labels.index(reference))
        differences[label] = Difference(*by_delong, *bootstrap.difference(label, reference))
    corrected = zip(
        holm_of_known([d.delong_p for d in differences.values()]),
        holm_of_known([d.bootstrap_p for d in differences.values()]),
        strict=True,
    )
    for label, (delong_p, bootstrap_p) in zip(list(differences), corrected, strict=True):
        plain = asdict(differences[label])
        differences[label] = Difference(**plain | {"delong_p_holm": delong_p, "bootstrap_p_holm": bootstrap_p})
    return [
        _row(model, bootstrap.value[label], bootstrap.interval(label), differences.get(label))
        for label, model in models.items()
    ]


def _by_delong(y_N: np.ndarray, models: Sequence[_Model]) -> DeLongResult | None:
    """Computes the models' AUCs, of their predictions averaged over seeds; None for patients whom DeLong is not for."""
    if models[0].p_S.ndim > 2 or np.bincount(y_N, minlength=2).min() < 2:
        return None
    return delong(y_N, np.stack([model.p_S.mean(axis=0) for model in models]))


def _row(model: _Model, pooled: float, interval: Interval | None, difference: Difference | None) -> Row:
    first, values = model.entries[0], np.array(model.fold_aucs)
    memory = [cost["peak_memory_bytes"] for cost in model.costs]

    def median(key: str) -> float:
        return float(np.median([cost[key] for cost in model.costs]))

    return Row(
        name=first.name,
        label=first.label,
        model=first.model,
        own=dict(first.own),
        label_fraction=first.label_fraction,
        omics_fraction=first.omics_fraction,
        seeds=[entry.seed for entry in model.entries],
        fold_aucs=model.fold_aucs,
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if values.size > 1 else None,
        pooled=pooled,
        interval=interval,
        difference=difference,
        parameters=median("parameters"),
        training_seconds=median("training_seconds"),
        prediction_seconds_per_bag=median("prediction_seconds_per_bag"),
        peak_memory_bytes=None if None in memory else float(np.median(memory)),
        search=model.search,
    )
