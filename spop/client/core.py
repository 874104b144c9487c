"""What `Client` and `AsyncClient` share: settings, the pool, its timer, errors.

It knows no socket and never waits.
"""

from __future__ import annotations

import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic
from typing import Any, Unpack

from spop.address import Address, Addresses, texts_of
from spop.client.dial import Endpoint
from spop.client.forked import begin_anew_when_forked
from spop.client.pool import Driver, Exchange, Pool
from spop.client.servers import Server, Servers, in_turn
from spop.client.settings import ClientSettings, Settings
from spop.connection import EngineConnection
from spop.errors import (
    LocalProtocolError,
    RefusedError,
    SpopError,
    SpopTimeoutError,
    UnreachableError,
    reason,
)
from spop.frames import Message, Peer

LINGER = 1.0
"""Seconds that an agent has to answer a DISCONNECT."""

NEVER = 2_000_000.0
"""Seconds of a timeout that is None: three weeks, which all ways to wait can take."""


class ClientCore(ABC):
    """A client without the waiting.

    Args:
        address: the agent's address, an `Address` or its text: ``HOST:PORT`` or ``unix:PATH``.
            Several addresses get connections in turn; one that failed gets none for 0.1 to 10
            seconds. `Servers` choose themselves.
        settings: the fields of `spop.client.settings.Settings`.

    Attributes:
        pool: the connections and their calls.

    Raises:
        TypeError: a time is no number.
        ValueError: an address or a setting is invalid.
    """

    def __init__(
        self, address: Addresses | Servers[Any], **settings: Unpack[ClientSettings]
    ) -> None:
        self._settings = given = Settings(**settings)
        self._timeout = _limit(given.timeout)
        self._hello_timeout = _limit(given.hello_timeout)
        self._connect_timeout = _limit(given.connect_timeout, self._hello_timeout)
        if not isinstance(address, Servers):
            endpoints = _endpoints(address, given.tls, given.server_name)
            address = Servers(map(Server, endpoints), in_turn)
        self._servers: Servers[Any] = address
        self._reset()
        begin_anew_when_forked(self)

    def _reset(self) -> None:
        """Have no connection and no call."""
        self.pool: Pool = Pool(self._driver(), self._servers, self._settings)
        self._timer: Any = None
        self._timer_at = float("inf")

    def begin_anew(self) -> None:
        """In a process that was forked: leave connections and calls to the parent."""
        if self.engine_id is not None:  # With async the agent would answer the parent as well.
            self._settings = replace(self._settings, engine_id=f"{self.engine_id}-{os.getpid()}")
        self._drop_all("the process was forked, and its parent has this call")

    def _drop_all(self, why: str) -> None:
        """Fail all calls, close the sockets without a word, and begin again."""
        pool = self.pool
        pool.give_up(LocalProtocolError(why))
        self._close_sockets()
        self._servers.begin_anew()
        self._reset()
        self.pool.closed = pool.closed

    @abstractmethod
    def _close_sockets(self) -> None:
        """Close this process's share of all sockets."""

    @abstractmethod
    def _driver(self) -> Driver: ...

    @abstractmethod
    def _start_timer(self, delay: float) -> Any:
        """Call `_tick` after `delay` seconds. Returns an object that can be cancelled."""

    def _schedule(self, when: float) -> None:
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self._start_timer(max(0.0, when - monotonic()))

    def _tick(self) -> None:
        self._timer_at = float("inf")
        self.pool.tick(monotonic())

    @property
    def peer(self) -> Peer:
        """What the last HELLO agreed on.

        Raises:
            LocalProtocolError: no HELLO was exchanged yet.
        """
        if self.pool.peer is None:
            raise LocalProtocolError("the client is not connected")
        return self.pool.peer

    @property
    def engine_id(self) -> str | None:
        """The engine-id in HELLO frames. A process that is forked has its own."""
        return self._settings.engine_id

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self.pool.links)

    def _protocol(self) -> EngineConnection:
        given = self._settings
        return EngineConnection(
            max_frame_size=given.max_frame_size,
            capabilities=given.capabilities,
            fragments=given.fragments,
            engine_id=given.engine_id,
            healthcheck=given.healthcheck,
        )

    def submit(self, exchange: Exchange) -> None:
        """Begin a call; `wait_for` must follow.

        Raises:
            LocalProtocolError: the client is closed, or made for health checks only.
        """
        self.pool.call(exchange, monotonic())

    def _begin(self, messages: Iterable[Message] | None) -> Exchange:
        exchange = self.pool.exchange(messages)
        self.submit(exchange)
        return exchange

    def _timed_out(self, exchange: Exchange) -> SpopTimeoutError:
        awaited = "ACK"
        if exchange.link is None:
            awaited = "free connection" if self.pool.links else "AGENT-HELLO"
        return SpopTimeoutError(f"no {awaited} in {self._timeout:g} s")

    def _unreachable(self, endpoint: Endpoint, error: Exception) -> SpopError:
        """The error of a call, when its connection could not be opened."""
        address = endpoint.address
        if isinstance(error, TimeoutError):
            return SpopTimeoutError(f"{address}: no AGENT-HELLO in {self._hello_timeout:g} s")
        if isinstance(error, SpopError):
            return error
        kind = RefusedError if isinstance(error, ConnectionRefusedError) else UnreachableError
        return kind(f"{address}: {reason(error)}")


def _limit(seconds: float | None, default: float = NEVER) -> float:
    return default if seconds is None else min(seconds, NEVER)


def _endpoints(
    address: Addresses, tls: ssl.SSLContext | None, server_name: str | None
) -> list[Endpoint]:
    addresses = [Address.parse(text).reachable for text in dict.fromkeys(texts_of(address))]
    if not addresses:
        raise ValueError("a client needs an address")
    if tls is not None and tls.check_hostname and not server_name:
        for unnamed in addresses:
            if unnamed.path is not None:
                raise ValueError(f"TLS to {unnamed} needs server_name")
    return [Endpoint(address, tls, server_name) for address in addresses]
