"""Where connections go: the servers of an engine, and how long one that failed is left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Generic, TypeVar

from spop.client.dial import Endpoint

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 10.0
"""Seconds for which a server that refused a connection gets none: doubled each time, up to the
last."""

_turns = itertools.count(1)


class Server:
    """A server, and what became of the connections to it.

    Attributes:
        connections: number of open connections.
        retry_at: the time, as `time.monotonic` gives it, before which it gets no connection.
    """

    __slots__ = ("backoff", "connections", "endpoint", "retry_at", "turn")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Endpoint = endpoint
        self.connections: int = 0
        self.retry_at: float = 0.0
        self.backoff: float = FIRST_BACKOFF
        self.turn: int = 0


AnyServer = TypeVar("AnyServer", bound=Server)


def in_turn(servers: Sequence[AnyServer]) -> AnyServer:
    """The server that was chosen least recently."""
    chosen = min(servers, key=attrgetter("turn"))
    chosen.turn = next(_turns)
    return chosen


class Servers(Generic[AnyServer]):
    """The servers of an engine. The pool reports what becomes of each connection.

    Args:
        choose: chooses the server of the next connection among those that may have it.
    """

    def __init__(
        self, servers: Iterable[AnyServer], choose: Callable[[Sequence[AnyServer]], AnyServer]
    ) -> None:
        self.servers: tuple[AnyServer, ...] = tuple(servers)
        self._by_endpoint = {server.endpoint: server for server in self.servers}
        self._choose = choose

    def usable(self) -> Sequence[AnyServer]:
        """The servers that may get connections, whether or not they failed lately."""
        return self.servers

    def next(self, now: float) -> Endpoint | None:
        """Where the next connection goes; None if it has to wait."""
        free = [server for server in self.usable() if server.retry_at <= now]
        return self._choose(free).endpoint if free else None

    def soonest(self) -> Endpoint | None:
        """The first to try of those that failed lately; None if there is no server."""
        first = min(self.usable(), key=attrgetter("retry_at"), default=None)
        return None if first is None else first.endpoint

    def retry_at(self, now: float) -> float:
        """The time at which `next` may give a server."""
        return min((server.retry_at for server in self.usable()), default=now + FIRST_BACKOFF)

    def opened(self, endpoint: Endpoint) -> None:
        """A connection is open."""
        server = self._by_endpoint[endpoint]
        server.connections += 1
        server.retry_at, server.backoff = 0.0, FIRST_BACKOFF

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """A connection could not be opened."""
        server = self._by_endpoint[endpoint]
        server.retry_at = now + server.backoff
        server.backoff = min(2 * server.backoff, LAST_BACKOFF)

    def closed(self, endpoint: Endpoint) -> None:
        """An open connection has ended."""
        self._by_endpoint[endpoint].connections -= 1

    def begin_anew(self) -> None:
        """There is no connection any more."""
        for server in self.servers:
            server.connections = 0
