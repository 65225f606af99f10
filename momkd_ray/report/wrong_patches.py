"""Error review: which patches spoke most for the most confident wrong calls, from the run's bag store.

Shapes: P patches of a bag, Y classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from momkd_ray import storage
from momkd_ray.bags.shared_bags import join_bags
from momkd_ray.bags.store import BagStore
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.bag import Bag
from momkd_ray.report.drawings import MUTED, VERMILLION, Drawing, short
from momkd_ray.report.finished_run import FinishedRun

if TYPE_CHECKING:
    from momkd_ray.model.interface import MILModel

MOST_SLIDES = 4  # wrong calls whose patches are shown
MOST_PATCHES = 5  # of each
_RASTER = 48  # cells along the longer side of a map
_SAME = 0.05  # by which a probability may differ from the run's, which may have computed in bf16 on another device
_ATTENTION_RANGE = 16.0


@dataclass(frozen=True, eq=False)
class WrongSlide:
    """The patches of one wrongly called bag that spoke most for the wrong class.

    Attributes:
        title: patient, slide, true and called class with its probability.
        header, rows: of the table of patches.
        drawing: a small map of the attention; None if the feature file had no coordinates.
    """

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]
    drawing: Drawing | None


@dataclass(frozen=True, eq=False)
class PatchReview:
    """The reviewed bags, and a sentence on those that could not be shown ('' if all could)."""

    slides: list[WrongSlide]
    note: str


def review_patches(run: FinishedRun, wrong: pd.DataFrame) -> PatchReview:
    """Shows the patches with the highest contribution to the wrong class in the most confident wrong calls.

    What is missing for it, as a bag store that was removed since, is said in the note and does not fail the page.

    Args:
        run: the finished run.
        wrong: `patient_id, fold, label, predicted` of the wrong calls, the most confident first.
    """
    if wrong.empty or run.slides.empty:
        return PatchReview([], "")
    try:
        store = BagStore.open(Config.model_validate(run.tree).store_uri)
    except ValueError:
        return PatchReview([], "Patches are not shown: this version does not read the run's run.yaml.")
    except (InputError, RunError, OSError) as error:
        return PatchReview([], _because(error))
    model_of = cache(partial(_load_model, run))
    shown: list[WrongSlide] = []
    for call in wrong.head(MOST_SLIDES).to_dict("records"):
        try:
            shown.append(_review(run, store, model_of, call, len(shown) + 1))
        except (InputError, RunError, OSError) as error:
            return PatchReview(shown, _because(error))
    return PatchReview(shown, "")


def _because(error: Exception) -> str:
    return f"Patches of further calls are not shown: {' '.join(str(error).split())}"


def _review(
    run: FinishedRun, store: BagStore, model_of: Callable[[int], MILModel], call: dict[Any, Any], rank: int
) -> WrongSlide:
    fold, truth, called = int(call["fold"]), str(call["label"]), str(call["predicted"])
    own = run.slides[(run.slides["patient_id"] == call["patient_id"]) & (run.slides["fold"] == fold)]
    row = own.iloc[int((own[f"p_{called}"] - own[f"p_{truth}"]).to_numpy(dtype=float).argmax())]
    bag_id, p_called = str(row["slide_id"]), float(row[f"p_{called}"])
    names = bag_id.split(", ") if run.section("cohort").get("bag") == "patient" else [bag_id]
    absent = [name for name in names if name not in store.entries]
    if absent:
        raise InputError(f"{store.uri} no longer holds slide {absent[0]}")
    bags = [store.read(name) for name in names]
    attention_P, evidence_P = _explained(
        model_of(fold), bags, [run.classes.index(name) for name in (truth, called)], p_called
    )
    patches = _patch_table(bags, attention_P, evidence_P)
    best = patches.nlargest(MOST_PATCHES, "contribution", keep="first")
    best["rank"] = range(1, len(best) + 1)
    title = f"Patient {call['patient_id']}, {_slides_of(names)}: truly {truth}, called {called} ({p_called:.3f})"
    unit = "µm" if bags[0].provenance.get("coords_unit") == "nm" else "px"
    header = ("", *(["slide"] if len(names) > 1 else []), f"x, {unit}", f"y, {unit}", "attention", "contribution")
    rows = [
        [
            str(p["rank"]),
            *([p["slide"]] if len(names) > 1 else []),
            *(f"{p[axis]:,.0f}" if np.isfinite(p[axis]) else "unknown" for axis in ("x", "y")),
            f"{p['attention']:.1f}",
            f"{p['contribution']:+.2f}",
        ]
        for p in best.to_dict("records")
    ]
    first = str(best["slide"].iloc[0])
    on_map = patches[patches["slide"] == first]
    drawing = _attention_map(rank, first, on_map, best[best["slide"] == first], (truth, called), unit)
    return WrongSlide(title, header, rows, drawing if on_map["x"].notna().all() else None)


def _slides_of(names: Sequence[str]) -> str:
    return f"slide {names[0]}" if len(names) == 1 else f"{len(names)} slides as one bag"


def _load_model(run: FinishedRun, fold: int) -> MILModel:
    from momkd_ray.model.bundle import load_bundle

    location = run.directory.fold(fold).model
    if not storage.exists(storage.join(location, "model.json")):
        raise InputError(f"{location} holds no model any more")
    return load_bundle(location)[0]


def _explained(
    model: MILModel, bags: Sequence[Bag], pair: Sequence[int], p_called: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns attention (P,) and contribution (P,) to the called class's logit minus the true one's, times patches.

    Args:
        model: of the fold.
        bags: the slides of the bag.
        pair: numbers of the true and the called class.
        p_called: the called class's probability when it was tested.

    Raises:
        InputError: the model has no attention, or the bag is no longer the one that was tested.
    """
    import torch

    from momkd_ray.batches.collate import collate
    from momkd_ray.model.explain import explain
    from momkd_ray.model.gatv2 import reads_graph

    bag = join_bags("reviewed", list(bags))
    if (width := bag.features.shape[1]) != model.width:
        raise InputError(f"the bag store holds features of width {width} now, and the model reads {model.width}")
    with torch.no_grad():
        readout = model.readout(collate([bag], graph=reads_graph(model)))
    if readout is None:
        raise InputError(f"{model.model_config.name} has no attention over patches")
    explained = explain(readout)
    truth, called = pair
    odds_Y = np.exp(explained.logits_Y.astype(np.float64) - float(explained.logits_Y.max()))
    if abs(float(odds_Y[called] / odds_Y.sum()) - p_called) > _SAME:
        raise InputError("the bag store holds other features now than those that were tested")
    count = np.float32(len(explained.attention_P))
    contribution_P = (explained.contribution_PY[:, called] - explained.contribution_PY[:, truth]) * count
    return explained.attention_P * count, contribution_P


