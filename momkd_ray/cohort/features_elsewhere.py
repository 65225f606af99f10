"""Says why no slide has a feature file: no such folder, files of other names, or files in a folder below."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from momkd_ray import storage
from momkd_ray.cohort.option_names import set_to

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


def pointer(folder: str, counts: Mapping[str, int], slides: int) -> str:
    """Says in one sentence which folders below hold feature files of how many slides; '' if none does.

    Args:
        folder: the configured folder.
        counts: the number of slides whose files a folder holds.
        slides: the number of slides.
    """
    if not counts:
        return ""
    order = sorted(counts, key=lambda place: (has_no_patches(place, folder), -counts[place], place))
    shown = order[:3]
    holds = [f"{_relative(place, folder)}/ holds {counts[place]} of them" for place in shown]
    more = f" (and {len(order) - 3} more folders)" if len(order) > 3 else ""
    cures = [set_to("features.dir", place) for place in shown]
    which = "" if len(cures) == 1 else ", whichever is meant"
    return (
        f"{folder} holds the feature file of none of the {slides} slides, but {' and '.join(holds)}{more}: "
        f"{', or '.join(cures)}{which}"
    )


def absence(folder: str) -> str:
    """Says in one sentence that there is no such folder; '' if there is.

    Raises:
        RunError: its storage cannot be reached, which says nothing about the folder.
    """
    kind = storage.kind(folder)
    if kind == "folder":
        return ""
    if kind == "file":
        return f"features.dir {folder} is a file: name the folder of the feature files"
    mounted = "" if "://" in folder else ", on a disk that is mounted"
    return f"features.dir {folder} does not exist: name the folder of the feature files{mounted}"


def none_of_slides(folder: str, slides: int, expected: str, files: Sequence[str]) -> str:
    """Says in one sentence that a folder exists, but holds the feature file of no slide.

    Args:
        folder: `features.dir`.
        slides: the number of slides.
        expected: path of the file that one of them should have.
        files: names of the folder's feature files.
    """
    wanted = posixpath.basename(expected)
    if files:
        count = "its 1 feature file is" if len(files) == 1 else f"its {len(files):,} feature files are"
        inside = f"{count} named otherwise, such as '{files[0]}' where '{wanted}' is sought"
        cure = "name the folder of the slides' feature files, or name the slides in their table as the files are"
    else:
        inside = f"it holds no feature file at all, such as '{wanted}'"
        cure = "name the folder of the slides' feature files"
    return f"features.dir {folder} exists, but holds the feature file of none of the {slides} slides ({inside}): {cure}"


def has_no_patches(place: str, folder: str) -> bool:
    """Returns whether a folder below another is named as those of coordinates, images or slides' embeddings are."""
    return any(_NO_PATCH_FEATURES.fullmatch(part) for part in _relative(place, folder).split("/"))


def _relative(place: str, folder: str) -> str:
    return place.removeprefix(f"{folder.rstrip('/')}/") or posixpath.basename(place)
