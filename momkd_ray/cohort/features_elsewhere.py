"""Looks for feature files near a folder that holds none of the slides', to say where they are."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from momkd_ray import storage

_DEPTH = 4
_MOST_FOLDERS = 2000  # a listing each
_SKIPPED = frozenset({"h5_files", "pt_files"})  # listed with the folder above
# coordinates, thumbnails and embeddings of whole slides, which have the slides' names, too
_NO_PATCH_FEATURES = re.compile(
    r"slide_.*|patches|coords?|masks|stitches|contours.*|thumbnails|visualization|heatmaps.*"
)


def folders_below(folder: str) -> Iterator[str]:
    """Yields the folders below a folder, nearest first, without hidden ones."""
    level, listed = [folder], 0
    for _ in range(_DEPTH):
        below = []
        for place in level:
            if (listed := listed + 1) > _MOST_FOLDERS:
                return
            below += [storage.join(place, name) for name in _folders(place)]
        yield from below
        level = below


def _folders(place: str) -> list[str]:
    files = {info.name for info in storage.list_files(place)}
    return [name for name in storage.list_names(place) if name not in files | _SKIPPED and not name.startswith(".")]


def pointer(folder: str, counts: Mapping[str, int], slides: int, setting: str) -> str:
    """Says in one sentence which folders below hold feature files of how many slides; '' if none does.

    Args:
        folder: the configured folder.
        counts: the number of slides whose files a folder holds.
        slides: the number of slides.
        setting: the setting, or the option of the command line, that names the folder.
    """
    if not counts:
        return ""
    order = sorted(counts, key=lambda place: (has_no_patches(place, folder), -counts[place], place))
    shown = order[:3]
    holds = [f"{_relative(place, folder)}/ holds {counts[place]} of them" for place in shown]
    more = f" (and {len(order) - 3} more folders)" if len(order) > 3 else ""
    cures = [
        f"set {setting} to {_quoted(place)}" if setting[0] != "-" else f"pass {setting} {place}" for place in shown
    ]
    which = "" if len(cures) == 1 else ", whichever is meant"
    return (
        f"{folder} holds the feature file of none of the {slides} slides, but {' and '.join(holds)}{more}: "
        f"{', or '.join(cures)}{which}"
    )


def has_no_patches(place: str, folder: str) -> bool:
    """Returns whether a folder below another is named as those of coordinates, images or slides' embeddings are."""
    return any(_NO_PATCH_FEATURES.fullmatch(part) for part in _relative(place, folder).split("/"))


def _relative(place: str, folder: str) -> str:
    return place.removeprefix(f"{folder.rstrip('/')}/") or posixpath.basename(place)


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[^\s\"'`,;()#]+", value) else f'"{value}"'
