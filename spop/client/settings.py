"""The settings of `Client` and `AsyncClient`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from spop.connection import ALL_CAPABILITIES
from spop.constants import HAPROXY_FRAME_SIZE, MIN_FRAME_SIZE


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a client is given beside its address.

    Args:
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
        ValueError: a limit makes no sense.
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

    def __post_init__(self) -> None:
        low, high = self.minimum, self.maximum
        if high < 1 or not 0 <= low <= high:
            raise ValueError(f"minimum {low} and maximum {high}: 0 <= minimum <= maximum")
        if self.max_waiting_frames < 1 or (self.maxconnrate is not None and self.maxconnrate < 1):
            raise ValueError("max_waiting_frames and maxconnrate must be at least 1")
        if self.max_frame_size < MIN_FRAME_SIZE:
            size = self.max_frame_size
            raise ValueError(f"max_frame_size is {size}, {MIN_FRAME_SIZE} at least")
