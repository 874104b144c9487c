"""What operators ask over HTTP: /metrics, /healthz, /readyz, and a status page for people.

It answers in threads of its own, from the status that it is given a function for.
"""

from __future__ import annotations

import itertools
import json
import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from spop.address import Address
from spop.server.channel import Channel
from spop.server.listeners import bound_address, listen

logger = logging.getLogger("spop.server")

Status = Callable[..., dict[str, Any] | None]
"""Gives what `Server.status` gives; None if it can't be had now."""

TEXT = "text/plain; charset=utf-8"


def admin_listener(address: str) -> socket.socket:
    """A socket for `AdminServer`.

    Raises:
        OSError: the address can't be listened on.
    """
    return listen(Address.parse(address))


class AdminServer:
    """Serves HTTP on an address or a socket, in threads."""

    def __init__(self, where: str | socket.socket, status: Status) -> None:
        self._listener = admin_listener(where) if isinstance(where, str) else where
        self._listener.setblocking(True)
        self.address = bound_address(self._listener)
        self._http = _HTTPServer(self._listener, status)
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
        self._http.server_close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, status: Status) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.address_family = listener.family
        self.status = status


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
        html = resources.files("spop.server").joinpath("status.html").read_text("utf-8")
        self._answer(HTTPStatus.OK, "text/html; charset=utf-8", html)

    def _status(self) -> None:
        status = self.server.status(connections=True)
        if status is None:
            self._unavailable()
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(status))

    def _metrics(self) -> None:
        try:
            from spop.server.metrics import exposition
        except ModuleNotFoundError:
            message = "metrics need an extra: pip install 'haproxy-spop[metrics]'\n"
            self._answer(HTTPStatus.NOT_IMPLEMENTED, TEXT, message)
            return
        status = self.server.status(connections=False)
        if status is None:
            self._unavailable()
        else:
            type_, body = exposition(status, self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, type_, body)

    def _health(self) -> None:
        status = self.server.status(connections=False)
        if status is None or not status["alive"]:
            self._unavailable()
        else:
            self._answer(HTTPStatus.OK, TEXT, "ok\n")

    def _readiness(self) -> None:
        status = self.server.status(connections=False)
        if status is None or not status["ready"]:
            self._unavailable()
        else:
            self._answer(HTTPStatus.OK, TEXT, "ready\n")

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


def run_admin(listener: socket.socket, channel: Channel) -> int:
    """Serve in a process of its own, with the supervisor at the other end of the channel."""
    supervisor = _SupervisorStatus(channel)
    admin = AdminServer(listener, supervisor)
    admin.start()
    supervisor.read_answers()
    return 0


class _SupervisorStatus:
    """Asks the supervisor; several threads may at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[threading.Event, list[dict[str, Any]]]] = {}

    def __call__(self, *, connections: bool = True) -> dict[str, Any] | None:
        number, answered, answer = next(self._ids), threading.Event(), []  # type: ignore[var-annotated]
        self._waiting[number] = answered, answer
        try:
            self._channel.send({"id": number, "connections": connections})
            return answer[0] if answered.wait(5) else None
        finally:
            del self._waiting[number]

    def read_answers(self) -> None:
        """Until the supervisor is gone."""
        while received := self._channel.receive():
            waiting = self._waiting.get(received.message["id"])
            if waiting is not None:
                answered, answer = waiting
                answer.append(received.message["status"])
                answered.set()
