"""Matches slides with feature files by name, in the features' folder and in the folders that the slides' names give."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from momkd_ray import storage
from momkd_ray.cohort.features_elsewhere import folders_below, pointer
from momkd_ray.cohort.identifiers import number, spelling
from momkd_ray.cohort.slide_names import (
    FEATURE_SUFFIXES,
    folder_and_name,
    slide_id_of,
    without_feature_suffix,
    without_gdc_id,
)
from momkd_ray.cohort.understood import Understood

FOLDERS = ("", "h5_files", "pt_files")  # CLAM writes the latter two


@dataclass(frozen=True)
class FeatureFile:
    """The feature file of a slide; `stamp` changes with its content and is '' if there is no file."""

    slide_id: str
    path: str
    stamp: str
    size: int


@dataclass(frozen=True)
class Features:
    """The feature files of slides.

    Attributes:
        files: of every slide that was asked for; for a missing one, its expected path.
        unnamed: names of the files that belong to no slide, relative to the folder.
        elsewhere: if no slide has a file, a sentence that says in which folder they lie; '' if they lie nowhere near.
        understood: how files were matched with slides, where not by the same name.
    """

    files: Mapping[str, FeatureFile]
    unnamed: tuple[str, ...] = ()
    elsewhere: str = ""
    understood: tuple[Understood, ...] = ()


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


def find_features(
    folder: str,
    names: Mapping[str, str],
    listed: Mapping[str, FeatureFile] | None = None,
) -> Features:
    """Finds the feature file of every slide.

    A file belongs to the slide that is named like it, or else to the only slide with its name apart from suffixes of
    scanners (`S.svs.h5` and `S.ome.h5` to `S.svs`, `S.ome.tiff` and `S`) and the GDC's UUID, then apart from case and
    separators, then by number (`00001.h5` to `1`), or if all files continue the slides' names alike. A folder in a
    slide's name is looked for below the features' folder; if the file is not there, its name alone counts. If the
    folder has no slide's file, the folders below it are read, but only if they divide the slides.

    Args:
        folder: of the features, local or `s3://`.
        names: slide_id -> its name or path as written.
        listed: what `list_features` gives for the folder, if that is known already.
    """
    found, seen = dict[str, FeatureFile](), dict[str, FeatureFile]()
    by_parent: dict[str, list[str]] = {}
    for slide, name in names.items():
        if parent := _parent(name, folder):
            by_parent.setdefault(parent, []).append(slide)
    for parent, slides in sorted(by_parent.items()):
        inside = list_features(storage.join(folder, parent))
        seen |= {file.path: file for file in inside.values()}
        found |= _matches(inside, {slide: names[slide] for slide in slides})
    listed = list_features(folder) if listed is None else listed
    seen |= {file.path: file for file in listed.values()}
    found |= _matches(listed, {slide: name for slide, name in names.items() if slide not in found})
    elsewhere, understood = "", list[Understood]()
    if names and not found:
        found, ending = _with_one_ending(listed, names)
        if found:
            what = f"the names of its {len(found):,} files continue those of the slides by '{ending}'"
            understood.append(Understood(folder, "features", what, len(found)))
    if names and not found:
        below = {place: _matches(list_features(place), names) for place in folders_below(folder)}
        below = {place: own for place, own in below.items() if own}
        if _divide(list(below.values())):
            for own in below.values():
                found |= own
            what = f"{len(found):,} feature files are read from {len(below)} folders below it, which divide the slides"
            understood.append(Understood(folder, "features", what, len(found)))
        else:
            elsewhere = pointer(folder, {place: len(own) for place, own in below.items()}, len(names))
    used = {file.path for file in found.values()}
    unnamed = sorted(path.removeprefix(f"{folder.rstrip('/')}/") for path in seen if path not in used)
    files = {slide: found.get(slide) or _missing(slide, name, folder) for slide, name in names.items()}
    return Features(files, tuple(unnamed), elsewhere, (*understood, *_otherwise_named(folder, found, names)))


def _matches(files: Mapping[str, FeatureFile], names: Mapping[str, str]) -> dict[str, FeatureFile]:
    """Returns slide -> file; a file that could be of two slides is of neither, nor are two files of one slide."""
    base_names = {slide: folder_and_name(name)[1] for slide, name in names.items()}
    matched: dict[str, FeatureFile] = {}
    for of_slide, of_file in _FORMS:
        taken = {file.path for file in matched.values()}
        slides_of, files_of = dict[Hashable, list[str]](), dict[Hashable, list[FeatureFile]]()
        for slide, name in base_names.items():
            slides_of.setdefault(of_slide(name), []).append(slide)
        for stem, file in files.items():
            if file.path not in taken:
                files_of.setdefault(of_file(stem), []).append(file)
        for form, slides in slides_of.items():
            own = files_of.get(form, [])
            if form is not None and len(slides) == len(own) == 1 and slides[0] not in matched:
                matched[slides[0]] = own[0]
    return {slide: FeatureFile(slide, file.path, file.stamp, file.size) for slide, file in matched.items()}


# how a slide's name is compared with a file's without its suffix: as written at first, loosely at last
_FORMS: tuple[tuple[Callable[[str], Hashable], Callable[[str], Hashable]], ...] = (
    (str, str),
    (without_feature_suffix, str),
    (slide_id_of, str),
    (slide_id_of, slide_id_of),
    (lambda name: without_gdc_id(slide_id_of(name)), lambda stem: without_gdc_id(slide_id_of(stem))),
    (lambda name: spelling(slide_id_of(name)), lambda stem: spelling(slide_id_of(stem))),
    (lambda name: number(slide_id_of(name)), lambda stem: number(slide_id_of(stem))),
)


def _with_one_ending(files: Mapping[str, FeatureFile], names: Mapping[str, str]) -> tuple[dict[str, FeatureFile], str]:
    """Matches files whose names all continue those of the slides in the same way, such as `S_features.h5` for `S`."""
    slides = {slide_id_of(folder_and_name(name)[1]): slide for slide, name in names.items()}
    found: dict[str, dict[str, FeatureFile]] = {}
    for stem, file in files.items():
        cuts = [match.start() for match in re.finditer(r"[._\- ]", stem)]
        begins = next((cut for cut in reversed(cuts) if stem[:cut] in slides), None)
        if begins is not None and re.search(r"[a-zA-Z]{2}", stem[begins:]):
            found.setdefault(stem[begins:], {})[slides[stem[:begins]]] = file
    if len(found) != 1:
        return {}, ""
    ((ending, own),) = found.items()
    return {slide: FeatureFile(slide, file.path, file.stamp, file.size) for slide, file in own.items()}, ending


def _parent(name: str, folder: str) -> str:
    """Returns the folder that a slide's name gives, relative to the features' folder; '' if it gives none inside it."""
    parent = folder_and_name(name)[0]
    root = folder.rstrip("/")
    if parent == root or parent.startswith(f"{root}/"):
        return parent[len(root) :].strip("/")
    outside = parent.startswith(("/", "..")) or ":" in parent
    return "" if outside or "/../" in f"/{parent}/" else parent


def _divide(found: Sequence[Mapping[str, FeatureFile]]) -> bool:
    """Returns whether several folders each have files of other slides than the rest."""
    slides = [slide for own in found for slide in own]
    return len(found) > 1 and len(set(slides)) == len(slides)


def _missing(slide: str, name: str, folder: str) -> FeatureFile:
    parent = _parent(name, folder)
    place = storage.join(folder, parent) if parent else folder
    return FeatureFile(slide, storage.join(place, f"{posixpath.basename(slide)}.h5"), "", 0)


def _otherwise_named(folder: str, found: Mapping[str, FeatureFile], names: Mapping[str, str]) -> list[Understood]:
    """Describes the files whose names differ from the slides' by more than the suffix of a feature file."""
    stems = {slide: without_feature_suffix(posixpath.basename(file.path)) for slide, file in found.items()}
    otherwise = [slide for slide, stem in stems.items() if stem not in (slide, posixpath.basename(slide))]
    if not otherwise:
        return []
    files = "1 file is" if len(otherwise) == 1 else f"{len(otherwise):,} files are"
    example, written = posixpath.basename(found[otherwise[0]].path), folder_and_name(names[otherwise[0]])[1]
    what = f"{files} matched with slides apart from suffixes, spelling or zeros, such as '{example}' with '{written}'"
    return [Understood(folder, "features", what, len(otherwise))]
