"""Asking S3 again: which faults pass, how long they are waited for, and what is said of those that do not."""

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
DEFAULT_PATIENCE_S = 120.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
TOLD_AT_ATTEMPT = 5  # after three seconds or so

_log = logging.getLogger(__name__)


class BrokenAnswerError(Exception):
    """An answer that ended early or does not belong to what was asked."""


# what a server may call a fault that passes, whatever status it gives it
_PASSING_CODES = {
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
# no connection, none any more, or an answer that is not whole
_TRANSPORT = (
    NoConnectionError,
    HTTPClientError,
    HTTPError,
    IncompleteReadError,
    ResponseParserError,
    BrokenAnswerError,
)
_ABSENT_CODES = {"NoSuchKey", "NotFound", "404"}

# not the module's functions: how often S3 failed must not show in anything that is drawn from the global generator
_jitter = random.SystemRandom()

T = TypeVar("T")


def patience_s() -> float:
    """How long a failing request is repeated, in seconds, from `MOMKD_RAY_S3_PATIENCE_S`.

    Raises:
        InputError: it is set to something else than seconds.
    """
    text = os.environ.get(RETRY_SECONDS_VARIABLE, "")
    try:
        seconds = float(text) if text.strip() else DEFAULT_PATIENCE_S
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{RETRY_SECONDS_VARIABLE} is '{text}': set it to a number of seconds, such as 120")
    return seconds


def with_retries(
    doing: str,
    location: str,
    request: Callable[[], T],
    *,
    at_most_s: float = math.inf,
    given_up: Event | None = None,
) -> T:
    """The outcome of a request, made again until it succeeds or patience is over.

    Args:
        doing: what the request is for, in a word: `read`, `write`, ...
        location: the object, for the sentence of a failure.
        request: the whole of it, its answer's body included.
        at_most_s: patience, where it is less than the user's.
        given_up: set by others who no longer want the outcome.

    Raises:
        FileNotFoundError: there is no such object.
        InputError: the request will never be granted: credentials, permission, bucket, endpoint.
        RunError: the service did not recover in time, or the object was replaced.
    """
    given_up = given_up or Event()
    attempts, failing_since = 0, 0.0
    while True:
        try:
            return request()
        except Exception as error:
            if not _passes(error):
                final = _final(error, doing, location)
                if final is error:
                    raise
                raise final from error
            attempts += 1
            now = time.monotonic()
            failing_since = failing_since if attempts > 1 else now
            left = failing_since + min(patience_s(), at_most_s) - now
            if left <= 0 or given_up.is_set():
                spent = f"{attempts} attempts in {now - failing_since:.0f} s"
                raise RunError(
                    f"could not {doing} {location}: {spent} failed, the last with: {_cause(error)}; "
                    "see whether S3 answers, then run the same command again"
                ) from error
            if attempts == TOLD_AT_ATTEMPT:  # a wrong endpoint looks like an outage: do not wait for it in silence
                _log.warning("waiting up to %.0f s for S3 to %s %s: %s", left, doing, location, _cause(error))
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempts - 1, 16)) * _jitter.uniform(0.5, 1)
        given_up.wait(min(wait, left))


def status_of(error: ClientError) -> int:
    """The HTTP status of an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """S3's word for an error; the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _passes(error: Exception) -> bool:
    if isinstance(error, ClientError):
        status = status_of(error)
        broken = status >= 500 and status != 501  # 501: it has not learned to do that
        return broken or status in (408, 429) or code_of(error) in _PASSING_CODES
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    return isinstance(error, _TRANSPORT)


def _final(error: Exception, doing: str, location: str) -> Exception:
    """What a fault that does not pass is to the caller; what is not S3's stays as it is."""
    if isinstance(error, ClientError):
        return _refused(error, doing, location)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return InputError(
            f"cannot {doing} {location}: S3 credentials are missing ({_one_line(error).rstrip('.')}); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, ParamValidationError):  # botocore quotes the rules, at length
        return InputError(f"cannot {doing} {location}: S3 allows no bucket or key of that name")
    if isinstance(error, BotoCoreError):
        return InputError(f"cannot {doing} {location}: {_one_line(error)}")
    return error


def _refused(error: ClientError, doing: str, location: str) -> Exception:
    status, code = status_of(error), code_of(error)
    bucket = location.removeprefix("s3://").partition("/")[0]
    if code == "NoSuchBucket":
        return InputError(f"cannot {doing} {location}: there is no bucket '{bucket}' at this S3 endpoint")
    if code in _ABSENT_CODES:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    if status == 412:
        return replaced(location)
    said = _cause(error)
    if status in (401, 403):
        return InputError(
            f"cannot {doing} {location}: S3 denies it ({said}); check the credentials and what they allow"
        )
    if status in (404, 501):
        return RunError(f"could not {doing} {location}: {said}; run the same command again")
    return InputError(f"cannot {doing} {location}: S3 refuses the request ({said})")


def _cause(error: Exception) -> str:
    """An error in a line; of S3's own, status, code and message without botocore's words around them."""
    if not isinstance(error, ClientError):
        return _one_line(error)
    status, answer = str(status_of(error)), error.response.get("Error", {})
    words = [str(answer.get(name, "")) for name in ("Code", "Message")]
    return f"{status} " + ": ".join(word for word in words if word not in ("", status))


def replaced(location: str) -> RunError:
    """What is said of an object that is another than when its reading began."""
    return RunError(f"{location} was replaced while it was read; run the same command again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
