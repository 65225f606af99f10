"""Arrow's file systems, for Ray."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from momkd_ray.storage.backend import Backend
from momkd_ray.storage.local import LocalBackend
from momkd_ray.storage.s3 import S3Backend
from momkd_ray.storage.s3_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, client
from momkd_ray.storage.s3_retry import patience_s, with_retries


class _PatientS3(fs.S3FileSystem):  # type: ignore[misc]  # Arrow carries no types
    """Arrow leaves the retry strategy behind when it pickles a file system, as Ray does on the way to a worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options, *_) = super().__reduce__()
        return _patient, (options,)


def _patient(options: dict[str, Any]) -> _PatientS3:
    # five attempts take about as many seconds, every further one up to twenty
    attempts = 5 + round(patience_s() / 15)
    return _PatientS3(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts))


def filesystem(place: Backend) -> tuple[fs.FileSystem, str]:
    """The file system of a place and the path inside it."""
    if isinstance(place, LocalBackend):
        return fs.LocalFileSystem(), place.path
    assert isinstance(place, S3Backend)
    options: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": READ_TIMEOUT_S}
    # left to itself, Arrow takes no endpoint from the environment
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        url = urlsplit(endpoint)
        options |= {"scheme": url.scheme, "endpoint_override": url.netloc + url.path.rstrip("/")}
        options["region"] = client().meta.region_name
    else:
        options["region"] = _region(place)
    return _patient(options), f"{place.bucket}/{place.key}".rstrip("/")


def _region(place: S3Backend) -> str:
    """Where the bucket lies: Amazon answers elsewhere with a redirection that Arrow does not follow."""
    found = with_retries("look up", place.location, lambda: client().head_bucket(Bucket=place.bucket))
    region: str = found.get("BucketRegion") or client().meta.region_name
    return region
