"""An S3 server on this machine with the pace of the real one: 15 ms to the first byte, 50 MB/s a connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIRST_BYTE_S = 0.015
BYTES_S = 50e6

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Pace:
    """The bytes that have been sent to clients, in a file, as the proxy is a process of its own."""

    def __init__(self, port: int, counter: str) -> None:
        self.endpoint, self.counter = f"http://127.0.0.1:{port}", counter

    def fetched(self) -> int:
        time.sleep(0.6)  # until the proxy has written it
        with open(self.counter) as file:
            return int(file.read() or 0)


@contextmanager
def slow_s3(folder: str) -> Iterator[Pace]:
    """Starts server and proxy, and points the environment at the proxy; ends both."""
    counter = os.path.join(folder, "fetched")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    upstream = int(server.stdout.readline())
    proxy = subprocess.Popen(
        [sys.executable, __file__, str(upstream), counter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert proxy.stdout is not None
    pace = Pace(int(proxy.stdout.readline()), counter)
    os.environ.update(
        AWS_ENDPOINT_URL=pace.endpoint,
        AWS_ACCESS_KEY_ID="benchmark",
        AWS_SECRET_ACCESS_KEY="benchmark",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        yield pace
    finally:
        for process in (proxy, server):
            process.kill()
            process.wait()


def serve(upstream: int, counter: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    sent = [0]
    lock = threading.Lock()

    def write_counter() -> None:
        while True:
            with open(counter, "w") as file:
                file.write(str(sent[0]))
            time.sleep(0.2)

    def upwards(client: socket.socket, server: socket.socket, asked: list[float]) -> None:
        with suppress(OSError):
            while data := client.recv(2**18):
                asked[0] = time.monotonic()
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def downwards(client: socket.socket, server: socket.socket, asked: list[float]) -> None:
        free_at = 0.0
        with suppress(OSError):
            while data := server.recv(2**18):
                free_at = max(free_at, asked[0] + FIRST_BYTE_S) + len(data) / BYTES_S
                if (wait := free_at - time.monotonic()) > 0:
                    time.sleep(wait)
                client.sendall(data)
                with lock:
                    sent[0] += len(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    threading.Thread(target=write_counter, daemon=True).start()
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", upstream))
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = [0.0]
        for pump in (upwards, downwards):
            threading.Thread(target=pump, args=(client, server, asked), daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
