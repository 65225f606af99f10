"""Chooses the classes of a label column: joins spellings, finds the positive one by its word, and sorts grades."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from momkd_ray.cohort.labels import folded_label, label_key, says_missing

POSITIVE = (
    "positive",
    "pos",
    "+",
    "yes",
    "true",
    "1",
    "mutated",
    "mut",
    "high",
    "msih",
    "msi-h",
    "altered",
    "tumor",
)
NEGATIVE = (
    "negative",
    "neg",
    "-",
    "no",
    "false",
    "0",
    "wild type",
    "wildtype",
    "wt",
    "low",
    "mss",
    "nonmsih",
    "control",
)
USABLE = 5  # patients from which a value may be a class of several
_OF_ANYTHING = ("yes", "true", "1")  # the words of columns that need not be of a marker, such as a history of smoking
_OF_GRADES = ("0", "1", "low", "high")  # two of perhaps more grades
_WORDS = (("zero", "none"), ("low", "mild"), ("intermediate", "medium", "middle", "moderate"), ("high", "severe"))
_ROMAN = ("i", "ii", "iii", "iv", "v")
_GRADE = re.compile(r"(.*?)(\d+|(?<![^\W\d_])(?:iv|v|i{1,3}))(\W*|[a-e]\d?)")


@dataclass(frozen=True)
class ChosenClasses:
    """The values of a column that become classes.

    Attributes:
        names: of the classes; of two the negative one first.
        certain: whether the words say which of two is positive, or in which order more than two are.
        left_out: the other values.
    """

    names: tuple[str, ...]
    certain: bool
    left_out: tuple[str, ...]


def patients_by_label(patients: Sequence[str | None], labels: Sequence[str | None]) -> Counter[str]:
    """Counts the patients of each label, with spellings that the reader takes for one label as one, the commonest.

    Labels that say that there is none are not counted, but for a `-` beside a `+`.

    Args:
        patients: the cells of the column of patients.
        labels: those of the column of labels.
    """
    signs = any(label is not None and "+" in label for label in labels)
    owners: dict[Hashable, set[str]] = {}
    spellings: dict[Hashable, Counter[str]] = {}
    for patient, label in zip(patients, labels, strict=True):
        if patient is None or label is None or (says_missing(label) and not (signs and "-" in label)):
            continue
        kind, meaning = label_key(label)
        key = (kind, folded_label(label) if kind == "text" else meaning)
        owners.setdefault(key, set()).add(patient)
        spellings.setdefault(key, Counter())[" ".join(label.split())] += 1
    return Counter({spellings[key].most_common(1)[0][0]: len(own) for key, own in owners.items()})


def unlikelihood(counts: Counter[str]) -> tuple[bool, bool, bool, int]:
    """Returns a key by which the columns are sorted, the likeliest label first: that with a positive class by name."""
    named = classes_by_word(counts)
    if named is not None and min(counts[name] for name in named) < 2:
        named = None
    general = named is None or named[1].casefold() in _OF_ANYTHING
    return named is None, general, len(counts) != 2, len(counts)


def choose_classes(counts: Counter[str]) -> ChosenClasses:
    """Chooses the classes: two if their words say so or there are no more of usable size, or else all of that size."""
    usable = [name for name, count in counts.items() if count >= USABLE]
    named = classes_by_word(counts)
    graded = named is not None and named[1].casefold() in _OF_GRADES and named[0].casefold() in _OF_GRADES
    if len(usable) >= 3 and (named is None or graded):
        ordered = in_order(usable)
        names, certain = tuple(ordered or usable), ordered is not None
    else:
        negative, positive, certain = likely_classes(counts)
        names = negative, positive
    return ChosenClasses(names, certain, tuple(name for name in counts if name not in names))


def classes_by_word(counts: Counter[str]) -> tuple[str, str] | None:
    """Returns the negative and the positive value, if their words say so."""
    positive = [value for value in counts if folded_label(value) in POSITIVE]
    negative = [value for value in counts if folded_label(value) in NEGATIVE]
    return (negative[0], positive[0]) if len(positive) == len(negative) == 1 else None


def likely_classes(counts: Counter[str]) -> tuple[str, str, bool]:
    """Returns the negative and the positive value, and whether their words say which is which."""
    if (known := classes_by_word(counts)) is not None:
        return *known, True
    (first, _), (second, _) = counts.most_common(2)
    return first, second, False


def in_order(names: Sequence[str]) -> list[str] | None:
    """Sorts grades by their numbers, Roman ones too, or by words such as low and high; None of names without an order.

    >>> in_order(["Stage III", "stage I", "Stage IIA"]), in_order(["2+", "0", "3+"]), in_order(["LumA", "Basal"])
    (['stage I', 'Stage IIA', 'Stage III'], ['0', '2+', '3+'], None)
    """
    words = {word: (rank, "") for rank, same in enumerate(_WORDS) for word in same}
    ranks = {name: words.get(folded_label(name)) for name in names}
    if None in ranks.values():
        matches = {name: _GRADE.fullmatch(folded_label(name)) for name in names}
        ranks = {name: (_number(own[2]), own[3]) if own else None for name, own in matches.items()}
        if len({(own[1], own[2].isdecimal()) for own in matches.values() if own}) != 1:
            return None
    known = {name: rank for name, rank in ranks.items() if rank is not None}
    if len(known) < len(names) or len(set(known.values())) < len(names):
        return None
    return sorted(names, key=lambda name: known[name])


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else _ROMAN.index(text) + 1
