"""A real HAProxy of a configuration of one's own, a client for it, and a server behind it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from spop.testing.haproxy import Process, version


class Proxied(Process):
    """A running HAProxy of one thread, with a configuration of its own."""

    def __init__(
        self, binary: str, folder: Path, *, config: str, spoe: str, global_options: str = ""
    ) -> None:
        nbthread = "nbthread 1" if version(binary) >= (2, 0) else ""
        super().__init__(
            binary,
            folder,
            config=config,
            spoe=spoe,
            global_options=f"{nbthread}\n    {global_options}",
        )

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20, (source, 0))


class Heard(NamedTuple):
    """A response, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(sock: socket.socket, request: bytes) -> Heard:
    """Send a request and read the response."""
    sock.settimeout(20)
    sock.sendall(request)
    response = http.client.HTTPResponse(sock, method=request.split(b" ", 1)[0].decode())
    response.begin()
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Heard(response.status, headers, body)


class Origin:
    """A server that gives the same answer, `response`, to whatever request it hears."""

    def __init__(self, response: bytes = b"") -> None:
        self.response = response
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as requests:
            while _hear(requests):
                sock.sendall(self.response)


def _hear(requests: BinaryIO) -> bool:
    """Read a request; False: there is none."""
    length = 0
    while line := requests.readline():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if line == b"\r\n":
            requests.read(length)
            return True
    return False
