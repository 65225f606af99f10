"""Reads the files of a finished cross-validation, and says plainly which is missing or damaged."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import yaml
from pyarrow import ArrowException

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.run.layout import RunDirectory


def read_finished(directory: RunDirectory, location: str, parse: Callable[[bytes], Any]) -> Any:
    """Reads a file of a finished cross-validation.

    Args:
        directory: of the run.
        location: of the file.
        parse: makes a value of its content.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        content = storage.read_bytes(location)
    except (FileNotFoundError, NotADirectoryError) as error:
        name = location.removeprefix(directory.location).lstrip("/")
        raise InputError(
            f"no finished cross-validation in {directory.location}: {name} is missing; run momkd-ray crossval first"
        ) from error
    try:
        return parse(content)
    except (ValueError, KeyError, yaml.YAMLError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} is damaged ({reason}): run momkd-ray crossval again") from error


def pair(classes: Sequence[str], what: str) -> tuple[str, str]:
    """Returns the negative and the positive class.

    Args:
        classes: names of the classes.
        what: needs two classes, for the message.

    Raises:
        InputError: there are more than two.
    """
    if len(classes) != 2:
        raise InputError(f"{what} is for two classes, and these models tell {len(classes)} apart: {', '.join(classes)}")
    return classes[0], classes[1]


def parquet(content: bytes) -> pd.DataFrame:
    """Parses a Parquet file."""
    return pd.read_parquet(io.BytesIO(content))


def label_and_classes(configuration: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the name of the label, and of the classes, from the content of run.yaml; of two the negative one first.

    Several labels of a class without a name of its own are joined by `+`, as in the run's predictions.

    Raises:
        KeyError, TypeError: they are not there.
    """
    cohort = configuration["cohort"]
    if cohort.get("classes"):
        return str(cohort["label"]), tuple(map(str, cohort["classes"]))
    negative, positive = (
        "+".join(map(str, value)) if isinstance(value, list) else str(value)
        for value in (cohort["negative"], cohort["positive"])
    )
    return str(cohort["label"]), (negative, positive)
