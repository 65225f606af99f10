"""Which feature file is whose: one listing of the features' folder, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from momkd_ray import storage

FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt")  # of two files of one slide the first is taken: it has coordinates
FOLDERS = ("", "h5_files", "pt_files")  # CLAM keeps both of the latter side by side


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of a slide are; `stamp` changes with the file and is '' where there is none."""

    slide_id: str
    path: str
    stamp: str
    size: int


def list_features(folder: str) -> dict[str, FeatureFile]:
    """The feature file of every slide that has one in a folder, or in CLAM's `h5_files` and `pt_files` inside it.

    Args:
        folder: local or `s3://`; none are found where it does not exist.

    Returns:
        slide_id -> file, sorted. The slide is the file's name without its suffix; names that start with a dot are
        passed over.
    """
    best: dict[str, tuple[tuple[int, int], FeatureFile]] = {}
    for rank, inside in enumerate(FOLDERS):
        place = storage.join(folder, inside) if inside else folder
        for info in storage.list_files(place):
            suffix = next((s for s in FEATURE_SUFFIXES if info.name.lower().endswith(s)), None)
            slide_id = info.name[: -len(suffix)] if suffix else ""
            if suffix is None or not slide_id or info.name.startswith("."):
                continue
            order = (FEATURE_SUFFIXES.index(suffix), rank)
            file = FeatureFile(slide_id, storage.join(place, info.name), info.stamp, info.size)
            if slide_id not in best or order < best[slide_id][0]:
                best[slide_id] = (order, file)
    return {slide_id: best[slide_id][1] for slide_id in sorted(best)}


def files_of(slide_ids: Sequence[str], folder: str, listed: dict[str, FeatureFile]) -> list[FeatureFile]:
    """The files of these slides, in their order; where there is none, where it should be."""
    return [
        listed.get(slide_id) or FeatureFile(slide_id, storage.join(folder, f"{slide_id}.h5"), "", 0)
        for slide_id in slide_ids
    ]
