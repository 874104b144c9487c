"""The pages for operators, over HTTP: /metrics, /healthz, /readyz, and a status page.

They have a thread of their own. Health is read from memory, so no process has to answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import itertools
import json
import re
import signal
import socket
import threading
from collections.abc import Collection
from http import HTTPStatus
from importlib import resources
from queue import Empty, SimpleQueue
from typing import Any, Protocol
from urllib.parse import urlsplit

from spop.address import Address
from spop.server import http
from spop.server.board import Board
from spop.server.channel import Channel
from spop.server.health import Health, service_health
from spop.server.history import INTERVAL, History
from spop.server.http import Answer, Request
from spop.server.listeners import bound_address, listen, remove_file
from spop.server.status import Status

try:
    from spop.server.metrics import exposition
except ModuleNotFoundError:
    exposition = None  # type: ignore[assignment]

STATUS_TIMEOUT = 5.0

_PAGE = resources.files("spop.server").joinpath("status.html").read_text("utf-8")
_SCRIPT = re.findall("<script>(.*?)</script>", _PAGE, re.DOTALL)[0]
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{_SCRIPT_HASH}'; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Source(Protocol):
    """The server or service that the pages show."""

    def status(self, *, connections: bool) -> Status | None:
        """The status; None if the supervisor does not answer."""

    def health(self) -> Health: ...


class AdminServer:
    """Serves HTTP on an address or a socket, in a thread.

    Args:
        hosts: names by which browsers may ask for the status page.

    Raises:
        OSError: the address can't be listened on.
    """

    def __init__(
        self, where: str | socket.socket, source: Source, hosts: Collection[str] = ()
    ) -> None:
        self._listener = listen(Address.parse(where)) if isinstance(where, str) else where
        self.address: Address = bound_address(self._listener)
        self._pages = _Pages(source, hosts)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="spop-admin", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        pages = http.serve(self._listener, self._pages.respond, _HEADERS)
        tasks = [asyncio.create_task(pages), asyncio.create_task(self._pages.remember())]
        await self._stopped.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def stop(self) -> None:
        remove_file(self._listener)
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._listener.close()  # Nothing has, if this came before the first request could.


class _Pages:
    """The pages by path, and who may see them."""

    def __init__(self, source: Source, hosts: Collection[str]) -> None:
        self._source = source
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._history = History()
        self._asking: dict[bool, asyncio.Task[Status | None]] = {}
        self._pages = {
            "/": self._page,
            "/status.json": self._status,
            "/history.json": self._samples,
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }

    async def respond(self, request: Request) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return Answer(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._pages)}\n")
        return await page(request)

    async def _page(self, request: Request) -> Answer:
        return self._refusal(request) or Answer(HTTPStatus.OK, _PAGE, "text/html; charset=utf-8")

    async def _status(self, request: Request) -> Answer:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        status = await self._ask(connections=True)
        if status is None:
            return _unavailable()
        return Answer(HTTPStatus.OK, json.dumps(status.to_json()), "application/json")

    async def _samples(self, request: Request) -> Answer:
        samples = json.dumps(self._history.to_json())
        return self._refusal(request) or Answer(HTTPStatus.OK, samples, "application/json")

    async def remember(self) -> None:
        """Add to the history, without an end."""
        while True:
            status = await self._ask(connections=False)
            if status is not None:
                self._history.add(status)
            await asyncio.sleep(INTERVAL)

    async def _metrics(self, request: Request) -> Answer:
        if exposition is None:
            message = "metrics need an extra: pip install 'haproxy-spop[metrics]'\n"
            return Answer(HTTPStatus.NOT_IMPLEMENTED, message)
        status = await self._ask(connections=False)
        if status is None:
            return _unavailable()
        type_, body = exposition(status, request.accept)
        return Answer(HTTPStatus.OK, body, type_)

    async def _health(self, request: Request) -> Answer:
        return Answer(HTTPStatus.OK, "ok\n") if self._source.health().alive else _unavailable()

    async def _readiness(self, request: Request) -> Answer:
        return Answer(HTTPStatus.OK, "ready\n") if self._source.health().ready else _unavailable()

    async def _ask(self, *, connections: bool) -> Status | None:
        """The status. All who ask while one question is open share its answer."""
        task = self._asking.get(connections)
        if task is None or task.done():
            call = asyncio.to_thread(self._source.status, connections=connections)
            task = self._asking[connections] = asyncio.create_task(call)
        return await asyncio.shield(task)

    def _refusal(self, request: Request) -> Answer | None:
        """A page elsewhere may point its own name here, to have a browser read the status for it.

        Browsers send that name. An address or a name that is expected can't be pointed elsewhere.
        """
        if request.host is None or _host_of(request.host) in self._hosts:
            return None
        if _is_address(_host_of(request.host)):
            return None
        text = "the status is not shown by this name: allow it with --admin-host\n"
        return Answer(HTTPStatus.MISDIRECTED_REQUEST, text)


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unavailable() -> Answer:
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "not now\n")


def run_admin(
    listener: socket.socket,
    channel: Channel,
    board: Board,
    stuck_timeout: float,
    hosts: Collection[str],
) -> int:
    """Serve in a process of its own, with the supervisor at the other end of the channel."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It ends with the supervisor.
    service = _Service(channel, board, stuck_timeout)
    admin = AdminServer(listener, service, hosts)
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