def _patch_table(bags: Sequence[Bag], attention_P: np.ndarray, evidence_P: np.ndarray) -> pd.DataFrame:
    parts = []
    for bag in bags:
        xy_P2 = np.full((bag.n_patches, 2), np.nan) if bag.coords is None else bag.coords.astype(np.float64)
        if bag.provenance.get("coords_unit") == "nm":
            xy_P2 = xy_P2 / 1000
        parts.append(pd.DataFrame({"slide": bag.slide_id, "x": xy_P2[:, 0], "y": xy_P2[:, 1]}))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(attention=attention_P, contribution=np.nan_to_num(evidence_P))


def _attention_map(
    rank: int, slide: str, patches: pd.DataFrame, best: pd.DataFrame, pair: tuple[str, str], unit: str
) -> Drawing:
    """Draws the mean attention over a coarse raster, with the listed patches as numbers."""
    x_P, y_P = patches["x"].to_numpy(), patches["y"].to_numpy()
    cell = max(np.ptp(x_P) / _RASTER, np.ptp(y_P) / _RASTER, _stride(x_P, y_P))
    edges = [np.arange(v.min() - cell / 2, v.max() + cell, cell) for v in (y_P, x_P)]
    total = np.histogram2d(y_P, x_P, edges, weights=patches["attention"].to_numpy())[0]
    count = np.histogram2d(y_P, x_P, edges)[0]
    mean = total / np.where(count > 0, count, np.nan)

    def draw() -> Figure:
        height, width = (edge[-1] - edge[0] for edge in edges)
        figure = Figure(figsize=(3.6, min(4.2, max(1.8, 2.8 * height / width + 0.6))))
        axes = figure.subplots()
        image = axes.imshow(
            np.ma.masked_invalid(mean),
            cmap="cividis",
            norm=LogNorm(1 / _ATTENTION_RANGE, _ATTENTION_RANGE, clip=True),
            extent=(edges[1][0], edges[1][-1], edges[0][-1], edges[0][0]),
            interpolation="nearest",
        )
        for place, x, y in zip(best["rank"], best["x"], best["y"], strict=True):
            axes.plot([x], [y], "o", markersize=11, markerfacecolor="white", markeredgecolor=VERMILLION, clip_on=False)
            axes.text(x, y, str(place), ha="center", va="center_baseline", fontsize=8, color="black")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[1 / _ATTENTION_RANGE, 1, _ATTENTION_RANGE])
        bar.ax.set_yticklabels([f"1/{_ATTENTION_RANGE:.0f}", "1", f"{_ATTENTION_RANGE:.0f}"])
        bar.set_label("attention, times the mean")
        bar.ax.minorticks_off()
        bar.ax.tick_params(colors=MUTED)
        return figure

    rows, columns = np.nonzero(count)
    data = pd.DataFrame(
        {
            f"x ({unit})": edges[1][columns] + cell / 2,
            f"y ({unit})": edges[0][rows] + cell / 2,
            "patches": count[rows, columns].astype(int),
            "mean_attention": mean[rows, columns],
        }
    )
    truth, called = pair
    alt = f"Attention over slide {slide}, truly {truth} and called {called}; its first patches are numbered"
    caption = f"Slide {short(slide)}: mean attention, 1 is the average patch. The numbers are the rows of the table."
    return Drawing(f"wrong-call-{rank}", caption, alt, draw, data)


def _stride(*axes: np.ndarray) -> float:
    """Returns the usual distance of rows or columns of patches, the smaller of the two; 1 if there is one patch."""
    gaps = [np.diff(np.unique(axis)) for axis in axes]
    return min((float(np.median(of_axis)) for of_axis in gaps if len(of_axis)), default=1.0)
