"""Log lines about connections: they begin, end, fail. Peers cause them, so their rate is limited."""

from __future__ import annotations

import logging
import ssl

from spop.connection import Disconnect
from spop.constants import Status
from spop.errors import reason
from spop.frames import Peer
from spop.logs import RateLimitedLog, SafeLogger

logger: SafeLogger = SafeLogger("spop.server")

PER_SECOND = 10
"""Lines of each kind."""


class ConnectionLog:
    """Lines about the connections of a process. Threads share it.

    Args:
        level: the name of the level of lines about connections that begin and end as they should.
    """

    def __init__(self, level: str) -> None:
        self._level: int = logging.getLevelNamesMapping()[level.upper()]
        self._begun, self._ended, self._broken, self._failed = (
            RateLimitedLog(logger, PER_SECOND) for _ in range(4)
        )

    def begun(self, peer: Peer) -> None:
        """HELLO is done."""
        if peer.healthcheck:
            self._begun.log(logging.DEBUG, "health check from %s", peer.address)
            return
        self._begun.log(
            self._level,
            "connection from %s: SPOP %s, max-frame-size %d, %s, engine %r",
            peer.address,
            peer.version,
            peer.max_frame_size,
            ",".join(sorted(peer.capabilities)) or "no capabilities",
            peer.engine_id,
        )

    def ended(self, address: str, why: Disconnect) -> None:
        """A connection that said HELLO has ended, or it was refused."""
        line = "disconnected by %s: %d %r" if why.remote else "disconnected %s: %d %r"
        if why.remote or why.code == Status.NORMAL:
            self._ended.log(self._level, line, address, why.code, why.message)
        else:
            self._broken.warning(line, address, why.code, why.message)

    def failed(self, address: str, error: Exception) -> None:
        """A connection failed before HELLO, or by an error of our own."""
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            self._broken.warning("connection from %s failed: %s", address, reason(error))
        elif isinstance(error, OSError):
            self._ended.log(self._level, "connection from %s failed: %s", address, reason(error))
        elif self._failed.allows(logging.ERROR, "connection from %s failed: %r", address, error):
            logger.failure(error, "connection from %s failed", address)
