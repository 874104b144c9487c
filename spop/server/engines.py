"""Connections by engine: with async, an ACK may leave on any connection of its NOTIFY's engine
(section 3.2.1)."""

from __future__ import annotations

import threading

from spop.server.exchange import Connection, Exchange, Host


class Engines:
    """The async connections of a process, in all of its loops. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[str, dict[Connection, Host]] = {}
        self._orphans: dict[str, set[Exchange]] = {}

    def add(self, engine_id: str, connection: Connection, host: Host) -> None:
        with self._lock:
            self._connections.setdefault(engine_id, {})[connection] = host

    def remove(
        self, engine_id: str, connection: Connection, exchanges: set[Exchange]
    ) -> set[Exchange]:
        """A connection is closed, with `exchanges` unanswered.

        Returns:
            The exchanges that no connection is left for. They are to be cancelled.
        """
        with self._lock:
            connections = self._connections.get(engine_id, {})
            connections.pop(connection, None)
            orphans = self._orphans.setdefault(engine_id, set())
            orphans |= exchanges
            if connections and orphans:
                return set()
            del self._orphans[engine_id]
            if not connections:
                self._connections.pop(engine_id, None)
            return orphans

    @property
    def memory(self) -> int:
        """Bytes of memory that the exchanges of closed connections take, roughly."""
        with self._lock:
            return sum(each.size for orphans in self._orphans.values() for each in orphans)

    def cancel_orphans(self) -> int:
        """Cancel the exchanges of closed connections. Returns what they took of memory."""
        with self._lock:
            found = [each for orphans in self._orphans.values() for each in orphans]
            for orphans in self._orphans.values():
                orphans.clear()
        for exchange in found:
            exchange.host.call_soon(exchange.cancel)
        return sum(exchange.size for exchange in found)

    def another(self, engine_id: str, exchange: Exchange) -> tuple[Host, Connection] | None:
        """A connection for the ACK of an exchange whose own connection is closed."""
        with self._lock:
            self._orphans.get(engine_id, set()).discard(exchange)
            for connection, host in self._connections.get(engine_id, {}).items():
                return host, connection
        return None
