"""Predictions for a folder of slides from histology alone, by one model or the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.batch import collate
from momkd_ray.bags.ingest import feature_faults
from momkd_ray.bags.readers import Recipe, read_bag
from momkd_ray.cohort.tables import read_slides
from momkd_ray.errors import InputError
from momkd_ray.faults import FileFaultError
from momkd_ray.model.bundle import BundleCard, load_bundle
from momkd_ray.progress import Narrator

SLIDES_PER_BATCH = 4


class SlidePredictor:
    """A Ray Data worker that holds the models and predicts slides."""

    def __init__(self, models: Sequence[str], gpus: float) -> None:
        import torch

        self.device = torch.device("cuda" if gpus else "cpu")
        loaded = [load_bundle(location) for location in models]
        self.models = [model.to(self.device) for model, _ in loaded]
        self.card = loaded[0][1]

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows `slide_id, path` -> `slide_id`, `p` (of the positive class) and `reason` (why there is none)."""
        return pd.DataFrame([self._predict(*pair) for pair in zip(rows["slide_id"], rows["path"], strict=True)])

    def _predict(self, slide_id: str, path: str) -> dict[str, Any]:
        try:
            bag = read_bag(path, slide_id, Recipe(self.card.neighbors), self.card.width)
            encoder = bag.provenance.get("encoder")
            if self.card.encoder and encoder and encoder != self.card.encoder:
                raise FileFaultError(
                    "mixed",
                    f"{path} holds features of {encoder}, but the model was trained on {self.card.encoder}; "
                    "extract them with that encoder",
                )
        except InputError as error:
            return {"slide_id": slide_id, "path": path, "p": float("nan"), "reason": str(error)}
        batch = collate([bag]).to(self.device)
        p = sum(float(model.predict(batch)[0][0, 1]) for model in self.models) / len(self.models)
        return {"slide_id": slide_id, "path": path, "p": p, "reason": ""}


def predict_folder(
    models: Sequence[str],
    features: str,
    out: str,
    narrator: Narrator,
    *,
    slides: str | None,
    gpus: float,
    by_patient: bool = False,
) -> pd.DataFrame:
    """Predict every `.h5` file of a folder and write the table; Ray must be up.

    Args:
        models: bundles; their probabilities and thresholds are averaged.
        features: the folder, local or `s3://`.
        out: a `.csv` or `.parquet` file: slide_id, patient_id, p_<class> ..., predicted.
        by_patient: a row a patient, the mean of its slides, instead of a row a slide.
        slides: a table with PATIENT and FILENAME; without it every slide is its own patient.
        gpus: GPUs a Ray Data worker holds.

    Raises:
        InputError: bad models or feature files; the files are all listed in `<out>.rejected.csv`.
    """
    import ray

    if not out.endswith((".csv", ".parquet")):
        raise InputError(f"--out {out}: write to a .csv or a .parquet file")
    cards = check_ensemble(models)
    table = slides_of(features)
    patients = patients_of(slides, table)
    _refuse(feature_faults(table, Recipe(cards[0].neighbors)), len(table), out)
    dataset = ray.data.from_pandas(table).repartition(max(1, -(-len(table) // SLIDES_PER_BATCH)))
    have = ray.cluster_resources()
    workers = max(1, int(have.get("GPU", 0) / gpus if gpus else have.get("CPU", 0)))
    predicted = dataset.map_batches(
        SlidePredictor,
        fn_constructor_args=[list(models), gpus],
        batch_format="pandas",
        batch_size=SLIDES_PER_BATCH,
        concurrency=(1, workers),
        num_gpus=gpus,
    )
    rows: list[dict[str, Any]] = []
    for row in predicted.iter_rows():
        rows.append(row)
        narrator.count("predict", len(rows), len(table), "slides")
    _refuse([row for row in rows if row["reason"]], len(table), out)
    result = pd.DataFrame(rows).sort_values("slide_id").reset_index(drop=True)
    named = named_predictions(result["slide_id"], result["p"], patients, cards, by_patient=by_patient)
    with storage.writing(out) as stream:
        if out.endswith(".csv"):
            named.to_csv(stream, index=False)
        else:
            named.to_parquet(stream, index=False)
    return named


def check_ensemble(models: Sequence[str]) -> list[BundleCard]:
    """The cards of models that can predict together.

    Raises:
        InputError: no model, a damaged one, or two that read different features or name different classes.
    """
    if not models:
        raise InputError("no model is given: pass --model with the folder of a bundle, once for each model")
    cards = [load_bundle(location)[1] for location in models]
    for location, card in zip(models, cards, strict=True):
        for name in ("label", "classes", "width", "neighbors", "encoder"):
            ours, first = getattr(card, name), getattr(cards[0], name)
            if ours != first:
                raise InputError(
                    f"{location} has {name} {ours}, but {models[0]} has {first}: they cannot predict together"
                )
    return cards


def slides_of(features: str) -> pd.DataFrame:
    """The `.h5` files of a folder as `slide_id, path`, sorted."""
    names = [name for name in storage.names_below(features) if name.endswith(".h5") and not name.startswith(".")]
    if not names:
        raise InputError(f"{features} holds no .h5 feature files")
    return pd.DataFrame(
        {
            "slide_id": [name.removesuffix(".h5") for name in names],
            "path": [storage.join(features, n) for n in names],
        }
    )


def patients_of(slides: str | None, table: pd.DataFrame) -> dict[str, str]:
    """slide_id -> patient_id; each slide its own patient where no table is given.

    Raises:
        InputError: the table lacks a column, lists a slide twice, or has other slides than the folder.
    """
    if slides is None:
        return {slide: slide for slide in table["slide_id"]}
    known = read_slides(slides, "PATIENT", "FILENAME")
    patients = dict(zip(known["slide_id"], known["patient_id"], strict=True))
    if missing := sorted(set(table["slide_id"]) - set(patients)):
        raise InputError(f"{slides} names no patient for slide {missing[0]} ({len(missing)} such slides); add it")
    if missing := sorted(set(patients) - set(table["slide_id"])):
        raise InputError(f"{slides} lists slide {missing[0]}, which has no .h5 file ({len(missing)} such slides)")
    return patients


def named_predictions(
    slide_ids: pd.Series, p: pd.Series, patients: dict[str, str], cards: Sequence[BundleCard], *, by_patient: bool
) -> pd.DataFrame:
    """The prediction table in the user's own class names, with the models' mean threshold."""
    negative, positive = cards[0].classes
    threshold = sum(card.threshold for card in cards) / len(cards)
    table = pd.DataFrame({"slide_id": slide_ids, "patient_id": [patients[slide] for slide in slide_ids], "p": p})
    if by_patient:
        table = table.groupby("patient_id")["p"].mean().reset_index()
    p = table.pop("p")
    table[f"p_{negative}"] = 1 - p
    table[f"p_{positive}"] = p
    table["predicted"] = [positive if value >= threshold else negative for value in p]
    return table


def _refuse(faults: Sequence[dict[str, Any]], total: int, out: str) -> None:
    if not faults:
        return
    listed = pd.DataFrame(faults)[["slide_id", "path", "reason"]]
    place = f"{out}.rejected.csv"
    storage.write_text(place, listed.to_csv(index=False, lineterminator="\n"))
    raise InputError(
        f"{len(faults)} of {total} feature files cannot be used, the first: {listed['reason'].iat[0]}; "
        f"all are listed in {place}"
    )
