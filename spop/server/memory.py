"""A limit on the memory that the connections of a loop take: its share of ``max_memory``.

It bounds partial frames, payloads in fragments, answers that a peer does not read, messages whose
handlers have not ended, and cached answers. `Memory` counts what is kept, and not what is released.
When that count reaches the limit, the loop asks each connection what it takes. It forgets the cached
answers first, and then ends the connections that take most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from spop.dispatch import Memory
from spop.server.calls import Calls
from spop.server.engines import Engines
from spop.server.exchange import Connection

AT_ONCE = 100
"""Number of connections that are ended in a round of the loop, so that the others don't wait."""


class Loop(Protocol):
    """What the limit needs of its loop."""

    connections: set[Connection]
    calls: Calls

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` in the next round."""


class MemoryLimit:
    """Ends connections with `end` from 7/8 of `limit` bytes on. Used in the loop's thread alone.

    A look at all connections takes milliseconds. So it comes after 1/16 of the limit at least,
    and another 1/16 is left for the bytes of the round in which the limit is reached.

    Attributes:
        memory: for the intakes of the connections.
    """

    def __init__(
        self, loop: Loop, engines: Engines, limit: int, end: Callable[[Connection], object]
    ) -> None:
        self._loop = loop
        self._engines = engines
        self._end = end
        self._step = limit // 16
        self._most = limit - 2 * self._step
        self.memory: Memory = Memory()
        self.memory.room = self._most + self._step
        self.memory.exceeded = self._exceeded

    def _exceeded(self) -> None:
        self.memory.room = self._step
        self._loop.call_soon(self._make_room)

    def _make_room(self) -> None:
        taken = {connection: connection.memory for connection in self._loop.connections}
        total = sum(taken.values()) + self._engines.memory + self._loop.calls.memory
        if total > self._most:
            total -= self._engines.cancel_orphans()
        if total > self._most:
            total -= self._loop.calls.forget_answers()
        for connection in sorted(taken, key=taken.__getitem__, reverse=True)[:AT_ONCE]:
            if total <= self._most:
                break
            total -= taken[connection]
            self._end(connection)
        self.memory.room = max(self._step, self._most + self._step - total)
        if total > self._most:
            self._loop.call_soon(self._make_room)
