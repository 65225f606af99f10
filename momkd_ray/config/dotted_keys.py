"""Dotted keys of a tree of configuration sections, and the sentence about one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the tree; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def dotted_keys(section: type[Section], prefix: str = "") -> Iterable[str]:
    """Every key of a tree, dotted."""
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[Section] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def unknown_key(tree: type[Section], path: list[str], source: str) -> str:
    """The sentence about a key that is not in the tree: the nearest one, and all that stand beside it."""
    key, known = ".".join(path), list(dotted_keys(tree))
    section = ".".join(path[:-1])
    inside = f"{section}." if section else ""
    beside = sorted({k.removeprefix(inside).split(".")[0] for k in known if k.startswith(inside)})
    nearest = difflib.get_close_matches(path[-1], beside, n=1)
    if nearest:
        best = ".".join([*path[:-1], *nearest])
    elif elsewhere := difflib.get_close_matches(key, known, n=1, cutoff=0.5):
        best = elsewhere[0]
    else:
        best = next((k for k in known if k.rsplit(".", 1)[-1] == path[-1]), "")
    if not beside:  # the section itself is unknown
        section, beside = "", sorted({k.split(".")[0] for k in known})
    hint = f"the nearest valid key is '{best}'; " if best else ""
    place = f"'{section}' has" if section else "the sections are"
    return f"{source}: unknown configuration key '{key}'; {hint}{place} {', '.join(beside)}"


def type_of(tree: type[Section], key: str) -> Any:
    """What the value of a dotted key of a tree is."""
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = _section_of(tree.model_fields[parent].annotation) or tree
    return tree.model_fields[leaf].annotation
