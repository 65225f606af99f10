"""Checks of slides against each other: one encoder and width for all, and no content twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from momkd_ray.bags.store import BagStore, Entry
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
