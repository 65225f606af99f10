"""Explains one bag by its models: reads it, averages the models, and writes a CSV for each of its slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from momkd_ray import storage
from momkd_ray.bags.shared_bags import join_bags
from momkd_ray.batches.collate import collate
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag
from momkd_ray.heatmap.images import PictureFaultError, open_image
from momkd_ray.heatmap.patches import (
    SCALED,
    SlideSummary,
    level0_size,
    patch_table,
    positions,
    tile_size,
    write_csv,
)
from momkd_ray.heatmap.sources import BagToExplain, Source
from momkd_ray.input_faults import Fault, FileFaultError
from momkd_ray.model.bundle import BundleCard, load_bundle
from momkd_ray.model.explain import Explanation, explain
from momkd_ray.model.gatv2 import reads_graph
from momkd_ray.model.interface import MILModel
from momkd_ray.predict.trained_features import check_trained_features


@dataclass(frozen=True)
class HeatmapOptions:
    """The options of heatmaps: slides, pictures, and sizes of patches.

    Attributes:
        out: the folder of everything that is written.
        images: the picture of each slide that has one.
        mpp: micrometres per level-0 pixel; None takes it from the slide.
        tile_px: edge of a patch in level-0 pixels; None takes it from the feature file.
        top: patches that are cut out for each slide and map, and for each component.
        only: the only slides to write; all if empty.
    """

    out: str
    images: dict[str, str]
    mpp: float | None
    tile_px: float | None
    top: int
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplainedSlide:
    """What is needed to draw a slide whose CSV has been written.

    Attributes:
        summary: of the slide.
        contribution: the 99th percentile of the absolute contributions, times patches; 0 if there is none.
        best: the patches most similar to each component: `slide_id, model, component_class, component, similarity, x,
            y, tile_px` and `attention_per_mean_patch`.
        counts: patches of each component: `model, component_class, component, patches`.
    """

    summary: SlideSummary
    contribution: float
    best: pd.DataFrame
    counts: pd.DataFrame


@dataclass(frozen=True)
class ExplainedBag:
    """The slides of a bag that were explained, and the faults of those that cannot be shown."""

    slides: tuple[ExplainedSlide, ...]
    faults: tuple[Fault, ...]


def explain_bag(bag: BagToExplain, source: Source, options: HeatmapOptions) -> ExplainedBag:
    """Explains a bag and writes `<slide>.csv` for each of its slides.

    A slide that cannot be read is no part of the bag, as in a prediction.

    Raises:
        InputError: the model cannot be shown; the sentence says why.
    """
    loaded = _load(bag.models)
    needs_graph = any(reads_graph(model) for _, model, _ in loaded)
    slides: list[Bag] = []
    faults: list[Fault] = []
    places = dict(zip(bag.slides, bag.paths or [source.location] * len(bag.slides), strict=True))
    for slide_id, path in places.items():
        try:
            slide = source.read(slide_id, path, needs_graph=needs_graph)
            if source.store is None:  # a run's own slides are those that its models belong to
                check_trained_features(slide, path, [card for _, _, card in loaded])
            slides.append(slide)
        except FileFaultError as error:
            faults.append(Fault("slide", slide_id, error.problem, path, str(error)))
    if not slides:
        return ExplainedBag((), tuple(faults))
    explained = _mean([_explain(model, location, join_bags(bag.bag_id, slides)) for location, model, _ in loaded])
    card = loaded[0][2]
    probabilities = np.mean(explained.probabilities, axis=0)
    results: list[ExplainedSlide] = []
    start = 0
    for slide in slides:
        end = start + slide.n_patches
        if not options.only or slide.slide_id in options.only:
            part = explained.patches(start, end)
            try:
                results.append(_write_slide(slide, part, explained.total, probabilities, bag, card, options))
            except FileFaultError as error:
                where = error.path if isinstance(error, PictureFaultError) else places[slide.slide_id]
                faults.append(Fault("slide", slide.slide_id, error.problem, where, str(error)))
        start = end
    return ExplainedBag(tuple(results), tuple(faults))


@dataclass(frozen=True)
class _Mean:
    """The mean of several models' explanations, and the probabilities of the classes by each."""

    explanation: Explanation
    probabilities: list[list[float]]

    @property
    def total(self) -> int:
        return len(self.explanation.attention_P)

    def patches(self, start: int, end: int) -> Explanation:
        e = self.explanation
        return replace(
            e,
            attention_P=e.attention_P[start:end],
            contribution_PY=e.contribution_PY[start:end],
            component_P=None if e.component_P is None else e.component_P[start:end],
            similarity_P=None if e.similarity_P is None else e.similarity_P[start:end],
        )


