"""Checks of slides against each other: one encoder, width and magnification, several patches, no content twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from momkd_ray.bags.store import BagStore, Entry, scale_of
from momkd_ray.formats.patch_scale import PatchScale
from momkd_ray.input_faults import Fault

_COMPARED = {"width": "features of width", "encoder": "features of"}


def mixed_encoder_faults(entries: Mapping[str, Entry], slides: pd.DataFrame, store: BagStore | None) -> list[Fault]:
    """Lists the slides whose width or encoder differs from that of the store, or of most slides.

    Every sentence names two files that differ. A file that does not record its encoder agrees with every other.

    Args:
        entries: `width` and `encoder` of each readable slide, by slide.
        slides: columns `slide_id` and `path`.
        store: the existing store to agree with; None compares with the most frequent value.
    """
    path_of = dict(zip(slides["slide_id"], slides["path"], strict=True))
    checked = {slide_id: entries[slide_id] for slide_id in sorted(path_of) if slide_id in entries}
    faults = []
    for name, words in _COMPARED.items():
        values = {slide_id: entry[name] for slide_id, entry in checked.items() if entry[name]}
        if not values:
            continue
        expected = getattr(store, name, None) or Counter(values.values()).most_common(1)[0][0]
        agreeing = (path_of[slide_id] for slide_id, value in values.items() if value == expected)
        example = next(agreeing, f"{store and store.uri}")
        for slide_id, value in values.items():
            if value != expected:
                reason = (
                    f"{path_of[slide_id]} has {words} {value}, but {example} of {expected}; extract all slides with "
                    "one encoder"
                )
                faults.append(Fault("slide", slide_id, "mixed", path_of[slide_id], reason))
    return faults


def mixed_scale_faults(entries: Mapping[str, Entry], slides: pd.DataFrame, store: BagStore | None) -> list[Fault]:
    """Lists the slides whose magnification or patch size differs from that of the store, or of most slides.

    Every sentence names two files that differ. A file that does not record them agrees with every other.

    Args:
        entries: `magnification` and `patch_px` of each readable slide, by slide.
        slides: columns `slide_id` and `path`.
        store: the existing store to agree with; None compares with the most frequent scale.
    """
    path_of = dict(zip(slides["slide_id"], slides["path"], strict=True))
    scales = {slide_id: scale_of(entries[slide_id]) for slide_id in sorted(path_of) if slide_id in entries}
    known = Counter(scale for scale in scales.values() if scale)
    expected = (store.scale if store else None) or next((scale for scale, _ in known.most_common(1)), PatchScale())
    agreeing = (path_of[slide_id] for slide_id, scale in scales.items() if scale and scale.agrees(expected))
    example = next(agreeing, f"{store and store.uri}")
    return [
        Fault(
            "slide",
            slide_id,
            "mixed",
            path_of[slide_id],
            f"{path_of[slide_id]} is at {scale.text()}, but {example} at {expected.text()}; extract all slides at one "
            "magnification and patch size, or leave one kind out of the slides table; if they are to be mixed, set "
            "features.mixed_magnification to allow",
        )
        for slide_id, scale in scales.items()
        if not scale.agrees(expected)
    ]


def slide_vector_faults(entries: Mapping[str, Entry], slides: pd.DataFrame) -> list[Fault]:
    """Lists all slides if each has a single patch: their files are embeddings of whole slides.

    Args:
        entries: `n_patches` of each readable slide, by slide.
        slides: columns `slide_id` and `path`.
    """
    path_of = {slide: path for slide, path in zip(slides["slide_id"], slides["path"], strict=True) if slide in entries}
    if len(path_of) < 2 or any(int(entries[slide]["n_patches"]) > 1 for slide in path_of):
        return []
    return [
        Fault(
            "slide",
            slide,
            "misshapen",
            path,
            f"{path} holds a single row of features, as all {len(path_of)} files do: these are embeddings of the whole "
            "slide, one vector each, not features of patches; give the folder of patch features",
        )
        for slide, path in sorted(path_of.items())
    ]


def duplicate_content_faults(entries: Mapping[str, Entry], slides: pd.DataFrame) -> list[Fault]:
    """Lists the slides whose content equals that of another slide.

    Among slides of one patient the first is kept. If they belong to several patients, all are listed, since the
    content cannot tell whose it is.

    Args:
        entries: `sha256` of each readable slide, by slide.
        slides: columns `slide_id`, `patient_id` and `path`.
    """
    rows = slides[slides["slide_id"].isin(list(entries))]
    rows = rows.assign(sha256=[str(entries[slide_id]["sha256"]) for slide_id in rows["slide_id"]])
    faults = []
    for _, group in rows[rows["sha256"].duplicated(keep=False)].sort_values("slide_id").groupby("sha256"):
        one_patient = group["patient_id"].nunique() == 1
        for index in range(1 if one_patient else 0, len(group)):
            row, other = group.iloc[index], group.iloc[0 if index else 1]
            owner = "" if one_patient else f" of another patient ({other['patient_id']})"
            reason = (
                f"{row['path']} holds the same patches as {other['path']}{owner}; keep the right one, and remove the "
                "other from the slides table"
            )
            faults.append(Fault("slide", row["slide_id"], "duplicated", row["path"], reason))
    return faults
