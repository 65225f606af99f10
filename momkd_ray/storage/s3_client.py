"""The one S3 client and the few threads of a process, made when they are first needed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from momkd_ray.errors import InputError

THREADS = 8
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # without a byte: a stalled server is asked again

# a client made under one set of these is not that of another
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


class _Process:
    """What one process has; sockets, threads and locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.environment: tuple[str | None, ...] | None = None  # of the client
        self.client: Any = None
        self.pool: ThreadPoolExecutor | None = None


_process = _Process()


def _forget() -> None:
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_forget)


def client() -> Any:
    """The S3 client of this process and of the environment as it is now; it may be used from many threads.

    Raises:
        InputError: the environment or the AWS configuration files make no sense.
    """
    environment = tuple(os.environ.get(name) for name in _ENVIRONMENT)
    mine = _process
    with mine.lock:
        if environment != mine.environment:
            mine.client = _made()
            mine.environment = environment
        return mine.client


def _made() -> Any:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1, "mode": "standard"},  # `patiently` repeats, and reads the body as well
        max_pool_connections=4 * THREADS,
        tcp_keepalive=True,
        # checksums in trailers are not understood by every S3 but Amazon's
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        core = botocore.session.Session()
        # many workers that start at once on one machine overrun its metadata service, which botocore asks only once
        core.set_config_variable("metadata_service_num_attempts", 3)
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
        return session.client("s3", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise InputError(f"S3 cannot be used: {cause}; check the AWS_... environment variables") from error


def pool() -> ThreadPoolExecutor:
    """Threads for requests made side by side; their tasks must not wait for other tasks."""
    mine = _process
    with mine.lock:
        if mine.pool is None:
            mine.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        return mine.pool
