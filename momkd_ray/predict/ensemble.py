"""Predicts the slides of a folder from histology alone, by one model or the mean of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.shared_bags import join_bags
from momkd_ray.batches.collate import collate
from momkd_ray.cohort.patient_mean import patient_mean
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import REJECTED, Fault, FileFaultError, OnError, raise_faults
from momkd_ray.model.bundle import BundleCard, load_bundle
from momkd_ray.model.expected_score import SCORE
from momkd_ray.model.gatv2 import reads_graph
from momkd_ray.predict.known_patients import count_training, training_note
from momkd_ray.predict.labels import classes_of_patients, metrics_of, metrics_sentence
from momkd_ray.predict.left_out import LeftOutSlides, inputs_checked, without_counterpart
from momkd_ray.predict.score_labels import numbers_of_patients, score_metrics_of, score_sentence
from momkd_ray.predict.slides import SlidesOfPatients, group_bags, list_slides, match_patients, open_slides
from momkd_ray.predict.trained_features import check_trained_features
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import connect_if_worth, work_on_files

BAGS_PER_CHUNK = 4
SECONDS_A_MB_AND_MODEL = 0.01  # of prediction on one CPU, by the larger of the two networks


class Ensemble:
    """Models in memory that predict bags together.

    Args:
        models: locations of the bundles.
        device: of PyTorch, such as `cpu` or `cuda`.
    """

    def __init__(self, models: Sequence[str], device: str) -> None:
        import torch

        self.device = torch.device(device)
        loaded = [load_bundle(location) for location in models]
        self.models = [model.to(self.device) for model, _ in loaded]
        self.graph = any(map(reads_graph, self.models))
        self.cards = [card for _, card in loaded]
        self.card = self.cards[0]

    def predict(self, bag_id: str, slides: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
        """Predicts a bag of one or more feature files.

        Args:
            bag_id: name of the bag.
            slides: names of its slides.
            paths: their feature files.

        Returns:
            `bag_id`; `p`, the mean probability of the positive class or, of more than two classes, the list of those of
            all; None if no file can be used; `members`, that of each model; `faults` of the files that cannot, and the
            `formats` of the others; of a regression also `score`, the mean of the models' expected numbers.
        """
        bags: list[Bag] = []
        faults: list[Fault] = []
        for slide_id, path in zip(slides, paths, strict=True):
            try:
                bags.append(self._bag(slide_id, path))
            except FileFaultError as error:
                faults.append(Fault("slide", slide_id, error.problem, path, str(error)))
        p: float | list[float] | None = None
        members: list[Any] = []
        if bags:
            batch = collate([join_bags(bag_id, bags)], device=self.device, graph=self.graph).to(self.device)
            predicted = [model.predict(batch)[0][0] for model in self.models]
            if len(self.card.classes) == 2:
                members = [float(p_Y[1]) for p_Y in predicted]
                p = sum(members) / len(members)
            else:
                members = [p_Y.tolist() for p_Y in predicted]
                p = [sum(own) / len(own) for own in zip(*members, strict=True)]
        formats = [bag.provenance["format"] for bag in bags]
        row: dict[str, Any] = {"bag_id": bag_id, "p": p, "members": members, "faults": faults, "formats": formats}
        expected = [card.expected_score for card in self.cards if card.expected_score is not None]
        if expected:
            scores = [float(own.of([p_Y])[0]) for own, p_Y in zip(expected, members, strict=False)]
            row[SCORE] = sum(scores) / len(scores) if scores else None
        return row

    def _bag(self, slide_id: str, path: str) -> Bag:
        bag = read_bag(path, slide_id, Recipe(self.card.neighbors, self.card.graph), self.card.width)
        check_trained_features(bag, path, self.cards)
        return bag


@cache
def _ensemble(models: tuple[str, ...], device: str, call: str) -> Ensemble:
    """Loads the models once in each process and call; in another call, other models may lie at the same locations."""
    _ensemble.cache_clear()
    return Ensemble(models, device)


def _predict_bag(bag: dict[str, Any], models: tuple[str, ...], device: str, call: str) -> dict[str, Any]:
    return _ensemble(models, device, call).predict(**bag)


def predict_folder(
    models: Sequence[str],
    features: str,
    out: str,
    progress: ProgressReporter,
    *,
    slides: str | None,
    gpus: float,
    by_patient: bool = False,
    on_error: OnError = "stop",
    patient_column: str | None = None,
    slide_column: str | None = None,
) -> pd.DataFrame:
    """Predicts every feature file of a folder and writes the table.

    Args:
        models: locations of bundles; their probabilities and thresholds are averaged.
        features: the folder, local or `s3://`.
        out: a `.csv` or `.parquet` file.
        progress: receives the count of bags and notes.
        slides: a table of patients and slides, as `cohort.slides`; without it every slide is its own patient.
        gpus: number of GPUs of each task; it may be a fraction.
        by_patient: one row per patient, the mean of its slides, instead of one row per slide.
        on_error: whether bad feature files end it or are left out; all are listed in `<out>.rejected.csv`, and so are
            slides without a row and rows without a feature file, which never end it.
        patient_column: the column of patients in the table of slides; by default it is recognised.
        slide_column: that of slides; by default it is recognised.

    Returns:
        The written table: `slide_id` (not if by patient), `patient_id`, `p_<class>` of each, `predicted`, of a
        regression `score` and, if the bundles tell, `trained_on`, the number of models that learnt from the patient. If
        the table of slides has the label, `<out>.metrics.json` is written, too.

    Raises:
        InputError: a model or feature file is bad, or a model reads patients' bags and no table of slides is given.
    """
    if not out.endswith((".csv", ".parquet")):
        raise InputError(f"--out {out}: write to a .csv or a .parquet file")
    cards = check_ensemble(models)
    joint = reads_patients(models[0], cards[0], slides)
    files, opened = list_slides(features), open_slides(slides, patient_column, slide_column)
    total = inputs_checked(len(files), slides)
    table, patients, unmatched = match_patients(opened, files, features)
    left_out = LeftOutSlides(f"{out}.{REJECTED}", on_error)
    left_out.add_rows(unmatched, total, some_left=bool(patients))
    for sentence in (*(opened.told if opened else ()), *without_counterpart(unmatched, slides, "not predicted")):
        progress.info(sentence)
    if not patients:
        raise_faults(unmatched, total, left_out.rejected)
    table = table[table["slide_id"].isin(list(patients))]
    bags = group_bags(table, patients, joint=joint)
    result = _predict_all(bags, models, gpus, cards[0], left_out, total, progress)
    named = count_training(named_predictions(result, cards, by_patient=by_patient or joint), cards)
    _write(named, out)
    metrics = _write_metrics(result, cards, opened, out)
    for told in filter(None, (training_note(named, len(cards)), metrics)):
        progress.info(told)
    return named


def _predict_all(
    bags: pd.DataFrame,
    models: Sequence[str],
    gpus: float,
    card: BundleCard,
    left_out: LeftOutSlides,
    total: str,
    progress: ProgressReporter,
) -> pd.DataFrame:
    """Predicts bags, and adds `p` to those that can be predicted; records the faults of the others."""
    rows: list[dict[str, Any]] = []
    for row in predict_bags(bags, models, gpus):
        rows.append(row)
        progress.update("predict", len(rows), len(bags), "bags")
    for sentence in other_formats(rows, card):
        progress.info(sentence)
    bad_files = [fault for row in rows for fault in row["faults"]]
    left_out.add_files(bad_files, total, some_left=any(row["p"] is not None for row in rows))
    if told := left_out.sentence():
        progress.info(told)
    result = pd.DataFrame(rows, columns=["bag_id", "p", SCORE, "faults"]).dropna(subset=["p"])
    return result.merge(bags, on="bag_id").sort_values("bag_id").reset_index(drop=True)


def metrics_location(out: str) -> str:
    """Returns where the metrics of predictions are written, if their table of slides has the label."""
    return f"{out}.metrics.json"


def _write_metrics(
    result: pd.DataFrame,
    cards: Sequence[BundleCard],
    opened: SlidesOfPatients | None,
    out: str,
) -> str | None:
    """Writes the metrics of the patients that have a label; returns what to say of them, None without labels."""
    location = metrics_location(out)
    storage.delete(location)  # of an earlier prediction
    if opened is None:
        return None
    frame, column = opened.frame, opened.patient_column
    patients = count_training(named_predictions(result, cards, by_patient=True), cards)
    if cards[0].expected_score is not None:
        numbers = numbers_of_patients(frame, column, cards[0].label)
        if numbers is None:
            return None
        content = score_metrics_of(patients, numbers[0], cards[0].label)
        storage.write_json(location, content)
        return score_sentence(content, numbers[1], opened.path, location)
    labels = classes_of_patients(frame, column, cards[0])
    if labels is None:
        return None
    content = metrics_of(patients, labels[0], cards[0], mean_threshold(cards))
    storage.write_json(location, content)
    return metrics_sentence(content, labels[1], opened.path, location)


def mean_threshold(cards: Sequence[BundleCard]) -> float | None:
    """Returns the threshold of an ensemble; None with more than two classes, of which the likeliest is predicted."""
    thresholds = [card.threshold for card in cards if card.threshold is not None]
    return sum(thresholds) / len(thresholds) if thresholds else None


def _write(table: pd.DataFrame, out: str) -> None:
    with storage.atomic_writer(out) as stream:
        if out.endswith(".csv"):
            table.to_csv(stream, index=False)
        else:
            table.to_parquet(stream, index=False)


def predict_bags(bags: pd.DataFrame, models: Sequence[str], gpus: float) -> Iterator[dict[str, Any]]:
    """Yields what `Ensemble.predict` returns for each bag of `group_bags`; with a cluster if that is sooner done."""
    rows = bags[["bag_id", "slides", "paths"]].to_dict("records")
    work = work_on_files(len(rows), float(bags["bytes"].sum()), per_mb_s=len(models) * SECONDS_A_MB_AND_MODEL)
    try:
        with connect_if_worth(work, needs_cluster=bool(gpus) and not _has_gpu()):
            yield from parallel_map(
                _predict_bag,
                rows,
                "the slides could not be predicted",
                chunk=BAGS_PER_CHUNK,
                gpus=gpus,
                models=tuple(models),
                device="cuda" if gpus else "cpu",
                call=uuid4().hex,
            )
    finally:
        _ensemble.cache_clear()  # where this process predicted


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def other_formats(rows: Sequence[Mapping[str, Any]], card: BundleCard) -> list[str]:
    """Says how many predicted files have another layout than those that the model was trained on.

    Args:
        rows: of `predict_bags`.
        card: of the model.
    """
    counts = Counter(own for row in rows for own in row["formats"] if own != card.feature_format)
    return [
        f"{number:,} feature {'file is' if number == 1 else 'files are'} of the layout {name}; the model was trained "
        f"on {card.feature_format}, with the same encoder as far as they say"
        for name, number in counts.items()
        if card.feature_format
    ]


def check_ensemble(models: Sequence[str]) -> list[BundleCard]:
    """Reads the cards of models, and checks that the models can predict together.

    Raises:
        InputError: no model is given, one is damaged or needs omics, or two differ in their features or classes.
    """
    if not models:
        raise InputError("no model is given: name the folder of a bundle, such as runs/pr/fold=0/model")
    loaded = [load_bundle(location) for location in models]
    cards = [card for _, card in loaded]
    for location, (model, card) in zip(models, loaded, strict=True):
        if model.needs_omics_to_predict:
            raise InputError(
                f"{location} is a model of type {card.model.name}, which needs omics to predict and serves comparisons "
                "only: give models that predict from histology alone"
            )
        for name in ("label", "classes", "width", "neighbors", "graph", "bag", "encoder"):
            own, first = getattr(card, name), getattr(cards[0], name)
            if own != first:
                raise InputError(
                    f"{location} has {name} {own}, but {models[0]} has {first}: they cannot predict together; predict "
                    "with each alone"
                )
        if (card.expected_score is None) != (cards[0].expected_score is None):
            number, other = (location, models[0]) if card.expected_score is not None else (models[0], location)
            raise InputError(
                f"{number} predicts a number and {other} classes: they cannot predict together; predict with each alone"
            )
    return cards


def reads_patients(model: str, card: BundleCard, slides: str | None) -> bool:
    """Returns whether the models read all slides of a patient as one bag.

    Args:
        model: location of the first of them.
        card: its card.
        slides: the table of patients and slides, which such models need.

    Raises:
        InputError: they do, and there is no table.
    """
    joint = card.bag == "patient"
    if joint and slides is None:
        raise InputError(
            f"{model} reads all slides of a patient as one bag (cohort.bag: patient), so it needs the patient of each "
            "slide: give --slides with a table of patients and slides"
        )
    return joint


def named_predictions(bags: pd.DataFrame, cards: Sequence[BundleCard], *, by_patient: bool) -> pd.DataFrame:
    """Returns the table of predictions with the user's class names, by the models' mean threshold.

    Of more than two classes the likeliest is predicted. Of a regression there is the column `score`, too.

    Args:
        bags: `bag_id, patient_id, p` and, of a regression, `score` as `Ensemble.predict` returns it.
        cards: of the models.
        by_patient: one row per patient, the mean of its bags, instead of one row per bag.
    """
    classes = cards[0].classes
    table = bags[["bag_id", "patient_id", "p"]].rename(columns={"bag_id": "slide_id"})
    if len(classes) > 2:
        columns = [f"p_{name}" for name in classes]
        table[columns] = np.array(table.pop("p").tolist())
        scores = [] if cards[0].expected_score is None else [SCORE]
        for name in scores:
            table[name] = bags[name].astype(float)
        if by_patient:
            table = patient_mean(table, [*columns, *scores])
        predicted = [classes[y] for y in table[columns].to_numpy().argmax(axis=1)]
        return table[[name for name in table.columns if name != SCORE]].assign(
            predicted=predicted, **{name: table[name] for name in scores}
        )
    negative, positive = classes
    threshold = mean_threshold(cards)
    assert threshold is not None
    if by_patient:
        table = patient_mean(table, ["p"])
    p = table.pop("p")
    table[f"p_{negative}"] = 1 - p
    table[f"p_{positive}"] = p
    table["predicted"] = [positive if value >= threshold else negative for value in p]
    return table
