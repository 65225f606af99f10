"""Builds Arrow file systems, through which Ray reads and writes."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from momkd_ray.storage.backend import Backend
from momkd_ray.storage.local import LocalBackend
from momkd_ray.storage.s3 import S3Backend
from momkd_ray.storage.s3_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, client
from momkd_ray.storage.s3_retry import retry_seconds, with_retries


class _RetryingS3FileSystem(fs.S3FileSystem):  # type: ignore[misc]  # Arrow carries no types
    """Keeps the retry strategy when it is pickled, as Ray does on the way to a worker; Arrow drops it."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options, *_) = super().__reduce__()
        return _retrying_s3, (options,)


def _retrying_s3(options: dict[str, Any]) -> _RetryingS3FileSystem:
    # five attempts take about five seconds in all, every further one up to twenty
    attempts = 5 + round(retry_seconds() / 15)
    return _RetryingS3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts))


def filesystem(backend: Backend) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a backend and the path in it."""
    if isinstance(backend, LocalBackend):
        return fs.LocalFileSystem(), backend.path
    assert isinstance(backend, S3Backend)
    options: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": READ_TIMEOUT_S}
    # Arrow does not read the endpoint from the environment
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        url = urlsplit(endpoint)
        options |= {"scheme": url.scheme, "endpoint_override": url.netloc + url.path.rstrip("/")}
        options["region"] = client().meta.region_name
    else:
        options["region"] = _region(backend)
    return _retrying_s3(options), f"{backend.bucket}/{backend.key}".rstrip("/")


def _region(backend: S3Backend) -> str:
    """Returns the region of a bucket; Amazon answers in any other with a redirection that Arrow does not follow."""
    answer = with_retries("look up", backend.location, lambda: client().head_bucket(Bucket=backend.bucket))
    region: str = answer.get("BucketRegion") or client().meta.region_name
    return region
