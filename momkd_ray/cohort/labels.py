"""Sorts the labels of the clinical table into the classes: by name, by a cut-off, or as the rest."""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from momkd_ray.cohort.number_text import numbers_of
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.data_sections import CUT_OFF, RANGE, REST
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
_AROUND = re.compile(r"[\s./\[\]()*'\"_-]+")
# how tables write that a label is missing, without case, blanks and punctuation; such a label is never of the rest
MISSING_LABELS = frozenset(
    re.findall(
        r"\w+",
        """na nan nd unknown unk notavailable notapplicable notevaluated notreported notdone notperformed
        notassessed nottested notknown missing nodata discrepancy completed unbekannt ka keineangabe nichtbekannt fehlt
        inconnu nondisponible nonrenseigne unspecified""",
    )
)


@dataclass(frozen=True)
class Labelling:
    """The class of each label.

    Attributes:
        y: label as written in the table -> number of its class; of two, 1 is the positive one.
        understood: how several labels, cut-offs or the rest were read.
        numbers: label as written -> the number that it is; only of a regression.
    """

    y: Mapping[str, int]
    understood: tuple[Understood, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


def label_key(label: str) -> tuple[str, Hashable]:
    """Returns what a label means whatever the file type: `1` and `1.0` are equal, and so are `True` and `TRUE`.

    >>> label_key("1") == label_key("1.0"), label_key("True") == label_key("TRUE"), label_key("1") == label_key("True")
    (True, True, False)
    """
    if _PLAIN_NUMBER.fullmatch(label):
        return "number", float(label)
    if label.casefold() in ("true", "false"):
        return "truth value", label.casefold()
    return "text", unicodedata.normalize("NFC", label)


def folded_label(label: str) -> str:
    """Returns a label in one case and with single blanks, so that spellings of one label are equal."""
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


def says_missing(label: str) -> bool:
    """Returns whether a label says that there is none: `unknown`, `[Not Available]`, `n.a.`, `-`.

    >>> [says_missing(label) for label in ("[Not Available]", "?", "k. A.", "none", "Equivocal")]
    [True, True, True, False, False]
    """
    plain = _AROUND.sub("", label.casefold()).strip("?")
    return not plain or plain in MISSING_LABELS


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
    numbers = label_numbers(list(counts)) if settings.task == "regression" else {}
    if numbers:  # `<1` and `10-20` may be within a range, but are no number
        counts = Counter({label: count for label, count in counts.items() if label in numbers})
    names = settings.class_names
    keys = {label_key(label) for label in counts}
    claimed = [_claimed(settings.labels_of(y), counts, keys) for y in range(len(names))]
    for first, second in combinations(range(len(names)), 2):
        if both := sorted(claimed[first] & claimed[second]):
            raise InputError(
                f"{path}: the '{settings.label}' '{both[0]}' is in both classes ({_place(settings, first)} "
                f"and {_place(settings, second)}): let the two exclude each other"
            )
    claimed = _without_regard_to_case(claimed, counts, settings)
    understood: list[Understood] = []
    rest = next((y for y in range(len(names)) if _is_rest(settings.labels_of(y), keys)), None)
    if rest is not None:
        named: set[str] = set().union(*(own for y, own in enumerate(claimed) if y != rest))
        claimed[rest] = _rest(settings, counts, named, path, understood)
    shown = _shown_order(len(names))
    for y in shown:
        if not claimed[y] and settings.task != "regression":  # a range may be empty in another cohort
            others = set().union(*(own for other, own in enumerate(claimed) if other != y))
            raise InputError(_without_label(settings, counts, y, others, path))
    understood += [
        Understood(path, "labels", _described(settings, names[y], claimed[y], counts), len(claimed[y]))
        for y in shown
        if claimed[y] != {names[y]}
    ]
    understood += _in_vain(settings, keys, path)
    return Labelling({label: y for y, own in enumerate(claimed) for label in own}, tuple(understood), numbers)


def check_classes(settings: CohortConfig) -> None:
    """Raises if two classes name the same label.

    Raises:
        InputError: they do.
    """
    if settings.task == "regression":  # whose classes are ranges without an overlap
        return
    own = [{label_key(label) for label in settings.labels_of(y)} for y in range(len(settings.class_names))]
    for first, second in combinations(range(len(own)), 2):
        both = next((label for label in settings.labels_of(second) if label_key(label) in own[first]), None)
        if both is not None and settings.classes is None:
            raise InputError(f"cohort.positive and cohort.negative are both '{both}': name two classes")
        if both is not None:
            names = settings.class_names
            raise InputError(f"cohort.classes gives '{both}' to '{names[first]}' and to '{names[second]}': to one only")


def _place(settings: CohortConfig, y: int) -> str:
    return f"{settings.key_of(y)} '{settings.class_names[y]}'"


def _shown_order(classes: int) -> Sequence[int]:
    """Returns the order in which messages name the classes: of two the positive one first."""
    return (1, 0) if classes == 2 else range(classes)


def _claimed(given: tuple[str, ...], counts: Counter[str], keys: set[tuple[str, Hashable]]) -> set[str]:
    """Returns the labels that occur and that these names and cut-offs mean."""
    labels = list(counts)
    own = {label_key(name) for name in given}
    claimed = {label for label in labels if label_key(label) in own}
    ranges = _ranges(labels)
    for name in given:
        cut_offs = CUT_OFF.findall(name) if is_cut_off(name) else []
        if cut_offs and label_key(name) not in keys:  # a label may be written so itself
            claimed |= {
                label
                for label, ends in ranges.items()
                if ends and all(_COMPARE[sign](end, float(limit)) for sign, limit in cut_offs for end in ends)
            }
    return claimed


def label_numbers(labels: Sequence[str]) -> dict[str, float]:
    """Returns the number that each label is, as written; not those of ranges such as `<1` and `10-20`, nor of words.

    >>> label_numbers(["12.0", "12", "<1", "10-20", "high"])
    {'12.0': 12.0, '12': 12.0}
    """
    return {label: ends[0] for label, ends in _ranges(labels).items() if len(ends) == 1 and math.isfinite(ends[0])}


def _ranges(labels: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Returns the ends of the range that each label means: `30` and `30 %`, `10-20`, `<1` (up to but without 1), `>90`.

    Per cent signs count only where every number has one.
    """
    plain = [label.strip() for label in labels]
    numeric = [label for label in plain if re.match(r"[<>≤≥=+-]*\s*\d", label)]
    if numeric and all(label.endswith("%") for label in numeric):
        plain = [label.removesuffix("%").strip() for label in plain]
    ranges: dict[str, tuple[float, ...]] = {}
    for label, own, number in zip(labels, plain, numbers_of(plain), strict=True):
        between = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?\s*[-\u2013]\s*(\d+(?:\.\d+)?)", own)
        beyond = re.fullmatch(r"(<=|>=|<|>|≤|≥)\s*(\d+(?:\.\d+)?)", own)
        if number is not None:
            ranges[label] = (number,)
        elif between and float(between[1]) < float(between[2]):
            ranges[label] = (float(between[1]), float(between[2]))
        elif beyond:
            limit = float(beyond[2])
            end = limit if "=" in beyond[1] or beyond[1] in "≤≥" else math.nextafter(limit, -math.inf)
            if beyond[1] == ">":
                end = math.nextafter(limit, math.inf)
            ranges[label] = (end, math.inf if beyond[1] in (">", ">=", "≥") else -math.inf)
    return ranges


def _without_regard_to_case(
    claimed: Sequence[set[str]], counts: Counter[str], settings: CohortConfig
) -> list[set[str]]:
    """Adds the labels that differ from those of one class in case only; if they do from several, they are of none."""
    own = [{folded_label(label) for label in settings.labels_of(y)} for y in range(len(claimed))]
    found = [set(labels) for labels in claimed]
    for label in counts:
        if any(label in labels for labels in claimed) or label_key(label)[0] != "text" or folded_label(label) == REST:
            continue
        alike = [y for y, forms in enumerate(own) if folded_label(label) in forms]
        if len(alike) == 1:
            found[alike[0]].add(label)
    return found


def _rest(
    settings: CohortConfig, counts: Counter[str], others: set[str], path: str, understood: list[Understood]
) -> set[str]:
    """Returns all labels but those of the other class and those that say that there is none, which are told."""
    signs = any("+" in label for label in counts)  # then - is a result
    missing = {
        label for label in counts if label not in others and says_missing(label) and not (signs and "-" in label)
    }
    if missing:
        rows = sum(counts[label] for label in missing)
        listed = _listed(Counter({label: counts[label] for label in missing}))
        none = "neither" if len(settings.class_names) == 2 else "no"
        what = f"the '{settings.label}' {listed} says that there is none, and is of {none} class"
        understood.append(Understood(path, "labels", what, rows, warning=True))
    return set(counts) - others - missing


def is_cut_off(name: str) -> bool:
    """Returns whether a class is given by a cut-off, or by a range of two."""
    return bool(CUT_OFF.fullmatch(name) or RANGE.fullmatch(name))


def _is_rest(given: tuple[str, ...], keys: set[tuple[str, Hashable]]) -> bool:
    return given == (REST,) and label_key(REST) not in keys


def _in_vain(settings: CohortConfig, keys: set[tuple[str, Hashable]], path: str) -> list[Understood]:
    """Warns of labels in a list that no row has, which may be misspelt."""
    listed = {y: settings.labels_of(y) for y in _shown_order(len(settings.class_names))}
    return [
        Understood(path, "labels", f"no '{settings.label}' is '{name}' ({settings.key_of(y)})", 0, warning=True)
        for y, names in listed.items()
        for name in names
        if len(names) > 1 and label_key(name) not in keys and not is_cut_off(name)
    ]


def _without_label(settings: CohortConfig, counts: Counter[str], y: int, others: set[str], path: str) -> str:
    """Builds the sentence about a class that no row has, with the labels that there are."""
    name, key = settings.class_names[y], settings.key_of(y)
    if settings.classes is not None:
        name = " or ".join(settings.labels_of(y))
    is_a = "fulfils" if is_cut_off(name) else "is"
    more = f" and {len(counts) - _SHOWN} other values" if len(counts) > _SHOWN else ""
    free = [label for label in counts if label not in others]
    if settings.classes is not None:
        cure = f"; name the classes in {key} by these values" if counts else ""
    elif others and len(free) == 1 and not is_cut_off(free[0]):
        cure = f"; {set_to(key, free[0])}"
    elif others and len(free) > 1:
        cure = f"; name one of them or a list of them, or set {key} to {REST} for all but those of the other class"
    else:
        cure = ""
    if name in ("True", "False"):
        cure += " (YAML reads an unquoted yes or no as True or False: quote it in YAML)"
    return (
        f"{path}: no '{settings.label}' {is_a} '{name}' ({key}); its values are "
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
