"""Sentences about configuration values that are not valid: where each was given, and what it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from momkd_ray.config.dotted_keys import Section, unknown_key

_WORDS = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (quote it in YAML)",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping such as 'key: value'",
    "model_type": "a mapping such as 'key: value'",
    "model_attributes_type": "a mapping such as 'key: value'",
}


def must_be(error: Mapping[str, Any]) -> str:
    """Returns what a value must be: `must be an integer`; `error` is one of a `ValidationError`'s."""
    if words := _WORDS.get(error["type"]):
        return f"must be {words}"
    message, begins = str(error["msg"]), "Input should "
    if message.startswith(begins):
        return f"must {message.removeprefix(begins)}"
    return message[:1].lower() + message[1:]


def place_of(path: Sequence[str], source: str, overrides: Mapping[str, str]) -> str:
    """Returns what gave the value of a key: the option `--set` or the file; for a section that `--set` changes, both.

    Args:
        path: parts of the key.
        source: the file.
        overrides: what was written after `--set`, by dotted key.
    """
    inside = []
    for key, written in overrides.items():
        parts = key.split(".")
        if list(path[: len(parts)]) == parts:
            return f"--set {written}"
        if parts[: len(path)] == list(path):
            inside.append(f"--set {written}")
    return f"{source} with {' '.join(inside)}" if inside else source


def sentence_of(error: ValidationError, tree: type[Section], source: str, overrides: Mapping[str, str]) -> str:
    """Returns the sentence about the first fault; `source` and `overrides` are as for `place_of`."""
    # a misspelt key often leaves a required one missing: the misspelt one is reported
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    key, place = ".".join(path), place_of(path, source, overrides)
    if first["type"] == "extra_forbidden":
        names = first["input"] if isinstance(first["input"], Mapping) else {}
        if names and all(f"{key}.{name}" in overrides for name in names):  # the file has no such section
            place = place_of([*path, *map(str, names)][: len(path) + 1], source, overrides)
        return unknown_key(tree, path, place)
    if first["type"] == "missing":
        return f"{source}: the configuration key '{key}' is missing"
    if first["type"] == "value_error":
        return f"{place}: {key}: {first['ctx']['error']}"
    return f"{place}: '{key}' is {first['input']!r}, but {must_be(first)}"
