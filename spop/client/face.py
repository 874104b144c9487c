"""What `Client` and `AsyncClient` have in common: their settings, and how a call is put.

It knows no socket and waits for nothing.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterable

from spop.address import Address
from spop.client.dial import Endpoint
from spop.client.pool import Driver, Exchange, InTurn, Limits, Link, Pool, Servers
from spop.connection import ALL_CAPABILITIES, EngineConnection
from spop.constants import HAPROXY_FRAME_SIZE, MIN_FRAME_SIZE
from spop.errors import (
    LocalProtocolError,
    RefusedError,
    SpopError,
    SpopTimeoutError,
    UnreachableError,
    reason,
)
from spop.frames import Peer

LINGER = 1.0
"""Seconds that an agent has to answer a DISCONNECT."""

NEVER = 2_000_000.0
"""Seconds of a timeout that is None: as long as all that wait can be told, three weeks."""


class Face(ABC):
    """The settings of a client.

    Args:
        address: of the agent, ``HOST:PORT`` or ``unix:PATH``; or several, which are given
            connections in turn, one that failed being passed over for 0.1 to 10 seconds; or
            `Servers` that choose.
        timeout: seconds for a call, from its beginning to the ACK (``timeout processing``);
            None: no limit.
        hello_timeout: seconds to exchange HELLO (``timeout hello``); None: no limit.
        connect_timeout: seconds to connect, TLS included; None: as `hello_timeout`.
        idle_timeout: seconds without a call after which a connection is closed; None: never
            (``timeout idle``).
        minimum: connections that are kept open even when idle.
        maximum: connections at a time, 1 or more.
        maxconnrate: connections opened in a sliding second; more must wait; None: no limit.
        waits_for_rate: with no connection at all, a call waits until `maxconnrate` allows one.
            False: it fails, as HAProxy's do.
        max_waiting_frames: NOTIFY frames of a connection that wait for ACKs, where pipelining
            or async is in force; it is 1 where it isn't.
        tls: speak TLS, with this context.
        server_name: the name in the agent's certificate; by default, the address's host.
        max_frame_size: the largest frame in bytes that is offered to the agent.
        capabilities: what to announce.
        fragments: send a payload that fits no frame in fragments, where the agent takes them.
        engine_id: names the engine that the connections belong to; async needs it.
        healthcheck: only ask whether the agent lives, as HAProxy's ``spop-check`` does.

    Raises:
        ValueError: an address or a limit makes no sense.
    """

    def __init__(
        self,
        address: str | Iterable[str] | Servers,
        *,
        timeout: float | None = 5.0,
        hello_timeout: float | None = 2.0,
        connect_timeout: float | None = None,
        idle_timeout: float | None = 30.0,
        minimum: int = 0,
        maximum: int = 32,
        maxconnrate: int | None = None,
        waits_for_rate: bool = True,
        max_waiting_frames: int = 100,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        max_frame_size: int = HAPROXY_FRAME_SIZE,
        capabilities: frozenset[str] = ALL_CAPABILITIES,
        fragments: bool = True,
        engine_id: str | None = None,
        healthcheck: bool = False,
    ) -> None:
        if maximum < 1 or not 0 <= minimum <= maximum:
            raise ValueError(f"minimum {minimum} and maximum {maximum}: 0 <= minimum <= maximum")
        if max_waiting_frames < 1 or (maxconnrate is not None and maxconnrate < 1):
            raise ValueError("max_waiting_frames and maxconnrate must be at least 1")
        if max_frame_size < MIN_FRAME_SIZE:
            raise ValueError(f"max_frame_size is {max_frame_size}, {MIN_FRAME_SIZE} at least")
        self._timeout = NEVER if timeout is None else timeout
        self._hello_timeout = NEVER if hello_timeout is None else hello_timeout
        self._connect_timeout = self._hello_timeout if connect_timeout is None else connect_timeout
        self._max_frame_size = max_frame_size
        self._capabilities = capabilities
        self._fragments = fragments
        self._engine_id = engine_id
        self._healthcheck = healthcheck
        if not isinstance(address, Servers):
            address = InTurn(_endpoints(address, tls, server_name))
        limits = Limits(
            minimum, maximum, max_waiting_frames, maxconnrate, idle_timeout, waits_for_rate
        )
        driver = Driver(self._open, self._flush, self._part, self._wake, self._schedule)
        self._pool = Pool(driver, address, limits)

    @abstractmethod
    def _open(self, endpoint: Endpoint) -> None: ...

    @abstractmethod
    def _flush(self, link: Link) -> None: ...

    @abstractmethod
    def _part(self, link: Link) -> None: ...

    @abstractmethod
    def _wake(self, exchange: Exchange) -> None: ...

    @abstractmethod
    def _schedule(self, when: float) -> None: ...

    @property
    def peer(self) -> Peer:
        """What the last HELLO agreed on. Raises LocalProtocolError before the first."""
        if self._pool.peer is None:
            raise LocalProtocolError("the client is not connected")
        return self._pool.peer

    @property
    def pool(self) -> Pool:
        """The connections and the calls that go over them."""
        return self._pool

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._pool.links)

    def _protocol(self) -> EngineConnection:
        return EngineConnection(
            max_frame_size=self._max_frame_size,
            capabilities=self._capabilities,
            fragments=self._fragments,
            engine_id=self._engine_id,
            healthcheck=self._healthcheck,
        )

    def _timed_out(self, exchange: Exchange) -> SpopTimeoutError:
        awaited = "ACK"
        if exchange.link is None:
            awaited = "free connection" if self._pool.links else "AGENT-HELLO"
        return SpopTimeoutError(f"no {awaited} in {self._timeout:g} s")

    def _unreachable(self, endpoint: Endpoint, error: Exception) -> SpopError:
        """What a call is told where a connection could not be opened."""
        address = endpoint.address
        if isinstance(error, TimeoutError):
            return SpopTimeoutError(f"{address}: no AGENT-HELLO in {self._hello_timeout:g} s")
        if isinstance(error, SpopError):
            return error
        kind = RefusedError if isinstance(error, ConnectionRefusedError) else UnreachableError
        return kind(f"{address}: {reason(error)}")


def _endpoints(
    address: str | Iterable[str], tls: ssl.SSLContext | None, server_name: str | None
) -> list[Endpoint]:
    texts = [address] if isinstance(address, str) else address
    addresses = [Address.parse(text).reachable for text in dict.fromkeys(texts)]
    if not addresses:
        raise ValueError("a client needs an address")
    if tls is not None and tls.check_hostname and not server_name:
        for unnamed in addresses:
            if unnamed.path is not None:
                raise ValueError(f"TLS to {unnamed} needs server_name")
    return [Endpoint(address, tls, server_name) for address in addresses]
