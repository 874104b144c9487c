"""Accepting connections, in the thread of a process's first loop."""

from __future__ import annotations

import contextlib
import logging
import socket
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


class Loop(Protocol):
    """What accepting needs of its loop."""

    poller: Poller
    cells: Cells

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer: ...


class Acceptor:
    """Calls `hand_out` whenever one of its listeners has connections to accept."""

    def __init__(self, loop: Loop, hand_out: HandOut) -> None:
        self._loop = loop
        self._hand_out = hand_out
        self._listeners: set[socket.socket] = set()

    def add(self, listener: socket.socket) -> None:
        """Accept connections of a listener."""
        if listener not in self._listeners:
            self._listeners.add(listener)
            self._register(listener)

    def remove(self, listener: socket.socket) -> None:
        """Accept no more connections of a listener."""
        self._listeners.discard(listener)
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
        for _ in range(64):
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
