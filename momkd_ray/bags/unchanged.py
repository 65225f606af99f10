"""Recognises feature files whose time of change is another but whose content is the same, as after copying."""

from __future__ import annotations

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.bag_rows import to_row
from momkd_ray.bags.store import BagStore, StoreFormat, merge_into_manifest
from momkd_ray.formats.bag import Format, Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import work_on_files

Candidate = tuple[str, str, str]  # slide, path, stamp


def adopt_unchanged(store: BagStore, slides: pd.DataFrame, layout: Format) -> int:
    """Compares the bags of files that changed since they were stored, and takes on the stamps of those that are equal.

    Args:
        store: a complete store.
        slides: columns `slide_id`, and of the feature file `path`, `bytes` and `file`, its stamp.
        layout: format of the feature files.

    Returns:
        The number of files that have the content of the stored bag.

    Raises:
        RunError: the files could not be read because of the machine.
    """
    present = set(storage.list_names(store.uri))
    changed: list[Candidate] = [
        (slide_id, path, stamp)
        for slide_id, path, stamp in zip(slides["slide_id"], slides["path"], slides["file"], strict=True)
        if stamp and slide_id in store.entries and store.entries[slide_id]["file"] != stamp
        if store.entries[slide_id]["part"] in present
    ]
    failure = "the feature files could not be compared with the bag store"
    stamps = {slide_id: stamp for slide_id, _, stamp in changed}
    work = work_on_files(len(changed), float(slides.loc[slides["slide_id"].isin(stamps), "bytes"].sum()))
    contents = parallel_map(_content, changed, failure, work=work, bag_format=store.format, layout=layout)
    entries = {
        slide_id: store.entries[slide_id] | {"file": stamps[slide_id]}
        for slide_id, sha256 in contents
        if sha256 == store.entries[slide_id]["sha256"]
    }
    if entries:
        merge_into_manifest(store.uri, store.format, store.encoder, store.width, entries, entries)
    return len(entries)


def _content(candidate: Candidate, bag_format: StoreFormat, layout: Format) -> tuple[str, str]:
    """Returns a slide and the SHA-256 of its bag; '' for a bad file, which ingest reports."""
    slide_id, path, _ = candidate
    recipe = Recipe(bag_format.neighbors, bag_format.graph, layout)
    try:
        return slide_id, str(to_row(read_bag(path, slide_id, recipe, dtype=bag_format.dtype))["sha256"])
    except FileFaultError:
        return slide_id, ""