def _mean(explanations: Sequence[Explanation]) -> _Mean:
    """Averages attention and contributions; components only one model has, since each model's memory is its own."""
    one = len(explanations) == 1
    first = explanations[0]
    mean = Explanation(
        logits_Y=np.mean([e.logits_Y for e in explanations], axis=0),
        attention_P=np.mean([e.attention_P for e in explanations], axis=0),
        contribution_PY=np.mean([e.contribution_PY for e in explanations], axis=0),
        component_P=first.component_P if one else None,
        similarity_P=first.similarity_P if one else None,
        components=first.components if one else 0,
    )
    return _Mean(mean, [_probabilities(e.logits_Y) for e in explanations])


def _probabilities(logits_Y: np.ndarray) -> list[float]:
    if len(logits_Y) == 2:
        positive = float(1 / (1 + np.exp(float(logits_Y[0]) - float(logits_Y[1]))))
        return [1 - positive, positive]
    odds_Y = np.exp(logits_Y.astype(np.float64) - float(logits_Y.max()))
    return [float(p) for p in odds_Y / odds_Y.sum()]


def _explain(model: MILModel, location: str, bag: Bag) -> Explanation:
    import torch

    with torch.no_grad():
        readout = model.readout(collate([bag], graph=reads_graph(model)))
    if readout is None:
        raise InputError(
            f"{location} is a model of type {model.model_config.name}, which has no attention over patches to draw: "
            "give a model such as momkd, abmil, clam_sb, dsmil, dtfd_mil, wikg or acmil"
        )
    return explain(readout)


@cache
def _load(models: tuple[str, ...]) -> list[tuple[str, MILModel, BundleCard]]:
    """Loads the models once in each process; a new call is a new process or clears them."""
    _load.cache_clear()
    return [(location, *load_bundle(location)) for location in models]


def forget_models() -> None:
    """Forgets loaded models: in the next call, others may lie at the same locations."""
    _load.cache_clear()


def _write_slide(
    slide: Bag,
    part: Explanation,
    patches_of_bag: int,
    probabilities: np.ndarray,
    bag: BagToExplain,
    card: BundleCard,
    options: HeatmapOptions,
) -> ExplainedSlide:
    image = open_image(options.images[slide.slide_id]) if slide.slide_id in options.images else None
    mpp = options.mpp or (image.mpp if image is not None else None)
    xy_P2 = positions(slide, mpp)
    edge, edge_from = tile_size(slide, xy_P2, mpp, options.tile_px)
    size = image.size if image is not None and image.size is not None else level0_size(slide.provenance)
    if image is not None:
        _check_place(options.images[slide.slide_id], slide.slide_id, xy_P2, size)
    several = tuple(map(float, probabilities)) if len(card.classes) > 2 else None
    summary = SlideSummary(
        slide_id=slide.slide_id,
        patient_id=bag.patient_id,
        model=bag.model_name,
        probability=float(probabilities[1] if several is None else probabilities.max()),
        label=card.label,
        classes=card.classes,
        tile_px=edge,
        tile_from=edge_from,
        components=part.components,
        level0_size=size,
        probabilities=several or (),
    )
    table = patch_table(xy_P2, part, card.classes, patches_of_bag)
    write_csv(storage.join(options.out, f"{slide.slide_id}.csv"), table)
    scaled = table[[f"{SCALED}{name}" for name in card.classes]].to_numpy()
    known = np.abs(scaled[np.isfinite(scaled)])
    contribution = float(np.percentile(known, 99)) if known.size else 0.0
    best, counts = _components(table, summary, options.top)
    return ExplainedSlide(summary, contribution, best, counts)


def _check_place(picture: str, slide_id: str, xy_P2: NDArray[np.float64], size: tuple[int, int] | None) -> None:
    """Refuses a picture of an unknown scale, or of another slide or scale, on which patches would lie outside."""
    if size is None:
        raise PictureFaultError(
            "missing value",
            picture,
            f"{picture} is a picture of slide {slide_id} at an unknown scale: its feature file does not state the "
            "slide's level0_width and level0_height; give the slide itself",
        )
    right, bottom = xy_P2.max(axis=0).tolist()
    width, height = size
    if right > width or bottom > height:
        raise PictureFaultError(
            "misshapen",
            picture,
            f"{picture} is {width} x {height} level-0 pixels, but slide {slide_id} has a patch at x {right:g}, "
            f"y {bottom:g}: give the picture of this slide",
        )


def _components(table: pd.DataFrame, summary: SlideSummary, top: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the `top` patches nearest to each component, and each component's number of patches."""
    keys = ["component_class", "component"]
    if "component" not in table.columns:
        return pd.DataFrame(), pd.DataFrame()
    columns = [*keys, "similarity", "x", "y", "attention_per_mean_patch"]
    nearest = table[columns].sort_values("similarity", ascending=False, kind="stable")
    best = nearest.groupby(keys, sort=True).head(top)
    names: dict[str, Any] = {"slide_id": summary.slide_id, "model": summary.model}
    counts = table.groupby(keys, sort=True).size().rename("patches").reset_index()
    return best.assign(**names, tile_px=summary.tile_px), counts.assign(**names)
