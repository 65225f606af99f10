"""The picture of a slide: attention, contribution to each class's logit, and nearest memory component."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from momkd_ray import storage
from momkd_ray.heatmap.colours import ATTENTION_MAP, CONTRIBUTION_MAP, Scales, component_colours
from momkd_ray.heatmap.patches import SCALED, SlideSummary

LONGEST_PX = 1600  # of the raster of a panel
FINEST = 4  # cells along the edge of a patch, where patches do not lie on one grid
THUMBNAIL_PX = 1200
PANEL_INCHES = 4.2
KEY_INCHES = 1.1
OVER_IMAGE = 0.75  # opacity of a map over the slide
_LEGEND_ROWS = 16
_NUMBERED = 8  # components whose numbers are written on the map

Raster = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """A raster over a part of a slide, in which a patch covers whole cells.

    Attributes:
        left, top: of the raster, in level-0 pixels.
        columns, rows: its cells.
        cell: edge of a cell, in level-0 pixels.
        side: cells along the edge of a patch.
    """

    left: float
    top: float
    columns: int
    rows: int
    cell: float
    side: int

    @classmethod
    def over(cls, table: pd.DataFrame, box: Box, edge: float) -> Grid:
        """Lays a grid over a box for patches of an edge, with at most about `LONGEST_PX` cells a side."""
        left, top, right, bottom = box
        off_grid = np.mod(table[["x", "y"]].to_numpy() - (left, top), edge)
        side = 1
        if off_grid.any():
            side = min(FINEST, max(1, math.floor(edge * LONGEST_PX / max(right - left, bottom - top))))
        cell = edge / side
        return cls(left, top, math.ceil((right - left) / cell), math.ceil((bottom - top) / cell), cell, side)

    @property
    def extent(self) -> Box:
        """Left, right, bottom and top, as matplotlib wants them."""
        right, bottom = self.left + self.columns * self.cell, self.top + self.rows * self.cell
        return self.left, right, bottom, self.top

    def paint(self, table: pd.DataFrame, values_P: Raster) -> Raster:
        """Paints the values of patches; cells under several patches get their mean, empty ones NaN.

        Args:
            table: `x, y` of the patches.
            values_P: their values; NaN paints nothing.
        """
        known = np.isfinite(values_P)
        column_P = np.rint((table["x"].to_numpy()[known] - self.left) / self.cell).astype(np.int64)
        row_P = np.rint((table["y"].to_numpy()[known] - self.top) / self.cell).astype(np.int64)
        cells = self.rows * self.columns
        total, count = np.zeros(cells), np.zeros(cells)
        for down, across in itertools.product(range(self.side), repeat=2):
            y_P, x_P = row_P + down, column_P + across
            inside = (y_P >= 0) & (y_P < self.rows) & (x_P >= 0) & (x_P < self.columns)
            cell_P = (y_P * self.columns + x_P)[inside]
            total += np.bincount(cell_P, weights=values_P[known][inside], minlength=cells)
            count += np.bincount(cell_P, minlength=cells)
        painted = total / np.where(count > 0, count, np.nan)
        return painted.astype(np.float32).reshape(self.rows, self.columns)

    def paint_categories(self, table: pd.DataFrame, index_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Paints categories; where patches overlap, that of the highest attention; -1 where there is none."""
        order = np.argsort(table["attention"].to_numpy(), kind="stable")
        column_P = np.rint((table["x"].to_numpy()[order] - self.left) / self.cell).astype(np.int64)
        row_P = np.rint((table["y"].to_numpy()[order] - self.top) / self.cell).astype(np.int64)
        painted = np.full((self.rows, self.columns), -1, np.int64)
        for down, across in itertools.product(range(self.side), repeat=2):
            y_P, x_P = row_P + down, column_P + across
            inside = (y_P >= 0) & (y_P < self.rows) & (x_P >= 0) & (x_P < self.columns)
            painted[y_P[inside], x_P[inside]] = index_P[order][inside]  # numpy keeps the last of several
        return painted


