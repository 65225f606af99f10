"""Messages about tables in the words of a verb without a configuration: its options in place of the keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from momkd_ray.errors import InputError

# a verb without a configuration has no encoding to choose
_ENCODING = re.compile(r"set cohort\.encoding to .*? or (?=save )|, or set cohort\.encoding|, as cohort\.encoding says")


def as_options(message: str, options: Mapping[str, str]) -> str:
    """Replaces the configuration's keys in a message by a verb's options, so that its cure works.

    Args:
        message: about a table.
        options: key -> option; a key that begins another stands after it.

    >>> as_options("no column: set cohort.label to one of them", {"cohort.label": "--label"})
    'no column: give --label one of them'
    """
    message = _ENCODING.sub("", message)
    for key, option in options.items():
        message = message.replace(f"set {key} to", f"give {option}").replace(key, option)
    return message


@contextmanager
def told_as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Raises an `InputError` of the block again with a verb's options in place of the configuration's keys."""
    try:
        yield
    except InputError as error:
        raise InputError(as_options(str(error), options)) from error
