"""Connections that are as old as `max_connection_age` allows: they end when no frame can be lost.

A peer in lock step sends nothing until it has its ACK, so our DISCONNECT follows right behind an
ACK. A peer that pipelines may send at any time, so its connection ends after a second at rest.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from spop.counters import Cell, Cells
from spop.logs import SafeLogger, fields
from spop.options import Options
from spop.server.exchange import Connection
from spop.server.timers import Timers

REST = 1.0
"""Seconds without a frame after which an old connection ends."""
JITTER = 0.1
"""Part of the age by which connections differ, so that they do not end together."""
SHORT = 10.0
"""Seconds below which an age is said to be short: each connection costs a HELLO."""
STEP = 0.25
"""Seconds between two looks at the connections."""

logger: SafeLogger = SafeLogger("spop.server")


def warn_if_short(age: float) -> None:
    """Say at the start that HAProxy would have to connect all the time."""
    if 0 < age < SHORT:
        what = fields("limit too low", option="max_connection_age", limit=age)
        line = "max_connection_age is %g s: HAProxy opens all its connections again that often"
        logger.warning(line, age, extra=what)


class Loop(Protocol):
    """What ages need of their loop."""

    cells: Cells
    options: Options
    timers: Timers


class Ages:
    """The ages of a loop's connections. Used in its thread alone.

    Args:
        end: sends a DISCONNECT to a connection.
    """

    def __init__(self, loop: Loop, end: Callable[[Connection], object]) -> None:
        self._loop = loop
        self._age = loop.options.max_connection_age
        self._end = end
        self._ends: dict[Connection, float] = {}
        self._old: dict[Connection, float] = {}
        """The connections that are to end, and when each was last seen busy."""
        self._ordered = False
        self._all_old = False

    def __bool__(self) -> bool:
        """Whether there are connections that are to end."""
        return bool(self._old)

    def add(self, connection: Connection) -> None:
        """The age of a connection counts from when it was opened, in whatever process."""
        if self._all_old:
            self._grow_old(connection)
        elif self._age:
            factor = random.uniform(1 - JITTER, 1 + JITTER)
            self._ends[connection] = connection.began + self._age * factor
            self._order()

    def end_all(self, connections: Iterable[Connection]) -> None:
        """The server is a lame duck: have these and all later ones end."""
        self._all_old = True
        for connection in connections:
            if connection.peer is not None:
                self._grow_old(connection)

    def _grow_old(self, connection: Connection) -> None:
        self._ends.pop(connection, None)
        self._old[connection] = time.monotonic()
        # Its frames are answered where `ends_now` is asked.
        connection.fast_path.enabled = False
        self._order()

    def discard(self, connection: Connection) -> None:
        """A connection is closed, or has moved to another loop."""
        self._ends.pop(connection, None)
        self._old.pop(connection, None)

    def ends_now(self, connection: Connection) -> bool:
        """Whether a connection that has just been answered ends behind its ACK."""
        if connection not in self._old:
            return False
        self._old[connection] = time.monotonic()
        peer = connection.peer
        in_lock_step = peer is not None and "pipelining" not in peer.capabilities
        return in_lock_step and not connection.protocol.intake.unread

    def count(self) -> None:
        """A connection ends because of its age."""
        self._loop.cells[Cell.TOO_OLD] += not self._all_old

    def _order(self) -> None:
        if not self._ordered:
            self._ordered = True
            self._loop.timers.call_later(STEP, self._look)

    def _look(self) -> None:
        self._ordered = False
        now = time.monotonic()
        for connection, end in list(self._ends.items()):
            if end <= now:
                self._grow_old(connection)
        for connection, busy in list(self._old.items()):
            if not connection.protocol.at_rest or connection.unsent:
                self._old[connection] = now
            elif now - busy >= REST:
                self.count()
                self._end(connection)
        if self._ends or self._old:
            self._order()