def draw_slide(
    location: str, table: pd.DataFrame, summary: SlideSummary, scales: Scales, thumbnail: Image.Image | None
) -> None:
    """Draws all maps of a slide as one PNG.

    Args:
        location: the file to write.
        table: the slide's patches (`patch_table`).
        summary: what else is known of it.
        scales: of the colours, stated at each map.
        thumbnail: a picture of the whole slide, of `summary.level0_size` level-0 pixels.
    """
    box = _box(table, summary)
    maps = ["attention", *summary.classes, *(["component"] if "component" in table.columns else [])]
    panels = len(maps) + (thumbnail is not None)
    height = PANEL_INCHES * max(0.6, min(1.7, (box[3] - box[1]) / (box[2] - box[0])))
    figure = Figure(figsize=(PANEL_INCHES * panels, height + KEY_INCHES + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, panels, squeeze=False, height_ratios=(height, KEY_INCHES))
    keys = axes[1]
    figure.suptitle(_title(summary), fontsize=11)
    pale = None
    if thumbnail is not None:
        _show_image(axes[0, 0], thumbnail, summary)
        _frame(axes[0, 0], box, "slide")
        pale = Image.blend(thumbnail.convert("L").convert("RGB"), Image.new("RGB", thumbnail.size, "white"), 0.5)
    for key in keys:
        key.set_axis_off()
    for axis, key, name in zip(axes[0, -len(maps) :], keys[-len(maps) :], maps, strict=True):
        if pale is not None:
            _show_image(axis, pale, summary)
        alpha = 1.0 if pale is None else OVER_IMAGE
        if name == "component":
            _draw_components(axis, key, table, summary, box, alpha)
        else:
            of_class = name if name in summary.classes else None
            _draw_values(axis, key, table, summary, scales, of_class, box, alpha)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", pil_kwargs={"compress_level": 3})
    storage.write_bytes(location, stream.getvalue())


def _title(summary: SlideSummary) -> str:
    return (
        f"{summary.slide_id}\n{summary.label}: probability of {summary.shown_class} {summary.probability:.3f} "
        f"({summary.model}), patient {summary.patient_id}"
    )


def _box(table: pd.DataFrame, summary: SlideSummary) -> Box:
    """The tissue with a margin of one patch, in level-0 pixels."""
    edge = summary.tile_px
    return (
        float(table["x"].min()) - edge,
        float(table["y"].min()) - edge,
        float(table["x"].max()) + 2 * edge,
        float(table["y"].max()) + 2 * edge,
    )


def _show_image(axis: Axes, image: Image.Image, summary: SlideSummary) -> None:
    assert summary.level0_size is not None
    width, height = summary.level0_size
    axis.imshow(np.asarray(image), extent=(0, width, height, 0), interpolation="bilinear")


def _frame(axis: Axes, box: Box, title: str) -> None:
    left, top, right, bottom = box
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=10)
    for spine in axis.spines.values():
        spine.set_color("0.8")


def _draw_values(
    axis: Axes,
    key: Axes,
    table: pd.DataFrame,
    summary: SlideSummary,
    scales: Scales,
    of_class: str | None,
    box: Box,
    alpha: float,
) -> None:
    """Draws attention, or the contribution to the logit of one class, with its scale."""
    if of_class is None:
        column, colours, norm = "attention_per_mean_patch", ATTENTION_MAP, scales.attention_norm()
        title, unit = "attention", "times the mean patch's attention"
    else:
        column, colours, norm = f"{SCALED}{of_class}", CONTRIBUTION_MAP, scales.contribution_norm()
        title = f"contribution to {summary.label} {of_class}"
        unit = "logit lost without the patch, times patches"
    values = table[column].to_numpy(dtype=np.float32)
    grid = Grid.over(table, box, summary.tile_px)
    painted = grid.paint(table, values)
    image = axis.imshow(
        np.ma.masked_invalid(painted), cmap=colours, norm=norm, extent=grid.extent, alpha=alpha,
        interpolation="nearest",
    )  # fmt: skip
    _frame(axis, box, title)
    bar = axis.figure.colorbar(
        ScalarMappable(norm, image.get_cmap()),
        cax=key.inset_axes((0.08, 0.75, 0.84, 0.16)),
        orientation="horizontal",
        extend="both",
    )
    bar.set_label(unit, fontsize=8)
    if of_class is None:
        ticks = [scales.attention**power for power in (-1, -0.5, 0, 0.5, 1)]
        bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
        bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _draw_components(axis: Axes, key: Axes, table: pd.DataFrame, summary: SlideSummary, box: Box, alpha: float) -> None:
    """Draws the nearest component of each patch, with a legend of the most frequent ones."""
    classes = {name: y for y, name in enumerate(summary.classes)}
    index_P = table["component_class"].map(classes).to_numpy(dtype=np.int64) * summary.components + table[
        "component"
    ].to_numpy(dtype=np.int64)
    grid = Grid.over(table, box, summary.tile_px)
    painted = grid.paint_categories(table, index_P)
    colours = component_colours(summary.components, len(summary.classes))
    rgba = np.zeros((*painted.shape, 4))
    known = painted >= 0
    rgba[known, :3] = colours[painted[known]]
    rgba[known, 3] = alpha
    axis.imshow(rgba, extent=grid.extent, interpolation="nearest")
    _frame(axis, box, "nearest memory component")
    counts = np.bincount(index_P, minlength=len(summary.classes) * summary.components)
    frequent = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    for index in frequent[:_NUMBERED]:
        of_component = np.flatnonzero(index_P == index)
        best = table.iloc[of_component[table["similarity"].to_numpy()[of_component].argmax()]]
        axis.text(
            best["x"] + summary.tile_px / 2, best["y"] + summary.tile_px / 2, _mark(index, summary),
            ha="center", va="center", fontsize=8, color="black",
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    handles = [
        Patch(
            facecolor=colours[i],
            edgecolor="0.4",
            linewidth=0.5,
            label=f"{_mark(i, summary)} ({summary.classes[i // summary.components]}): "
            f"{100 * counts[i] / len(table):.0f} %",
        )
        for i in sorted(frequent[:_LEGEND_ROWS])
    ]
    more = f"; {len(frequent) - _LEGEND_ROWS} rarer not listed" if len(frequent) > _LEGEND_ROWS else ""
    key.legend(
        handles=handles, loc="upper center", ncols=2 if len(handles) <= 8 else 3, fontsize=7, frameon=False,
        title=f"class, component: share of patches{more}", title_fontsize=7,
    )  # fmt: skip


def _mark(index: int, summary: SlideSummary) -> str:
    """Names a component shortly: by - or + of two classes or the letter of one of more, and its number."""
    y, k = divmod(index, summary.components)
    return f"{('-+' if len(summary.classes) == 2 else ascii_uppercase)[y % 26]}{k}"
