"""Sorts the labels of the clinical table into the two classes: by name, by a cut-off, or as the rest."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

from momkd_ray.cohort.number_text import numbers_of
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.data_sections import CUT_OFF, REST
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "≥": operator.ge,
    "<=": operator.le,
    "≤": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# neither leading zeros, as in a code, nor what is no number
_PLAIN_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?")
_SHOWN = 8
_KEYS: tuple[Literal["positive", "negative"], ...] = ("positive", "negative")


@dataclass(frozen=True)
class Labelling:
    """The class of each label.

    Attributes:
        y: label as written in the table -> 1 for the positive class, 0 for the negative.
        understood: how several labels, cut-offs or the rest were read.
    """

    y: Mapping[str, int]
    understood: tuple[Understood, ...]


def label_key(label: str) -> tuple[str, Hashable]:
    """Returns what a label means whatever the file type: `1` and `1.0` are equal, and so are `True` and `TRUE`.

    >>> label_key("1") == label_key("1.0"), label_key("True") == label_key("TRUE"), label_key("1") == label_key("True")
    (True, True, False)
    """
    if _PLAIN_NUMBER.fullmatch(label):
        return "number", float(label)
    if label.casefold() in ("true", "false"):
        return "truth value", label.casefold()
    return "text", label


def sort_labels(settings: CohortConfig, counts: Counter[str], path: str) -> Labelling:
    """Finds the class of every label that occurs.

    Args:
        settings: the configuration's `cohort` section.
        counts: number of rows of each label.
        path: of their table, for messages.

    Raises:
        InputError: both classes claim a label, or a class has none.
    """
    check_classes(settings)
    names = settings.classes
    keys = {label_key(label) for label in counts}
    negative, positive = (_claimed(settings.labels_of(key), counts, keys) for key in ("negative", "positive"))
    both = sorted(negative & positive)
    if both:
        raise InputError(
            f"{path}: the '{settings.label}' '{both[0]}' is in both classes (cohort.negative '{names[0]}' "
            f"and cohort.positive '{names[1]}'): let the two exclude each other"
        )
    if _is_rest(settings.labels_of("negative"), keys):
        negative = set(counts) - positive
    elif _is_rest(settings.labels_of("positive"), keys):
        positive = set(counts) - negative
    for key, own, others in (("positive", positive, negative), ("negative", negative, positive)):
        if not own:
            raise InputError(_without_label(settings, counts, key, others, path))
    understood = [
        Understood(path, "labels", _described(settings, name, own, counts), len(own))
        for name, own in ((names[1], positive), (names[0], negative))
        if own != {name}
    ]
    understood += _in_vain(settings, keys, path)
    return Labelling(dict.fromkeys(negative, 0) | dict.fromkeys(positive, 1), tuple(understood))


def check_classes(settings: CohortConfig) -> None:
    """Raises if the two classes name the same label.

    Raises:
        InputError: they do.
    """
    negative = {label_key(label) for label in settings.labels_of("negative")}
    both = next((label for label in settings.labels_of("positive") if label_key(label) in negative), None)
    if both is not None:
        raise InputError(f"cohort.positive and cohort.negative are both '{both}': name two classes")


def _claimed(given: tuple[str, ...], counts: Counter[str], keys: set[tuple[str, Hashable]]) -> set[str]:
    """Returns the labels that occur and that these names and cut-offs mean."""
    labels = list(counts)
    own = {label_key(name) for name in given}
    claimed = {label for label in labels if label_key(label) in own}
    numbers = numbers_of(labels)
    for name in given:
        cut_off = CUT_OFF.fullmatch(name)
        if cut_off and label_key(name) not in keys:  # a label may be written so itself
            compare, limit = _COMPARE[cut_off[1]], float(cut_off[2])
            claimed |= {
                label
                for label, number in zip(labels, numbers, strict=True)
                if number is not None and compare(number, limit)
            }
    return claimed


def _is_rest(given: tuple[str, ...], keys: set[tuple[str, Hashable]]) -> bool:
    return given == (REST,) and label_key(REST) not in keys


def _in_vain(settings: CohortConfig, keys: set[tuple[str, Hashable]], path: str) -> list[Understood]:
    """Warns of labels in a list that no row has, which may be misspelt."""
    listed = {key: settings.labels_of(key) for key in _KEYS}
    return [
        Understood(path, "labels", f"no '{settings.label}' is '{name}' (cohort.{key})", 0, warning=True)
        for key, names in listed.items()
        for name in names
        if len(names) > 1 and label_key(name) not in keys and not CUT_OFF.fullmatch(name)
    ]


def _without_label(settings: CohortConfig, counts: Counter[str], key: str, others: set[str], path: str) -> str:
    """Builds the sentence about a class that no row has, with the labels that there are."""
    name = settings.classes[key == "positive"]
    is_a = "fulfils" if CUT_OFF.fullmatch(name) else "is"
    more = f" and {len(counts) - _SHOWN} other values" if len(counts) > _SHOWN else ""
    free = [label for label in counts if label not in others]
    if others and len(free) == 1 and not CUT_OFF.fullmatch(free[0]):
        cure = f"; set cohort.{key} to {_quoted(free[0])}"
    elif others and len(free) > 1:
        cure = (
            f"; name one of them or a list of them, or set cohort.{key} to {REST} for all but those of the other class"
        )
    else:
        cure = ""
    if name in ("True", "False"):
        cure += " (YAML reads an unquoted yes or no as True or False: quote it in YAML)"
    return (
        f"{path}: no '{settings.label}' {is_a} '{name}' (cohort.{key}); its values are "
        f"{_listed(counts) or 'all blank'}{more}{cure}"
    )


def _described(settings: CohortConfig, name: str, own: set[str], counts: Counter[str]) -> str:
    numbers = [number for number in numbers_of(own) if number is not None]
    if len(numbers) == len(own) > _SHOWN:
        rows = sum(counts[label] for label in own)
        return f"the class '{name}' is the '{settings.label}' from {min(numbers):g} to {max(numbers):g} ({rows} rows)"
    listed = _listed(Counter({label: counts[label] for label in own}))
    more = f" and {len(own) - _SHOWN} other values" if len(own) > _SHOWN else ""
    return f"the class '{name}' is the '{settings.label}' {listed}{more}"


def _listed(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"'{label}' ({count})" for label, count in ordered[:_SHOWN])


def _quoted(label: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9_.-]+", label) and label.casefold() not in ("yes", "no", "on", "off", "null")
    return label if plain else f"'{label}'"
