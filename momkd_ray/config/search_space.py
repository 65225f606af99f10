"""The values that a search can try for a key: a list, or a range of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from momkd_ray.config.value_errors import must_be


class Range(BaseModel):
    """Numbers from `low` to `high`, both included; only integers if the key takes nothing else.

    Attributes:
        low, high: the ends.
        log: whether values are uniform in their logarithm, as for a learning rate.
        step: if given, only the values low, low + step, and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g}), both finite")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: leave one out")
        if self.step is not None and not 0 < self.step <= (self.high - self.low) * (1 + 1e-12):
            raise ValueError(f"step ({self.step:g}) must be above 0 and fit between low and high")
        return self

    def count(self, integers: bool) -> int | None:
        """Returns the number of values; None if every number between the ends is one."""
        step = self.step or (1.0 if integers else None)
        # the factor absorbs rounding: a step such as 0.1 fits ten times between 0 and 1
        return None if step is None else math.floor((self.high - self.low) / step * (1 + 1e-12)) + 1

    def value(self, index: int, integers: bool) -> float:
        """Returns the value at an index, counted from 0, of a range that has a `count`."""
        value = self.low + index * (self.step or 1.0)
        return round(value) if integers else min(max(float(f"{value:.12g}"), self.low), self.high)

    def quantile(self, share: float, integers: bool) -> float:
        """Returns the value at a share (0 to 1, excluded) of the range; all values have the same share."""
        if self.log:
            # an integer n stands for all numbers from n up to n + 1
            high = self.high + 1 if integers else self.high
            value = math.exp(math.log(self.low) + share * (math.log(high) - math.log(self.low)))
            value = min(max(value, self.low), self.high)
            return math.floor(value * (1 + 1e-12)) if integers else value
        n_values = self.count(integers)
        if n_values is None:
            return self.low + share * (self.high - self.low)
        return self.value(min(int(share * n_values), n_values - 1), integers)

    def samples(self, integers: bool) -> list[float]:
        """Returns the ends and a value between them, by which the range is checked against the limits of its key."""
        n_values = self.count(integers)
        if n_values is None:
            return [self.low, self.quantile(0.5, integers), self.high]
        return [self.value(index, integers) for index in sorted({0, 1, n_values - 1})]


Space = dict[str, list[Any] | Range]


def read_space(tree: Any) -> Space:
    """Reads the search of a configuration: for each dotted key a list of values, or a mapping with `low` and `high`.

    Raises:
        ValueError: it is neither; the message names the key.
    """
    if not isinstance(tree, Mapping):
        raise ValueError("write dotted keys with their values, such as {train.lr: [1.0e-4, 2.0e-4]}")
    return {str(key): _values_or_range(str(key), values) for key, values in tree.items()}


def _values_or_range(key: str, values: Any) -> list[Any] | Range:
    if isinstance(values, Range):
        return values
    if isinstance(values, list | tuple):
        if not values:
            raise ValueError(f"there are no values for '{key}'; list at least one")
        if repeated := [value for index, value in enumerate(values) if value in values[:index]]:
            raise ValueError(f"'{key}' lists {repeated[0]!r} twice")
        return list(values)
    if not isinstance(values, Mapping):
        raise ValueError(f"'{key}' needs a list of values or a range such as {{low: 1.0e-5, high: 1.0e-2, log: true}}")
    try:
        return Range.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            reason = f"a range has low, high, log and step, no '{name}'"
        elif first["type"] == "missing":
            reason = f"a range needs '{name}'"
        elif first["type"] == "value_error":
            reason = str(first["ctx"]["error"])
        else:
            reason = f"'{name}' is {first['input']!r}, but {must_be(first)}"
        raise ValueError(f"'{key}': {reason}") from None
