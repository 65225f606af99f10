"""A real S3 server on this machine (moto), and a proxy before it whose faults a test switches on.

Both listen on loopback, so other processes reach them through `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import http.client
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import boto3
import numpy as np
import pytest
from botocore.config import Config

from momkd_ray import storage
from momkd_ray.storage import s3_download as ranges
from momkd_ray.storage import s3_file as object_file
from momkd_ray.storage import s3_retry as patience
from momkd_ray.storage import s3_upload as upload

PART = 64 * 2**10  # of an upload and of a reading alike, so that small objects have several
KEYS_A_PAGE = 100  # of a listing; real S3 has 1,000

Kind = Literal["status", "reset", "lost", "cut", "late", "trickle"]

# moto must be ready for parts of any size, which real S3 refuses below 5 MiB; a condition and the write that it is for
# are one operation of S3, and two of moto's
_SERVER = """
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
import sys
import threading
writing, put = threading.Lock(), S3Response.put_object
def put_object(self):
    with writing:
        return put(self)
S3Response.put_object = put_object
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3Server:
    """An S3 server and a fresh bucket in it."""

    endpoint: str
    bucket: str
    client: Any  # that no fault disturbs

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What a process needs to reach it, or the proxy at another endpoint."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def keys(self) -> list[str]:
        """All keys of the bucket, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The server of all tests, in a process of its own."""
    environment = os.environ | {"S3_UPLOAD_PART_MIN_SIZE": "1", "MOTO_S3_DEFAULT_MAX_KEYS": str(KEYS_A_PAGE)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=s3_endpoint, config=Config(max_pool_connections=16), **keys)


@pytest.fixture
def s3_server(s3_endpoint: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server with an empty bucket, to which the environment leads."""
    server = S3Server(s3_endpoint, f"bucket-{uuid.uuid4().hex[:8]}", s3_client)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.client.create_bucket(Bucket=server.bucket)
    return server


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the server, to which the environment leads."""
    with FaultyProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of a few hundred kilobytes take all the ways that large ones do."""
    monkeypatch.setattr(upload, "PART_BYTES", PART)
    monkeypatch.setattr(ranges, "PIECE_BYTES", PART)
    monkeypatch.setattr(object_file, "BLOCK_BYTES", PART // 4)
    monkeypatch.setattr(object_file, "DIRECT_BYTES", 2 * PART)
    monkeypatch.setattr(object_file, "MAX_CACHED_BLOCKS", 6)
    monkeypatch.setattr(object_file, "MAX_PREFETCH_BLOCKS", 4)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are asked about again at once."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "20")


def content_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def written(location: str, content: bytes) -> None:
    """In uneven pieces, as libraries write."""
    with storage.atomic_writer(location) as stream:
        for start in range(0, len(content), 10_007):
            assert stream.write(content[start : start + 10_007]) == len(content[start : start + 10_007])
            assert stream.tell() == min(start + 10_007, len(content))


@dataclass
class Fault:
    """What happens to requests.

    kind:
        status: answered with `status` and `code`; the server never hears of it
        reset: the connection is reset; the server never hears of it
        lost: the server does it, then the connection is reset
        cut: the answer's body ends after `at_byte` bytes, `reset` or closed
        late: the body comes `seconds` after the head
        trickle: the body comes in 16 pieces, `seconds` in all
    """

    kind: Kind
    spared: int = 0  # so many of those that match are let through first
    times: float = float("inf")  # how many are spoilt at most
    every: int = 1  # each n-th of those that match
    method: str = ""
    path: str = ""  # a pattern searched for in the unquoted path and query
    status: int = 503
    code: str = "SlowDown"
    at_byte: int = 0
    reset: bool = True
    seconds: float = 0.0
    seen: int = 0
    injected: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if self.method not in ("", method) or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen <= self.spared or self.injected >= self.times or self.seen % self.every:
            return False
        self.injected += 1
        return True


@dataclass
class FaultyProxy:
    """A reverse proxy on loopback that lets requests through or spoils them.

    Attributes:
        requests: (method, unquoted path and query) of every request so far.
    """

    upstream: str
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._server = _Server(("127.0.0.1", 0), self)
        self._port = self._server.server_address[1]
        self._serving = self._started()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def inject(self, kind: Kind, **options: Any) -> Fault:
        """Spoil requests from now on; the fault counts them."""
        fault = Fault(kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def count(self, method: str = "", path: str = "") -> int:
        with self._lock:
            return sum(method in ("", m) and bool(re.search(path, p)) for m, p in self.requests)

    def go_away(self) -> None:
        """Refuse connections, and drop those that are open."""
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()
        self._server.drop_connections()

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._server = _Server(("127.0.0.1", self._port), self)
        self._serving = self._started()

    def away(self, seconds: float) -> threading.Thread:
        """Go away now and come back later; the thread ends when it is back."""
        self.go_away()
        back = threading.Timer(seconds, self.come_back)
        back.start()
        return back

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            # all count, the first that strikes wins
            return next((fault for fault in [f for f in self._faults if f.strikes(method, path)]), None)

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        return thread

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.go_away()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # also wakes the thread that reads from it

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what this is for


def _reset(connection: socket.socket) -> None:
    """End a connection with RST instead of FIN."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(connection.detach())  # a plain close would wait for the files made of it


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would hold back every body for 40 ms
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *message: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.proxy.fault_of(self.command, unquote(self.path))
        if fault is not None and fault.kind == "reset":
            return self._hang_up()
        if fault is not None and fault.kind == "status":
            return self._refuse(fault)
        answer, content = self._ask(body)
        if fault is not None and fault.kind == "lost":
            return self._hang_up()
        self._answer(answer, content, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.server.proxy.upstream).netloc, timeout=60)
        dropped = {"connection", "expect", "transfer-encoding", "content-length"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        try:
            upstream.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            return answer, answer.read()
        finally:
            upstream.close()

    def _answer(self, answer: http.client.HTTPResponse, content: bytes, fault: Fault | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind == "cut":
            self.wfile.write(content[: fault.at_byte])
            time.sleep(0.02)  # a reset overtakes what was sent just before it
            return self._hang_up(reset=fault.reset)
        pieces = 16 if fault is not None and fault.kind == "trickle" else 1
        size = max(1, -(-len(content) // pieces))
        for start in range(0, len(content), size):
            if fault is not None and not self._client_stays(fault.seconds / pieces):
                return
            self.wfile.write(content[start : start + size])

    def _client_stays(self, seconds: float) -> bool:
        """Wait, unless the client hangs up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if selector.select(seconds):
                self.close_connection = True
                return False
        return True

    def _refuse(self, fault: Fault) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as the test wants</Message></Error>"
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self, *, reset: bool = True) -> None:
        self.close_connection = True
        if reset:
            _reset(self.connection)
