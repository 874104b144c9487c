"""HTTP services for the tests of agents, and requests through a HAProxy."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

Fields = list[tuple[str, str]]


class Seen(NamedTuple):
    """A request that a service got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """What a service answers."""

    status: int = 200
    headers: Fields = []
    body: bytes = b""


class Service(ThreadingHTTPServer):
    """An HTTP service, for a ``with`` statement.

    Attributes:
        seen: the requests, in order.
        reply: makes the answer to each.
        connections: number of connections that were accepted.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Callable[[Seen], Reply] = lambda _: Reply()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.seen: list[Seen] = []
        self.connections = 0
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: HAProxy has ended a connection."""

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Service

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fields = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, fields, body)
        self.server.seen.append(seen)
        reply = self.server.reply(seen)
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering_with(data: bytes | None) -> Iterator[str]:
    """The address of a service that answers each connection with these bytes, or with none at
    all while the block runs."""
    done = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            if data is None:
                done.wait(30)
            else:
                with contextlib.suppress(OSError):  # The agent reads as much as it likes.
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        done.set()
        server.shutdown()


def free_address() -> str:
    """An address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class Response(NamedTuple):
    """What a client got."""

    status: int
    headers: Fields
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name]


def request(
    port: int,
    path: str = "/",
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Send a request to a port of 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Host": "shop.example", **(headers or {})})
        response = connection.getresponse()
        return Response(response.status, response.getheaders(), response.read())


def metrics(admin: Path) -> dict[tuple[str, ...], int]:
    """The agent's own metrics of /status.json at a unix socket, by name and values of labels."""
    connection = http.client.HTTPConnection("localhost")
    with contextlib.closing(connection), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(admin))
        connection.sock = sock
        connection.request("GET", "/status.json")
        shown = json.load(connection.getresponse())["metrics"]
    return {(each["name"], *each["labels"].values()): each["value"] for each in shown}
