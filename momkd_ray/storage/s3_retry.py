"""Retries S3 requests: which errors are transient, how long they are retried, and how the others are reported."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from momkd_ray.errors import InputError, RunError

RETRY_SECONDS_VARIABLE = "MOMKD_RAY_S3_PATIENCE_S"
DEFAULT_RETRY_S = 120.0
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 10.0
WARN_AT_ATTEMPT = 5  # after about three seconds

_log = logging.getLogger(__name__)


class IncompleteResponseError(Exception):
    """An answer ended before its last byte."""


# error codes of transient failures, whatever their HTTP status
_TRANSIENT_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "IncompleteBody",
    "BadDigest",
}
# no connection, a lost one, or an incomplete answer
_TRANSPORT_ERRORS = (
    NoConnectionError,
    HTTPClientError,
    HTTPError,
    IncompleteReadError,
    ResponseParserError,
    IncompleteResponseError,
)
_ABSENT_CODES = {"NoSuchKey", "NotFound", "404"}

# a generator of its own: the number of retries must not affect draws from the global one
_jitter = random.SystemRandom()

T = TypeVar("T")


def retry_seconds() -> float:
    """Returns for how many seconds a failing request is retried, from `MOMKD_RAY_S3_PATIENCE_S`.

    Raises:
        InputError: the variable is not a number of seconds.
    """
    text = os.environ.get(RETRY_SECONDS_VARIABLE, "")
    try:
        seconds = float(text) if text.strip() else DEFAULT_RETRY_S
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{RETRY_SECONDS_VARIABLE} is '{text}': set it to a number of seconds, such as 120")
    return seconds


def with_retries(
    action: str,
    location: str,
    request: Callable[[], T],
    *,
    max_seconds: float = math.inf,
    cancelled: Event | None = None,
) -> T:
    """Returns the result of a request, which is retried with exponential backoff while its errors are transient.

    Args:
        action: what the request does, as a verb for error messages: `read`, `write`, ...
        location: the object, for error messages.
        request: makes the request and reads its answer completely.
        max_seconds: limit of the retries, where it is shorter than the user's.
        cancelled: set by another thread to stop retrying.

    Raises:
        FileNotFoundError: there is no such object.
        InputError: the request cannot succeed: credentials, permission, bucket, endpoint.
        RunError: the service did not recover in time, or the object was replaced.
    """
    cancelled = cancelled or Event()
    attempts, failing_since = 0, 0.0
    while True:
        try:
            return request()
        except Exception as error:
            if not _is_transient(error):
                reported = _as_reported(error, action, location)
                if reported is error:
                    raise
                raise reported from error
            attempts += 1
            now = time.monotonic()
            failing_since = failing_since if attempts > 1 else now
            remaining = failing_since + min(retry_seconds(), max_seconds) - now
            if remaining <= 0 or cancelled.is_set():
                spent = f"{attempts} attempts in {now - failing_since:.0f} s"
                raise RunError(
                    f"could not {action} {location}: {spent} failed, the last with: {_cause(error)}; "
                    "check that S3 is reachable, then run the same command again"
                ) from error
            if (
                attempts == WARN_AT_ATTEMPT
            ):  # a wrong endpoint looks like an outage, so the user must see what is waited for
                _log.warning("waiting up to %.0f s for S3 to %s %s: %s", remaining, action, location, _cause(error))
        wait = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(attempts - 1, 16)) * _jitter.uniform(0.5, 1)
        cancelled.wait(min(wait, remaining))


def status_of(error: ClientError) -> int:
    """Returns the HTTP status of an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """Returns S3's code of an error; the HTTP status if the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ClientError):
        status = status_of(error)
        server_error = status >= 500 and status != 501  # 501 Not Implemented is permanent
        return server_error or status in (408, 429) or code_of(error) in _TRANSIENT_CODES
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    return isinstance(error, _TRANSPORT_ERRORS)


def _as_reported(error: Exception, action: str, location: str) -> Exception:
    """Converts a permanent error of S3 to the one that the caller raises; returns any other error unchanged."""
    if isinstance(error, ClientError):
        return _refusal(error, action, location)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return InputError(
            f"cannot {action} {location}: S3 credentials are missing ({_one_line(error).rstrip('.')}); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, ParamValidationError):  # botocore quotes its rules at length
        return InputError(f"cannot {action} {location}: S3 does not allow this name of a bucket or key; choose another")
    if isinstance(error, BotoCoreError):
        return InputError(f"cannot {action} {location}: {_one_line(error)}")
    return error


def _refusal(error: ClientError, action: str, location: str) -> Exception:
    status, code = status_of(error), code_of(error)
    bucket = location.removeprefix("s3://").partition("/")[0]
    if code == "NoSuchBucket":
        return InputError(f"cannot {action} {location}: there is no bucket '{bucket}' at this S3 endpoint")
    if code in _ABSENT_CODES:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    if status == 412:
        return replaced_error(location)
    cause = _cause(error)
    if status in (401, 403):
        return InputError(
            f"cannot {action} {location}: S3 denies access ({cause}); check the credentials and their permissions"
        )
    if status in (404, 501):
        return RunError(f"could not {action} {location}: {cause}; run the same command again")
    return InputError(f"cannot {action} {location}: S3 refuses the request ({cause})")


def _cause(error: Exception) -> str:
    """Describes an error in one line; of S3's own errors status, code and message."""
    if not isinstance(error, ClientError):
        return _one_line(error)
    status, answer = str(status_of(error)), error.response.get("Error", {})
    words = [str(answer.get(name, "")) for name in ("Code", "Message")]
    return f"{status} " + ": ".join(word for word in words if word not in ("", status))


def replaced_error(location: str) -> RunError:
    """Returns the error for an object that was replaced after reading it began."""
    return RunError(f"{location} was replaced while it was read; run the same command again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
