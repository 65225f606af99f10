"""Heatmaps of one slide or a cohort: explains every bag, then draws every slide on scales that all share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.cli_options import imports_kept
from momkd_ray.heatmap import qupath
from momkd_ray.heatmap.colours import ATTENTION_RANGE, Scales, round_up
from momkd_ray.heatmap.explain_bag import ExplainedBag, ExplainedSlide, HeatmapOptions, explain_bag, forget_models
from momkd_ray.heatmap.images import find_images
from momkd_ray.heatmap.patches import SlideSummary
from momkd_ray.heatmap.sources import BagToExplain, Source
from momkd_ray.input_faults import Fault
from momkd_ray.predict.left_out import LeftOutSlides
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import connect_if_worth, work_on_files

SECONDS_A_SLIDE = 1.5  # to draw it and write its files
SECONDS_A_MB = 0.03  # of features, to explain them


def draw_heatmaps(
    bags: Sequence[BagToExplain],
    source: Source,
    progress: ProgressReporter,
    *,
    out: str,
    left_out: LeftOutSlides,
    images: str | None = None,
    only: Sequence[str] = (),
    mpp: float | None = None,
    tile_px: float | None = None,
    top: int = 8,
    scales: Scales | None = None,
    address: str | None = None,
) -> list[SlideSummary]:
    """Writes CSV, PNG and GeoJSON for every slide, cut-out patches, the components, and the script for QuPath.

    Args:
        bags: what to explain, by which models (`sources`).
        source: where their slides are read from.
        progress: receives counts and notes.
        out: the folder.
        left_out: receives the slides that cannot be drawn, and says whether they end the command.
        images: a folder of slides or pictures with the slides' names, or the file of the only slide.
        only: the only slides to write; all if empty.
        mpp: micrometres per level-0 pixel.
        tile_px: edge of a patch in level-0 pixels.
        top: patches to cut out.
        scales: of an earlier call; by default they are measured over these slides.
        address: of a running Ray cluster; by default one is started if the slides take long.

    Returns:
        A summary of each slide, by name.

    Raises:
        InputError: the model cannot be shown, no slide can be, or one cannot and such slides end the command.
    """
    slide_ids = [slide for bag in bags for slide in bag.slides if not only or slide in only]
    options = HeatmapOptions(out, _find_images(images, slide_ids, progress), mpp, tile_px, top, tuple(only))
    forget_models()
    work = work_on_files(len(bags), sum(bag.bytes for bag in bags), SECONDS_A_SLIDE, SECONDS_A_MB)
    with connect_if_worth(work, address), ThreadPoolExecutor(1) as meanwhile:
        # the first slide is read and computed outside of Python's lock, which leaves it to the import of matplotlib
        meanwhile.submit(_import_drawing)
        explained = _explain_all(bags, source, options, left_out, progress)
        from momkd_ray.heatmap import slide_files
        from momkd_ray.heatmap.components import write_components

        shared = scales or Scales(ATTENTION_RANGE, round_up(max(slide.contribution for slide in explained)))
        summaries = [slide.summary for slide in explained]
        for done, _ in enumerate(_each(slide_files.write, summaries, scales=shared, options=options), 1):
            progress.update("draw", done, len(summaries), "slides")
    shared.write(storage.join(out, "scales.json"))
    _write_slides(storage.join(out, "slides.csv"), summaries)
    if not write_components(out, explained, options.images, top):
        progress.info(_without_components(bags, summaries))
    qupath.write_script(storage.join(out, qupath.SCRIPT), [summary.slide_id for summary in summaries])
    if told := left_out.sentence():
        progress.info(told)
    return summaries


def _explain_all(
    bags: Sequence[BagToExplain],
    source: Source,
    options: HeatmapOptions,
    left_out: LeftOutSlides,
    progress: ProgressReporter,
) -> list[ExplainedSlide]:
    """Explains every bag; returns the slides that can be drawn, by name, and records the faults of the others."""
    explained: list[ExplainedSlide] = []
    faults: list[Fault] = []
    for done, of_bag in enumerate(_each(explain_bag_task, bags, source=source, options=options), 1):
        explained += of_bag.slides
        faults += of_bag.faults
        progress.update("explain", done, len(bags), "bags")
    slides = sum(len(bag.slides) for bag in bags)
    files = "feature files" if source.store is None else "slides"
    left_out.add_files(faults, f"{slides} {files}", some_left=bool(explained))
    return sorted(explained, key=lambda slide: slide.summary.slide_id)


def _import_drawing() -> None:
    with imports_kept():
        import_module("momkd_ray.heatmap.slide_files")


def _find_images(images: str | None, slide_ids: Sequence[str], progress: ProgressReporter) -> dict[str, str]:
    """Finds the picture of each slide, and tells how many have none."""
    found = find_images(images, slide_ids)
    missing = [slide for slide in slide_ids if slide not in found]
    if images is not None and missing:
        without = f"{len(missing)} of {len(slide_ids)} slides have no picture of their name in {images}"
        progress.info(f"{without}, such as {missing[0]}; they are drawn without")
    return found


def _without_components(bags: Sequence[BagToExplain], summaries: Sequence[SlideSummary]) -> str:
    if any(len(bag.models) > 1 for bag in bags):
        return "The memory's components are not drawn: every model has its own; give one model to see them"
    return "The memory's components are not drawn: the model has no memory"


def _each(function: Callable[..., Any], items: Sequence[Any], **arguments: Any) -> Iterator[Any]:
    """Calls a function for each item."""
    yield from parallel_map(function, items, "the heatmaps could not be drawn", **arguments)


def explain_bag_task(bag: BagToExplain, source: Source, options: HeatmapOptions) -> ExplainedBag:
    """Explains one bag; for Ray, which finds functions by name."""
    return explain_bag(bag, source, options)


def _probabilities(summary: SlideSummary) -> dict[str, float]:
    if len(summary.classes) == 2:
        return {f"p_{summary.classes[1]}": summary.probability}
    return {f"p_{name}": p for name, p in zip(summary.classes, summary.probabilities, strict=True)}


def _write_slides(location: str, summaries: Sequence[SlideSummary]) -> None:
    rows = [
        {
            "slide_id": s.slide_id,
            "patient_id": s.patient_id,
            **_probabilities(s),
            "model": s.model,
            "tile_px": s.tile_px,
            "tile_px_from": s.tile_from,
        }
        for s in summaries
    ]
    with storage.atomic_writer(location) as stream:
        pd.DataFrame(rows).to_csv(stream, index=False)
