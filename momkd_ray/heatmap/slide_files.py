"""The files of one slide that has been explained: picture, tiles for QuPath, cut-out patches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from momkd_ray import storage
from momkd_ray.heatmap import qupath
from momkd_ray.heatmap.colours import Scales
from momkd_ray.heatmap.drawing import THUMBNAIL_PX, draw_slide
from momkd_ray.heatmap.explain_bag import HeatmapOptions
from momkd_ray.heatmap.images import SlideImage, open_image
from momkd_ray.heatmap.patches import CONTRIBUTION, SlideSummary, read_csv

CUT_OUT_PX = 256


def write(summary: SlideSummary, scales: Scales, options: HeatmapOptions) -> str:
    """Draws one slide whose CSV is written; returns its name."""
    name = storage.join(options.out, summary.slide_id)
    table = read_csv(f"{name}.csv")
    image = open_image(options.images[summary.slide_id]) if summary.slide_id in options.images else None
    thumbnail = None
    if image is not None and summary.level0_size is not None:
        thumbnail = image.thumbnail(summary.level0_size, THUMBNAIL_PX)
    with ThreadPoolExecutor(1) as beside:
        # Arrow makes the text of the tiles outside of Python's lock
        tiles = beside.submit(qupath.write_geojson, f"{name}.geojson", table, summary)
        draw_slide(f"{name}.png", table, summary, scales, thumbnail)
        tiles.result()
    if image is not None:
        _cut_out(name, table, summary, image, options.top)
    return summary.slide_id


def _cut_out(name: str, table: pd.DataFrame, summary: SlideSummary, image: SlideImage, top: int) -> None:
    """Cuts out the patches of most attention, and those that contribute most to each class."""
    maps = {"attention": "attention"} | {f"for_{c}": f"{CONTRIBUTION}{c}" for c in summary.classes}
    for map_name, column in maps.items():
        best = table[table[column].notna()].nlargest(top, column)
        for rank, (x, y) in enumerate(zip(best["x"].tolist(), best["y"].tolist(), strict=True), 1):
            tile = image.region(x, y, summary.tile_px, CUT_OUT_PX)
            if tile is None:
                return
            file = f"{map_name}_{rank:02d}_x{x:.10g}_y{y:.10g}.png"
            with storage.atomic_writer(storage.join(f"{name} tiles", file)) as stream:
                tile.save(stream, format="png")
