"""Requests at a constant rate through a HAProxy, and the ledger of what became of them."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Self

from spop.testing.haproxy import Process

PACE = 0.02
"""Seconds between two requests of a client."""
BODY = b"b" * 9000
"""Sent twice in a message it fits no frame of 16380 bytes."""
PATIENCE = 30.0
"""Seconds within which HAProxy has to respond, whatever the agent does."""


class Ledger:
    """What became of requests. Threads share it.

    Attributes:
        right: number of those with the agent's own answer.
        failed: number of those that the agent answered with its `on_error`.
        errors: those that HAProxy has set its `set-on-error` variable for, by its value.
        broken: what must not be: another request's answer, or neither answer nor error.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.right = self.failed = 0
        self.errors: Counter[str] = Counter()
        self.broken: list[str] = []

    def begin(self) -> None:
        with self._lock:
            self.requests += 1

    def count(self, path: str, answer: str, failed: str, error: str) -> bool:
        """Count a response. Returns whether it is as it should be without trouble."""
        with self._lock:
            if (answer, failed, error) == (path, "", ""):
                self.right += 1
                return True
            if answer or (failed and error) or not (failed or error):
                self.broken.append(f"{path}: answer {answer!r}, {failed=}, {error=}")
            elif error:
                self.errors[error] += 1
            else:
                self.failed += 1
                return path.startswith("/failing/")
            return False

    def lose(self, path: str, error: OSError) -> None:
        """HAProxy did not respond."""
        with self._lock:
            self.broken.append(f"{path}: {error!r}")

    @property
    def balanced(self) -> bool:
        """Each request has its own answer, or an error that HAProxy or the agent told."""
        accounted = self.right + self.failed + self.errors.total()
        return self.requests == accounted and not self.broken

    def __add__(self, other: Ledger) -> Ledger:
        total = Ledger()
        for name in ("requests", "right", "failed", "errors", "broken"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def __str__(self) -> str:
        errors = ", ".join(f"{code}: {count}" for code, count in sorted(self.errors.items()))
        return (
            f"{self.requests} requests = {self.right} right + {self.failed} failed"
            f" + {self.errors.total()} errors{f' ({errors})' if errors else ''}"
        )


class _Client(threading.Thread):
    """One keep-alive connection to HAProxy, which asks for each of the messages in turn."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(daemon=True)
        self._load, self._number = load, number
        self._sock: socket.socket | None = None

    def run(self) -> None:
        load, due = self._load, time.monotonic()
        messages = itertools.cycle(load.messages[self._number :] + load.messages[: self._number])
        for number, message in zip(itertools.count(), messages, strict=False):
            if load.stopped.wait(max(0.0, due - time.monotonic())):
                break
            due = max(due + load.pace, time.monotonic() - 1)
            path = f"/{message}/{load.port}-{self._number}-{number}"
            load.ledger.begin()
            try:
                load.saw(load.ledger.count(path, *self._ask(path)))
            except OSError as error:
                self._sock = None
                load.ledger.lose(path, error)

    def _ask(self, path: str) -> Sequence[str]:
        """The values of the headers that tell what the agent and HAProxy have set."""
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._load.port), PATIENCE)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = BODY if path.startswith("/large/") else b""
        head = f"POST {path} HTTP/1.1\r\nHost: chaos\r\nContent-Length: {len(body)}\r\n\r\n"
        self._sock.sendall(head.encode() + body)
        response = b""
        while b"\r\n\r\n" not in response:
            received = self._sock.recv(65536)
            if not received:
                raise ConnectionResetError(f"HAProxy closed after {response!r}")
            response += received
        lines = [line.partition(": ") for line in response.decode().split("\r\n")]
        headers = {name.lower(): value for name, _, value in lines}
        if "connection" in headers:
            self._sock.close()
            self._sock = None
        return [headers.get(name, "") for name in ("x-answer", "x-failed", "x-error")]


class Load:
    """Clients of one HAProxy, until the end of a ``with`` block."""

    def __init__(
        self, proxy: Process, messages: Sequence[str], clients: int = 4, pace: float = PACE
    ) -> None:
        self.port, self.messages, self.pace = proxy.port, list(messages), pace
        self.clients = clients
        self.ledger = Ledger()
        self.stopped = threading.Event()
        self._last: deque[bool] = deque(maxlen=50)
        self._threads = [_Client(self, number) for number in range(clients)]

    def saw(self, right: bool) -> None:
        self._last.append(right)

    def wait_for_calm(self, timeout: float = 30.0) -> bool:
        """Wait until the last 50 answers, all of them new, are right."""
        self._last.clear()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if len(self._last) == self._last.maxlen and all(self._last):
                return True
            time.sleep(0.02)
        return False

    def __enter__(self) -> Self:
        for client in self._threads:
            client.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        for client in self._threads:
            client.join(PATIENCE + 1)
