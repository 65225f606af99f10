"""Retries local file operations whose errors come from the machine, disk or network file system, not from the file.

Only content that was read completely and is wrong is bad input. An error such as a stale NFS handle passes, or ends
the run as a `RunError`, which no reader takes for damage.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from momkd_ray.errors import RunError

LOCAL_RETRY_S = 30.0
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0
WARN_AFTER_S = 3.0

_log = logging.getLogger(__name__)

_MOUNT = "check the disk or network file system there"
_REMEDIES = {
    "ESTALE": _MOUNT,
    "EIO": _MOUNT,
    "EREMOTEIO": _MOUNT,
    "ETIMEDOUT": _MOUNT,
    "ENOTCONN": _MOUNT,
    "ECONNRESET": _MOUNT,
    "ECONNABORTED": _MOUNT,
    "EHOSTDOWN": _MOUNT,
    "EHOSTUNREACH": _MOUNT,
    "ENETDOWN": _MOUNT,
    "ENETUNREACH": _MOUNT,
    "ENODEV": _MOUNT,
    "ENXIO": _MOUNT,
    "EBUSY": _MOUNT,
    "EAGAIN": _MOUNT,
    "EINTR": _MOUNT,
    "EMFILE": "raise the limit of open files (ulimit -n)",
    "ENFILE": "close other programs, or raise the machine's limit of open files (fs.file-max)",
    "ENOMEM": "free memory on this machine, or use a larger one",
    "ENOBUFS": "free memory on this machine, or use a larger one",
    "ENOSPC": "free some space there",
    "EDQUOT": "free some space there",
}
_REMEDY_OF = {getattr(errno, name): remedy for name, remedy in _REMEDIES.items() if hasattr(errno, name)}
_ERRNO_IN_TEXT = re.compile(r"\berrno ?= ?(\d+)")  # HDF5 reports it so

T = TypeVar("T")


def machine_errno(error: BaseException | None) -> int | None:
    """Returns the errno of a machine's failure behind an exception, its causes included; None if there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RunError):
            return None  # it was retried already, perhaps on S3
        if isinstance(error, OSError) and error.errno in _REMEDY_OF:
            return error.errno
        match = _ERRNO_IN_TEXT.search(str(error)) if isinstance(error, OSError) else None
        if match and int(match[1]) in _REMEDY_OF:
            return int(match[1])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def machine_failure(action: str, location: str, number: int, tried: str = "") -> RunError:
    """Returns the error for an operation that failed because of the machine.

    Args:
        action: the operation as a verb: `read`, `write`, ...
        location: the file.
        number: the errno.
        tried: how often the operation was tried.
    """
    return RunError(
        f"could not {action} {location}: {os.strerror(number)}{tried}; {_REMEDY_OF[number]}, then run the same command "
        "again"
    )


def with_local_retries(action: str, location: str, request: Callable[[], T]) -> T:
    """Returns the result of a local operation, which is retried with backoff while the machine fails.

    Args:
        action: the operation as a verb for error messages.
        location: the file.
        request: the operation.

    Raises:
        RunError: the machine did not recover in time.
        Exception: what the operation raises for any other reason.
    """
    started, attempts, warned = time.monotonic(), 0, False
    while True:
        try:
            return request()
        except Exception as error:
            number = machine_errno(error)
            if number is None:
                raise
            attempts += 1
            elapsed = time.monotonic() - started
            if elapsed >= LOCAL_RETRY_S:
                raise machine_failure(action, location, number, f" ({attempts} attempts in {elapsed:.0f} s)") from error
            if elapsed >= WARN_AFTER_S and not warned:
                warned = True
                _log.warning("waiting up to %.0f s to %s %s: %s", LOCAL_RETRY_S, action, location, os.strerror(number))
        time.sleep(min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(attempts - 1, 16), LOCAL_RETRY_S))
