"""Matches slides with feature files by name, from one listing of the features' folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from momkd_ray import storage

FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt")  # in order of preference: HDF5 files have coordinates
FOLDERS = ("", "h5_files", "pt_files")  # CLAM writes the latter two


@dataclass(frozen=True)
class FeatureFile:
    """The feature file of a slide; `stamp` changes with its content and is '' if there is no file."""

    slide_id: str
    path: str
    stamp: str
    size: int


def list_features(folder: str) -> dict[str, FeatureFile]:
    """Lists the feature files in a folder, and in CLAM's `h5_files` and `pt_files` inside it.

    Args:
        folder: local or `s3://`; a folder that does not exist has none.

    Returns:
        slide_id -> file, sorted. The slide is the file's name without its suffix; hidden files are ignored.
    """
    best: dict[str, tuple[tuple[int, int], FeatureFile]] = {}
    for rank, inside in enumerate(FOLDERS):
        location = storage.join(folder, inside) if inside else folder
        for info in storage.list_files(location):
            suffix = next((s for s in FEATURE_SUFFIXES if info.name.lower().endswith(s)), None)
            slide_id = info.name[: -len(suffix)] if suffix else ""
            if suffix is None or not slide_id or info.name.startswith("."):
                continue
            order = (FEATURE_SUFFIXES.index(suffix), rank)
            file = FeatureFile(slide_id, storage.join(location, info.name), info.stamp, info.size)
            if slide_id not in best or order < best[slide_id][0]:
                best[slide_id] = (order, file)
    return {slide_id: best[slide_id][1] for slide_id in sorted(best)}


def files_of(slide_ids: Sequence[str], folder: str, listed: dict[str, FeatureFile]) -> list[FeatureFile]:
    """Returns the files of these slides, in their order; for a missing one, its expected path."""
    return [
        listed.get(slide_id) or FeatureFile(slide_id, storage.join(folder, f"{slide_id}.h5"), "", 0)
        for slide_id in slide_ids
    ]
