"""Log lines about connections: they begin, end, fail. Peers cause them, so their rate is limited."""

from __future__ import annotations

import logging
import sys
from functools import partial

from spop.connection import Disconnect
from spop.constants import Status
from spop.errors import reason
from spop.frames import Peer
from spop.logs import Line, RateLimitedLog, SafeLogger, fields, level_number

logger: SafeLogger = SafeLogger("spop.server")

PER_SECOND = 10
"""Lines of each kind."""


class ConnectionLog:
    """Lines about the connections of a process. Threads share it.

    Args:
        level: the name of the level of lines about connections that begin and end as they should.
        health: the name of the level of lines about health checks.
    """

    def __init__(self, level: str, health: str = "debug") -> None:
        self._level = level_number(level)
        self._health = level_number(health)
        self._begun, self._checks, self._ended, self._broken, self._failed = (
            RateLimitedLog(logger, PER_SECOND) for _ in range(5)
        )

    def begun(self, peer: Peer) -> None:
        """HELLO is done."""
        if peer.healthcheck:
            self._checks.log_made(self._health, partial(_checked, peer))
        else:
            self._begun.log_made(self._level, partial(_begun, peer))

    def ended(self, address: str, why: Disconnect, peer: Peer | None, duration: float) -> None:
        """A connection that said HELLO has ended after `duration` seconds, or it was refused."""
        as_it_should = why.remote or why.code == Status.NORMAL
        log, level = (self._ended, self._level) if as_it_should else (self._broken, logging.WARNING)
        log.log_made(level, partial(_ended, address, why, peer, duration))

    def failed(self, address: str, error: Exception) -> None:
        """A connection failed before HELLO, or by an error of our own."""
        text = "connection from %s failed: %s"
        what = fields("connection failed", peer=address, reason=reason(error))
        if _is_of_tls(error):
            self._broken.warning(text, address, reason(error), extra=what)
        elif isinstance(error, OSError):
            self._ended.log(self._level, text, address, reason(error), extra=what)
        elif self._failed.allows(logging.ERROR, text, address, repr(error), extra=what):
            logger.failure(error, "connection from %s failed", address, extra=what)


def _checked(peer: Peer) -> Line:
    return "health check from %s", (peer.address,), fields("health check", peer=peer.address)


def _begun(peer: Peer) -> Line:
    capabilities = ",".join(sorted(peer.capabilities))
    what = fields(
        "connected",
        peer=peer.address,
        engine=peer.engine,
        version=peer.version,
        max_frame_size=peer.max_frame_size,
        capabilities=capabilities,
    )
    shown = capabilities or "no capabilities"
    args = peer.address, peer.version, peer.max_frame_size, shown, peer.engine
    return "connection from %s: SPOP %s, max-frame-size %d, %s, engine %s", args, what


def _ended(address: str, why: Disconnect, peer: Peer | None, duration: float) -> Line:
    what = fields(
        "disconnected",
        peer=address,
        engine=peer.engine if peer else None,
        by="peer" if why.remote else "agent",
        status=int(why.code),
        reason=why.message,
        duration=round(duration, 3),
    )
    by = " by" if why.remote else ""
    return f"disconnected{by} %s: %d %r", (address, why.code, why.message), what


def _is_of_tls(error: Exception) -> bool:
    """TLS failed, by more than an end without warning."""
    ssl = sys.modules.get("ssl")  # Not imported where nothing speaks TLS.
    return (
        ssl is not None
        and isinstance(error, ssl.SSLError)
        and not isinstance(error, ssl.SSLEOFError)
    )
