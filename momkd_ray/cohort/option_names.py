"""Says in messages which setting, or which option of a verb without a configuration, to give which value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from momkd_ray.cohort.quoting import in_shell, in_yaml
from momkd_ray.errors import InputError

# a verb without a configuration has no encoding to choose
_ENCODING = re.compile(r"set cohort\.encoding to .*? or (?=save )|, or set cohort\.encoding|, as cohort\.encoding says")
_options: ContextVar[Mapping[str, str]] = ContextVar("_options", default=MappingProxyType({}))


def set_to(key: str, *values: str) -> str:
    """Says which values to choose from, so that each can be pasted into the configuration or a command line.

    Args:
        key: of the configuration; or an option of the command line, if no key is for the same.
        values: of which one is right; without any, the sentence goes on as the caller likes.

    >>> print(set_to("cohort.label", "PR", "no"))
    set cohort.label to PR or "no"
    >>> print(set_to("--subgroups", "Fold No"))
    give --subgroups 'Fold No'
    """
    option = _options.get().get(key, key)
    begins, quoted = (f"give {option}", in_shell) if option.startswith("-") else (f"set {key} to", in_yaml)
    return f"{begins} {' or '.join(map(quoted, values))}".rstrip()


def as_options(message: str, options: Mapping[str, str]) -> str:
    """Replaces the configuration's keys in a message by a verb's options, so that its cure works.

    >>> as_options("no column: set cohort.label to one of them", {"cohort.label": "--label"})
    'no column: give --label one of them'
    """
    message = _ENCODING.sub("", message)
    for key in sorted(options, key=len, reverse=True):  # one may begin another
        message = message.replace(f"set {key} to", f"give {options[key]}").replace(key, options[key])
    return message


@contextmanager
def told_as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Names a verb's options in place of the configuration's keys in the cures and `InputError`s of the block.

    Args:
        options: key -> option.
    """
    token = _options.set(options)
    try:
        yield
    except InputError as error:
        raise InputError(as_options(str(error), options)) from error
    finally:
        _options.reset(token)
