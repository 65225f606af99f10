"""An address that no cluster can be reached at ends in one sentence, soon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import ray

from momkd_ray.errors import InputError
from momkd_ray.ray_runtime.cluster import Connection, _unreachable, connect


@contextmanager
def other_server(answer: bytes) -> Iterator[int]:
    """A port at which something listens that never answers, or not as Ray does."""
    with socket.create_server(("", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    if answer:
                        connection.sendall(answer)
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_an_address_where_nothing_listens_is_refused_with_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=rf"at {address}: .*leave it out"), connect(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=rf"at RAY_ADDRESS {address}: .*unset it"), connect():
        pass


@pytest.mark.parametrize("named", ["argument", "variable"])
def test_a_ray_client_address_is_refused_with_what_to_use_instead(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if named == "variable":
        monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    address = "ray://head:10001" if named == "argument" else None
    with pytest.raises(InputError, match=r"ray://head:10001 .*Ray Client.*HOST:6379.*ray job submit"), connect(address):
        pass


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n"])
def test_what_is_no_ray_cluster_is_given_up_soon(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momkd_ray.ray_runtime.cluster.CONNECT_TIMEOUT_S", 2.0)
    with other_server(answer) as port:
        began = time.monotonic()
        with pytest.raises(InputError, match=rf":{port}: .*does not answer as Ray does"), connect(f"127.0.0.1:{port}"):
            pass
        assert time.monotonic() - began < 6


def test_a_cluster_answers_without_a_token(ray_cluster: Connection) -> None:
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    assert _unreachable(host, int(port)) == ""


def test_a_dashboard_is_told_with_where_its_token_is() -> None:
    assert Connection(True, "").dashboard_note() == ""
    assert Connection(False, "http://head:8265").dashboard_note() == "Dashboard: http://head:8265"
    assert "token in /private/token" in Connection(True, "http://127.0.0.1:8265", "/private/token").dashboard_note()
