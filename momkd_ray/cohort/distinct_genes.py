"""Chooses among genes of one name, and cuts the versions of Ensembl identifiers."""

from __future__ import annotations

import numpy as np

from momkd_ray.cohort.cell_numbers import Floats
from momkd_ray.cohort.gene_names import number_of, some_of, without_version
from momkd_ray.cohort.understood import Understood


def distinct_names(
    names: list[str], values_GS: Floats, location: str, of: str
) -> tuple[list[str], list[int], list[Understood]]:
    """Cuts Ensembl versions and chooses among genes of one name; returns names, their positions, and what was done.

    Rows that agree count once. Of rows that differ that with the highest mean is used, the first of equal ones.
    """
    understood = []
    plain = [without_version(name) for name in names]
    versions_of: dict[str, set[str]] = {}
    for name, cut in zip(names, plain, strict=True):
        versions_of.setdefault(cut, set()).add(name)
    plain = [cut if len(versions_of[cut]) == 1 else name for name, cut in zip(names, plain, strict=True)]
    versions = sum(name != cut for name, cut in zip(names, plain, strict=True))
    if versions:
        example = next(name for name, cut in zip(names, plain, strict=True) if name != cut)
        identifiers = number_of(versions, "Ensembl identifier", "Ensembl identifiers")
        what = f"the versions of {identifiers} are cut, as of '{example}'"
        understood.append(Understood(location, "omics", what, versions))
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(plain):
        positions.setdefault(name, []).append(i)
    agreeing, differing = [], []
    for name, same in positions.items():
        if len(same) == 1:
            continue
        first = values_GS[same[0]]
        if all(np.array_equal(first, values_GS[i], equal_nan=True) for i in same[1:]):
            agreeing.append(name)
        else:
            differing.append(name)
            present_N = np.maximum(1, (~np.isnan(values_GS[same])).sum(axis=1))
            mean_N = np.nansum(values_GS[same].astype(np.float64), axis=1) / present_N
            positions[name] = [same[int(np.argmax(mean_N))]]
    for group, how in (
        (agreeing, "agree and count once"),
        (differing, "differ, and that with the highest mean is used"),
    ):
        if group:
            what = f"{number_of(len(group), 'gene stands', 'genes stand')} in several {of} that {how}: {some_of(group)}"
            understood.append(Understood(location, "omics", what, len(group)))
    return list(positions), [same[0] for same in positions.values()], understood
