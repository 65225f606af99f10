"""What the memory has learnt, over a cohort: how many patches are nearest to each component, and the nearest of all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momkd_ray import storage
from momkd_ray.heatmap.colours import component_colour
from momkd_ray.heatmap.explain_bag import ExplainedSlide
from momkd_ray.heatmap.images import open_image

TILE_PX = 128  # of a cut-out patch in the picture of components
_KEYS = ["model", "component_class", "component"]


def write_components(out: str, explained: Sequence[ExplainedSlide], images: Mapping[str, str], top: int) -> list[str]:
    """Writes `components.csv`, `top_patches.csv` and a picture of the components of each model.

    Args:
        out: the folder.
        explained: every slide.
        images: the pictures of slides.
        top: patches of each component.

    Returns:
        The locations of the pictures; none if no model has a memory.
    """
    tables = [slide for slide in explained if len(slide.counts)]
    if not tables:
        return []
    counts = pd.concat([slide.counts for slide in tables])
    best = pd.concat([slide.best for slide in tables]).sort_values(
        [*_KEYS, "similarity", "slide_id"], ascending=[True] * 3 + [False, True], kind="stable"
    )
    best = best.groupby(_KEYS, sort=False).head(top)
    summary = counts.groupby(_KEYS, sort=True).agg(patches=("patches", "sum"), slides=("slide_id", "nunique"))
    summary["share"] = summary["patches"] / summary.groupby("model")["patches"].transform("sum")
    _write(storage.join(out, "components.csv"), summary.reset_index())
    _write(storage.join(out, "top_patches.csv"), best[[*_KEYS, "slide_id", "x", "y", "tile_px", "similarity"]])
    pictures = []
    for model, of_model in best.groupby("model", sort=True):
        shown = next(slide.summary for slide in tables if slide.summary.model == model)
        location = storage.join(out, f"components {_file_name(str(model))}.png")
        shares = summary["share"].xs(str(model), level="model")
        figure = _figure(of_model, shares, shown.classes, shown.components, images, f"{shown.label}, {model}", top)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        storage.write_bytes(location, stream.getvalue())
        pictures.append(location)
    return pictures


def _write(location: str, table: pd.DataFrame) -> None:
    with storage.atomic_writer(location) as stream:
        table.to_csv(stream, index=False)


def _file_name(model: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in model)


def _figure(
    best: pd.DataFrame,
    shares: pd.Series[float],
    classes: tuple[str, ...],
    components: int,
    images: Mapping[str, str],
    title: str,
    top: int,
) -> Figure:
    """Draws a row for each component: its number, the share of patches nearest to it, and its nearest patches."""
    rows = [(y, k) for y in range(len(classes)) for k in range(components)]
    with_tiles = bool(set(best["slide_id"]) & set(images))
    columns = top if with_tiles else 0
    figure = Figure(figsize=(4 + 0.8 * columns, 0.6 + len(rows) * (0.8 if with_tiles else 0.3)), dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\npatches nearest to each memory component", fontsize=10, y=0.995)
    margin = 0.55 / figure.get_figheight()
    layout = figure.add_gridspec(
        1,
        2 if columns else 1,
        width_ratios=[3, 0.8 * columns] if columns else None,
        left=0.12 if columns else 0.22,
        right=0.98,
        top=1 - margin,
        bottom=margin,
        wspace=0.03,
    )
    bars = figure.add_subplot(layout[0, 0])
    values = [float(shares.get((classes[y], k), 0.0)) for y, k in rows]
    colours = [np.array(component_colour(y, k, components)) / 255 for y, k in rows]
    bars.barh(range(len(rows)), values, color=colours, edgecolor="0.4", linewidth=0.4)
    bars.set_yticks(range(len(rows)), [f"{classes[y]} {k}" for y, k in rows], fontsize=7)
    bars.set(ylim=(len(rows) - 0.5, -0.5), xlabel="share of patches")
    bars.xaxis.label.set_fontsize(8)
    bars.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    if columns:
        tiles = figure.add_subplot(layout[0, 1])
        tiles.imshow(_montage(best, rows, classes, images, columns), extent=(0, columns, len(rows), 0), aspect="auto")
        tiles.set(xticks=[], yticks=[])
        tiles.set_title("nearest patches, the most similar first", fontsize=8)
    return figure


def _montage(
    best: pd.DataFrame,
    rows: Sequence[tuple[int, int]],
    classes: tuple[str, ...],
    images: Mapping[str, str],
    columns: int,
) -> np.ndarray:
    """Cuts out the patches of each component: (rows, columns) tiles as one picture; white where there is none."""
    canvas = np.full((len(rows) * TILE_PX, columns * TILE_PX, 3), 255, np.uint8)
    opened = {slide: open_image(images[slide]) for slide in sorted(set(best["slide_id"]) & set(images))}
    by_component = dict(list(best.groupby(["component_class", "component"])))
    for row, (y, k) in enumerate(rows):
        patches = by_component.get((classes[y], k))
        if patches is None:
            continue
        for column, patch in enumerate(patches.head(columns).to_dict("records")):
            if patch["slide_id"] not in opened:
                continue
            tile = opened[patch["slide_id"]].region(patch["x"], patch["y"], patch["tile_px"], TILE_PX)
            if tile is not None:
                top, left = row * TILE_PX, column * TILE_PX
                canvas[top + 2 : top + TILE_PX - 2, left + 2 : left + TILE_PX - 2] = np.asarray(tile)[2:-2, 2:-2]
    return canvas
