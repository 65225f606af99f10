"""Lists and patterns of gene names in the configuration, and names of genes as files write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from momkd_ray.cohort.quoting import in_yaml

_VERSIONED = re.compile(r"(ENS[A-Z]{0,6}[GTP]\d{11})\.\d+")


def listed(entries: Collection[str], names: Sequence[str]) -> list[str]:
    """Returns the names that a list of names and patterns (`*_cnv`) picks, in the order of `names`.

    An entry that is a name picks that name only, even if it has characters of a pattern.
    """
    present = set(names)
    if not entries:
        return []
    exact = {entry for entry in entries if entry in present}
    patterns = [entry for entry in entries if entry not in present and any(sign in entry for sign in "*?[")]
    return [name for name in names if name in exact or any(fnmatchcase(name, pattern) for pattern in patterns)]


def setting_with(key: str, present: Iterable[str], more: Sequence[str]) -> str:
    """Formats a setting as it is written in the configuration, with what it has already: `'omics.keep: [A, B]'`."""
    entries = [in_yaml(entry) for entry in dict.fromkeys([*present, *more])]
    return f"'{key}: [{', '.join(entries)}]'"


def without_version(gene: str) -> str:
    """Cuts the version of an Ensembl identifier: `ENSG00000141510.17` is `ENSG00000141510`."""
    found = _VERSIONED.fullmatch(gene)
    return found.group(1) if found else gene


def number_of(n: int, one: str, many: str) -> str:
    """Formats a number with what is counted: `1 gene stands`, `2,000 genes stand`."""
    return f"{n:,} {one if n == 1 else many}"


def some_of(names: Sequence[str]) -> str:
    """Formats the first five of some names."""
    return ", ".join(f"'{name}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")
