"""The options of an evaluation: fixed sensitivities and specificities, prevalences, and subgroups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from momkd_ray.errors import InputError


@dataclass(frozen=True)
class Subgroups:
    """A column to compare patients by, and where a numeric one is cut; None for tertiles."""

    column: str
    cuts: tuple[float, ...] | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation computes besides the metrics that it always does.

    Attributes:
        sensitivities, specificities: at which thresholds are chosen, on the run's validation patients and, to
            describe the curve, on this cohort.
        prevalences: at which predictive values are given, besides this cohort's own.
        subgroups: columns of the clinical table.
        seed: of the bootstrap.
    """

    sensitivities: tuple[float, ...] = (0.9,)
    specificities: tuple[float, ...] = (0.9,)
    prevalences: tuple[float, ...] = ()
    subgroups: tuple[Subgroups, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        """Checks that shares lie between 0 and 1.

        Raises:
            InputError: one does not.
        """
        for option in ("sensitivities", "specificities", "prevalences"):
            name = {"sensitivities": "sensitivity", "specificities": "specificity", "prevalences": "prevalence"}[option]
            for value in getattr(self, option):
                if not 0 < value < 1:
                    raise InputError(f"--{name} is {value:g}, but it must lie between 0 and 1, such as 0.9")


def parse_subgroups(text: str, columns: Sequence[str]) -> tuple[Subgroups, ...]:
    """Reads `site,age:50:65,stage`: columns, each with the values at which a numeric one is cut.

    Args:
        text: of the option; '' for none.
        columns: of the clinical table; a name that contains a comma or colon is recognised.

    Raises:
        InputError: a cut is not a number, cuts do not rise, or a column is named twice.

    >>> parse_subgroups("site, age:50:65", ["site", "age"])
    (Subgroups(column='site', cuts=None), Subgroups(column='age', cuts=(50.0, 65.0)))
    """
    found: list[Subgroups] = []
    for part in _parts(text, columns):
        name, _, cuts = (part, "", "") if part in columns else part.partition(":")
        values = [value.strip() for value in re.split(r"[:/]", cuts) if value.strip()] if cuts else []
        try:
            numbers = tuple(float(value) for value in values)
        except ValueError as error:
            raise InputError(f"--subgroups {part}: write a column and the numbers to cut it at: age:50:65") from error
        if list(numbers) != sorted(set(numbers)):
            raise InputError(f"--subgroups {part}: the numbers to cut at must rise: age:50:65")
        if name.strip() in [one.column for one in found]:
            raise InputError(f"--subgroups names '{name.strip()}' twice: name each column once")
        found.append(Subgroups(name.strip(), numbers or None))
    return tuple(found)


def _parts(text: str, columns: Sequence[str]) -> list[str]:
    """Splits at commas, but not within the name of a column."""
    parts, rest = [], text.strip()
    while rest:
        known = max((name for name in columns if re.match(re.escape(name) + r"\s*(,|:|$)", rest)), key=len, default="")
        end = rest.find(",", len(known))
        part, rest = (rest, "") if end < 0 else (rest[:end], rest[end + 1 :].strip())
        if part.strip():
            parts.append(part.strip())
    return parts
