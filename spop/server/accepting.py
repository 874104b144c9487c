"""Accepting connections, in the thread of a process's first loop."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from spop.counters import Cell, Cells
from spop.errors import reason
from spop.logs import fields
from spop.poller import READ, Poller
from spop.server.timers import Timer

logger: logging.Logger = logging.getLogger("spop.server")

HandOut = Callable[[socket.socket], bool]
"""Accepts a connection of a listener. False: it accepts none now."""

OFTEN = 0.01
"""A listener that was ready less than so many seconds ago has one connection accepted in a round. So frames
of others are answered between two connections, and to find that no more wait costs nothing."""
MOST = 64
"""How many are accepted of one that is seldom ready, or that has waited for a long round."""


class Loop(Protocol):
    """What accepting needs of its loop."""

    poller: Poller
    cells: Cells

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer: ...


class Acceptor:
    """Calls `hand_out` whenever one of its listeners has connections to accept.

    It knows when each was last ready.
    """

    def __init__(self, loop: Loop, hand_out: HandOut) -> None:
        self._loop = loop
        self._hand_out = hand_out
        self._listeners: dict[socket.socket, float] = {}

    def add(self, listener: socket.socket) -> None:
        """Accept connections of a listener."""
        if listener not in self._listeners:
            self._listeners[listener] = -math.inf
            self._register(listener)

    def remove(self, listener: socket.socket) -> None:
        """Accept no more connections of a listener."""
        self._listeners.pop(listener, None)
        self._unregister(listener)

    def pause(self, listener: socket.socket, seconds: float) -> None:
        """Accept no connections of a listener for some seconds."""
        self._unregister(listener)
        self._loop.call_later(seconds, partial(self._go_on, listener))

    def _register(self, listener: socket.socket) -> None:
        self._loop.poller.register(listener.fileno(), READ, partial(self._accept, listener))

    def _unregister(self, listener: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._loop.poller.unregister(listener.fileno())

    def _accept(self, listener: socket.socket, _: int) -> None:
        now = time.monotonic()
        last, self._listeners[listener] = self._listeners[listener], now
        for _ in range(1 if now - last < OFTEN else MOST):
            try:
                if not self._hand_out(listener):
                    return
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._loop.cells[Cell.ACCEPT_ERRORS] += 1
                what = fields("cannot accept", error=reason(error))
                logger.error("cannot accept connections: %s", reason(error), extra=what)
                self.pause(listener, 0.5)
                return

    def _go_on(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._unregister(listener)  # It was removed and added meanwhile.
            self._register(listener)
            # At once: if nobody else has accepted the connection that waits, this process does.
            self._accept(listener, READ)
