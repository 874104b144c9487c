"""The pages for operators, over HTTP: /metrics, /healthz, /readyz, and a status page.

It answers in threads of its own. Health is read from memory, so no process has to answer.
"""

from __future__ import annotations

import itertools
import json
import logging
import signal
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from spop.address import Address
from spop.server.board import Board
from spop.server.channel import Channel
from spop.server.health import Health, service_health
from spop.server.listeners import bound_address, close_all, listen
from spop.server.status import Status

logger = logging.getLogger("spop.server")

try:
    from spop.server.metrics import exposition
except ModuleNotFoundError:
    exposition = None  # type: ignore[assignment]

_PAGE = resources.files("spop.server").joinpath("status.html").read_text("utf-8")
TEXT = "text/plain; charset=utf-8"
STATUS_TIMEOUT = 5.0


class Source(Protocol):
    """The server or service that the pages show."""

    def status(self, *, connections: bool) -> Status | None:
        """The status; None if the supervisor does not answer."""

    def health(self) -> Health: ...


class AdminServer:
    """Serves HTTP on an address or a socket, in threads.

    Raises:
        OSError: the address can't be listened on.
    """

    def __init__(self, where: str | socket.socket, source: Source) -> None:
        self._listener = listen(Address.parse(where)) if isinstance(where, str) else where
        self._listener.setblocking(True)
        self.address = bound_address(self._listener)
        self._http = _HTTPServer(self._listener, source)
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="spop-admin", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def run(self) -> None:
        """Serve in this thread, for ever."""
        self._http.serve_forever()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        close_all([self._listener])


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, source: Source) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.address_family = listener.family
        self.source = source


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        pages = {
            "/": self._page,
            "/status.json": self._status,
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }
        page = pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(HTTPStatus.NOT_FOUND, TEXT, f"there are {', '.join(pages)}\n")
        else:
            page()

    do_HEAD = do_GET

    def _page(self) -> None:
        self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE)

    def _status(self) -> None:
        status = self.server.source.status(connections=True)
        if status is None:
            self._unavailable()
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(status.to_json()))

    def _metrics(self) -> None:
        if exposition is None:
            message = "metrics need an extra: pip install 'haproxy-spop[metrics]'\n"
            self._answer(HTTPStatus.NOT_IMPLEMENTED, TEXT, message)
            return
        status = self.server.source.status(connections=False)
        if status is None:
            self._unavailable()
        else:
            type_, body = exposition(status, self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, type_, body)

    def _health(self) -> None:
        if self.server.source.health().alive:
            self._answer(HTTPStatus.OK, TEXT, "ok\n")
        else:
            self._unavailable()

    def _readiness(self) -> None:
        if self.server.source.health().ready:
            self._answer(HTTPStatus.OK, TEXT, "ready\n")
        else:
            self._unavailable()

    def _unavailable(self) -> None:
        self._answer(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, "not now\n")

    def _answer(self, status: HTTPStatus, type_: str, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("admin: %s", format % args)


def run_admin(listener: socket.socket, channel: Channel, board: Board, stuck_timeout: float) -> int:
    """Serve in a process of its own, with the supervisor at the other end of the channel."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It ends with the supervisor.
    service = _Service(channel, board, stuck_timeout)
    admin = AdminServer(listener, service)
    admin.start()
    service.read_answers()
    return 0


class _Service:
    """The supervisor and its workers, for the admin process. Any thread may ask."""

    def __init__(self, channel: Channel, board: Board, stuck_timeout: float) -> None:
        self._channel = channel
        self._board = board
        self._stuck_timeout = stuck_timeout
        self._ids = itertools.count()
        self._waiting: dict[int, SimpleQueue[dict[str, Any]]] = {}

    def health(self) -> Health:
        return service_health(self._board, self._stuck_timeout)

    def status(self, *, connections: bool) -> Status | None:
        number, answers = next(self._ids), SimpleQueue[dict[str, Any]]()
        self._waiting[number] = answers
        try:
            self._channel.send({"id": number, "connections": connections})
            return Status.from_json(answers.get(timeout=STATUS_TIMEOUT))
        except Empty:
            return None
        finally:
            del self._waiting[number]

    def read_answers(self) -> None:
        """Read answers until the supervisor has ended."""
        for received in self._channel:
            waiting = self._waiting.get(received.message["id"])
            if waiting is not None:
                waiting.put(received.message["status"])
