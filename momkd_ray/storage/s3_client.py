"""The S3 client and the thread pool of a process, created when first needed."""

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

THREADS = 32  # a connection carries 50 to 100 MB/s, and a machine a hundred times that
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # without receiving a byte; the request is then retried
# of the first attempt to read a range: nearly all begin within a tenth of a second, so one that does not is asked again
HASTY_CONNECT_TIMEOUT_S = 3
HASTY_READ_TIMEOUT_S = 5

# a change of any of these needs another client
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
    """State of one process; sockets, threads and locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.environment: tuple[str | None, ...] | None = None  # that the client was created under
        self.clients: dict[bool, Any] = {}  # by whether they are hasty
        self.pool: ThreadPoolExecutor | None = None


_process = _Process()


def _reset_after_fork() -> None:
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_reset_after_fork)


def client(*, hasty: bool = False) -> Any:
    """Returns the S3 client of this process for the present environment. Thread-safe.

    Args:
        hasty: whether it gives up soon on a request that hangs, which the caller then repeats.

    Raises:
        InputError: the environment or the AWS configuration files are invalid.
    """
    environment = tuple(os.environ.get(name) for name in _ENVIRONMENT)
    state = _process
    with state.lock:
        if environment != state.environment:
            state.clients = {}
            state.environment = environment
        if hasty not in state.clients:
            state.clients[hasty] = _create_client(hasty)
        return state.clients[hasty]


def _create_client(hasty: bool) -> Any:
    config = Config(
        connect_timeout=HASTY_CONNECT_TIMEOUT_S if hasty else CONNECT_TIMEOUT_S,
        read_timeout=HASTY_READ_TIMEOUT_S if hasty else READ_TIMEOUT_S,
        retries={
            "total_max_attempts": 1,
            "mode": "standard",
        },  # `with_retries` retries, including the reading of the body
        max_pool_connections=4 * THREADS,
        tcp_keepalive=True,
        # many S3-compatible services do not understand checksums in trailers
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        core = botocore.session.Session()
        # workers that start together can overload the metadata service of their machine, which botocore asks only once
        core.set_config_variable("metadata_service_num_attempts", 3)
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
        return session.client("s3", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise InputError(f"S3 cannot be used: {cause}; check the AWS_... environment variables") from error


def pool() -> ThreadPoolExecutor:
    """Returns the thread pool for concurrent requests; its tasks must not wait for other tasks of it."""
    state = _process
    with state.lock:
        if state.pool is None:
            state.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        return state.pool
