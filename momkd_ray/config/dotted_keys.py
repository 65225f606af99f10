"""Dotted keys of a tree of configuration sections, and the message about an unknown key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration; unknown keys are errors, and values cannot be assigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def dotted_keys(section: type[Section], prefix: str = "") -> Iterable[str]:
    """Yields every dotted key of a tree of sections, such as `train.lr`."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[Section] | None:
    """Returns the section class of a field's annotation (a section, or an optional one); None for a plain value."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def unknown_key(tree: type[Section], path: list[str], source: str) -> str:
    """Returns the message about a key that is not in the tree: the nearest valid key, and all keys of its section.

    Args:
        tree: the section at the root.
        path: parts of the unknown key.
        source: the file or option that it comes from.
    """
    key, valid = ".".join(path), list(dotted_keys(tree))
    section = ".".join(path[:-1])
    inside = f"{section}." if section else ""
    siblings = sorted({k.removeprefix(inside).split(".")[0] for k in valid if k.startswith(inside)})
    nearest = difflib.get_close_matches(path[-1], siblings, n=1)
    if nearest:
        best = ".".join([*path[:-1], *nearest])
    elif elsewhere := difflib.get_close_matches(key, valid, n=1, cutoff=0.5):
        best = elsewhere[0]
    else:
        best = next((k for k in valid if k.rsplit(".", 1)[-1] == path[-1]), "")
    if not siblings:  # the section itself is unknown
        section, siblings = "", sorted({k.split(".")[0] for k in valid})
    hint = f"the nearest valid key is '{best}'; " if best else ""
    owner = f"'{section}' has" if section else "the sections are"
    return f"{source}: unknown configuration key '{key}'; {hint}{owner} {', '.join(siblings)}"


def type_of(tree: type[Section], key: str) -> Any:
    """Returns the type annotation of a dotted key."""
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = section_of(tree.model_fields[parent].annotation) or tree
    return tree.model_fields[leaf].annotation
