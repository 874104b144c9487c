"""The settings of `Client` and `AsyncClient`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict

from spop.connection import ALL_CAPABILITIES
from spop.constants import HAPROXY_FRAME_SIZE, MIN_FRAME_SIZE, Capability
from spop.haproxy_version import MAX_STREAMS, Version
from spop.options import check_seconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a client.

    Args:
        timeout: seconds from the beginning of a call to its ACK (``timeout processing``); None: no
            limit.
        hello_timeout: seconds to exchange HELLO (``timeout hello``); None: no limit.
        connect_timeout: seconds to connect, TLS included; None: the `hello_timeout`.
        idle_timeout: seconds without a call after which a connection is closed; None: never
            (``timeout idle``).
        minimum: number of connections that stay open when idle.
        maximum: number of connections at a time, 1 or more.
        maxconnrate: number of connections opened in a sliding second; further ones wait. None:
            no limit.
        waits_for_rate: a call without any connection waits until `maxconnrate` allows one.
            False: it fails, as in HAProxy.
        max_waiting_frames: number of NOTIFY frames of a connection that may wait for ACKs, with
            pipelining or async in force. Without them it is 1.
        tls: speak TLS, with this context.
        server_name: the name in the agent's certificate; by default, the address's host.
        max_frame_size: the largest frame in bytes that is offered to the agent.
        capabilities: the capabilities to announce.
        fragments: send a payload that fits no frame in fragments, if the agent takes them.
        engine_id: the engine-id of the connections. Async needs it.
        healthcheck: only check the agent's health, as HAProxy's ``option spop-check`` does.
        haproxy_version: connect as this HAProxy (``"3.4"``). Since 3.1 there are no fragments and
            no async, `max_waiting_frames` is 20 at most, and each connection counts its stream-ids:
            1, 3, 5 and so on.

    Attributes:
        numbered: each connection counts its stream-ids.

    Raises:
        TypeError: a time is no number.
        ValueError: a limit is out of range, or `haproxy_version` is no version of HAProxy.
    """

    timeout: float | None = 5.0
    hello_timeout: float | None = 2.0
    connect_timeout: float | None = None
    idle_timeout: float | None = 30.0
    minimum: int = 0
    maximum: int = 32
    maxconnrate: int | None = None
    waits_for_rate: bool = True
    max_waiting_frames: int = 100
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    max_frame_size: int = HAPROXY_FRAME_SIZE
    capabilities: frozenset[str] = ALL_CAPABILITIES
    fragments: bool = True
    engine_id: str | None = None
    healthcheck: bool = False
    haproxy_version: str | None = None
    numbered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        version = self.haproxy_version and Version.of_haproxy(self.haproxy_version)
        if version and version.rewritten:
            self._be_rewritten()
        for name in ("timeout", "hello_timeout", "connect_timeout", "idle_timeout"):
            seconds = getattr(self, name)
            if seconds is not None:
                check_seconds(name, seconds)
        low, high = self.minimum, self.maximum
        if high < 1 or not 0 <= low <= high:
            raise ValueError(f"minimum {low} and maximum {high}: 0 <= minimum <= maximum")
        if self.max_waiting_frames < 1 or (self.maxconnrate is not None and self.maxconnrate < 1):
            raise ValueError("max_waiting_frames and maxconnrate must be at least 1")
        if self.max_frame_size < MIN_FRAME_SIZE:
            size = self.max_frame_size
            raise ValueError(f"max_frame_size is {size}, {MIN_FRAME_SIZE} at least")

    def _be_rewritten(self) -> None:
        """Connect as HAProxy 3.1 and later do."""
        change = partial(object.__setattr__, self)  # As the dataclass itself does.
        change("numbered", True)
        change("fragments", False)
        change("capabilities", self.capabilities & {Capability.PIPELINING})
        change("max_waiting_frames", min(self.max_waiting_frames, MAX_STREAMS))


class ClientSettings(TypedDict, total=False):
    """The same by name, for type checkers: what clients take as ``**settings``."""

    timeout: float | None
    hello_timeout: float | None
    connect_timeout: float | None
    idle_timeout: float | None
    minimum: int
    maximum: int
    maxconnrate: int | None
    waits_for_rate: bool
    max_waiting_frames: int
    tls: ssl.SSLContext | None
    server_name: str | None
    max_frame_size: int
    capabilities: frozenset[str]
    fragments: bool
    engine_id: str | None
    healthcheck: bool
    haproxy_version: str | None
