"""Connections that go on in another process or loop, each once it is at rest.

All are given away at a reload (`give_all`), some so that loops have equally many (`spare`), those of
other workers' ports once these have started (`give_ports`). Whoever is offered a connection takes
it or refuses it. A refused one goes on here. TLS connections stay: what OpenSSL knows of them can't
leave its process.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from spop.counters import Cell, Cells
from spop.frames import Peer
from spop.poller import WRITE
from spop.server.admission import Admission
from spop.server.connection_log import ConnectionLog
from spop.server.exchange import Connection
from spop.server.timers import Timers

FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds until connections that were not at rest are looked at again."""
HOLD = 0.05
"""Seconds for which a connection with frames in flight is not read from, to come to rest."""
OFFER_AGAIN = 0.5
"""Seconds after which connections that no other process had room for are offered again."""

Taken = Callable[[bool], object]
"""Called once, in any thread, with whether another process has taken a connection."""
GiveAway = Callable[[socket.socket, dict[str, Any], Taken], object]
"""Offers another process the socket of a connection at rest, and what HELLO agreed on."""


@dataclass
class Spare:
    """An order to give connections away and to go on.

    Attributes:
        count: how many are still to be given.
        has_too_many: it still makes sense.
    """

    count: int
    give_away: GiveAway
    has_too_many: Callable[[], bool]


class Loop(Protocol):
    """What giving connections away needs of their loop."""

    cells: Cells
    timers: Timers
    connections: set[Connection]
    admission: Admission

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` in the next round."""

    def see_to(self, connection: Connection, events: int) -> None:
        """Do what the socket is ready for."""

    def adopt(self, sock: socket.socket, state: dict[str, Any], new: bool) -> Connection:
        """Serve an admitted connection that another process gave away, or (not `new`) refused."""


class Leaving(Protocol):
    """What giving connections away needs of those who end them."""

    begun: bool

    def forget(self, connection: Connection) -> None:
        """A connection is no longer this loop's."""

    def moved(self, peer: Peer | None) -> None:
        """Another process serves this peer."""

    def returned(self, connection: Connection) -> None:
        """No other process took this connection."""

    def end_if_done(self) -> None:
        """End the loop if it waits for nothing else."""


class Giving:
    """Gives connections of a loop away. True if there are any to give. Used in the loop's thread.

    Attributes:
        offered: sockets that another process has not answered for.
    """

    def __init__(self, loop: Loop, leaving: Leaving, log: ConnectionLog) -> None:
        self._loop = loop
        self._leaving = leaving
        self._log = log
        self._all: GiveAway | None = None
        self._foreign: GiveAway | None = None
        self._owned_ports: frozenset[int] = frozenset()
        self._spare: Spare | None = None
        self._held: dict[Connection, int] = {}
        self._pauses = False
        self.offered: set[socket.socket] = set()

    def __bool__(self) -> bool:
        return (self._all or self._foreign or self._spare) is not None

    @property
    def gives_all(self) -> bool:
        """Whether each connection is to leave."""
        return self._all is not None

    def give_all(self, give_away: GiveAway) -> None:
        """Give each connection away, from now on."""
        self._all, self._spare = give_away, None

    def stop(self) -> None:
        """Give none away, but for those of other ports."""
        self._all = self._spare = None

    def at_rest(self, connection: Connection) -> None:
        """Offer a connection at rest to another process or loop, if it is one of those to give."""
        if self._pauses or connection.tls is not None:
            return
        if self._all is not None:
            self._offer(connection, self._all)
        elif self._foreign is not None and self._is_foreign(connection):
            self._offer(connection, self._foreign)
        elif self._spare is not None and connection.movable:
            self._spare.count -= 1
            self._offer(connection, self._spare.give_away)
            self._end_spare()

    # --- one connection ---

    def _offer(self, connection: Connection, give_away: GiveAway) -> None:
        sock = connection.sock
        assert isinstance(sock, socket.socket)
        state = {
            "host": connection.host, "port": connection.port, "began": connection.began,
        }  # fmt: skip
        state.update(connection.protocol.negotiated())
        self.offered.add(sock)
        self._leaving.forget(connection)
        answered = partial(self._answered, sock, state, connection.peer)
        call_soon = self._loop.call_soon
        give_away(sock, state, lambda taken: call_soon(partial(answered, taken)))

    def _answered(
        self, sock: socket.socket, state: dict[str, Any], peer: Peer | None, taken: bool
    ) -> None:
        """Another process has taken a connection, or had no room for it: it goes on here."""
        self.offered.discard(sock)
        if taken:
            self._loop.cells[Cell.HANDED_OVER] += 1
            sock.close()
            self._leaving.moved(peer)
            self._leaving.end_if_done()
            return
        if not self._pauses:
            self._pauses = True
            self._loop.timers.call_later(OFFER_AGAIN, self._offer_again)
        self._take_back(sock, state)

    def _take_back(self, sock: socket.socket, state: dict[str, Any]) -> None:
        self._loop.admission.adopt(state["host"])
        try:
            connection = self._loop.adopt(sock, state, new=False)
        except OSError as error:
            self._log.failed(state["address"], error)
            self._loop.admission.release(state["host"])
            sock.close()
            self._leaving.end_if_done()
        else:
            self._leaving.returned(connection)

    def _offer_again(self) -> None:
        self._pauses = False
        if self._leaving.begun:
            for connection in list(self._loop.connections):
                self._loop.see_to(connection, WRITE)

    # --- some ---

    def spare(self, count: int, give_away: GiveAway, has_too_many: Callable[[], bool]) -> None:
        """Give so many connections away, those at rest first, and go on serving the others.

        An order that comes later replaces this one. So does the end of `has_too_many`.
        """
        if not self._leaving.begun:
            self._spare = spare = Spare(count, give_away, has_too_many)
            self._spare_those_at_rest(spare, FIRST_RETRY)
            if self._spare is spare:
                self._hold_busy_ones(spare.count)

    def _spare_those_at_rest(self, spare: Spare, retry: float) -> None:
        self._end_spare()
        for connection in list(self._loop.connections):
            if self._spare is not spare:
                return
            self._look_at(connection)
        # The fast path does not tell when a connection comes to rest.
        again = partial(self._spare_those_at_rest, spare, min(2 * retry, LAST_RETRY))
        if self._spare is spare:
            self._loop.timers.call_later(retry, again)

    def _end_spare(self) -> None:
        if self._spare is not None and not (self._spare.count and self._spare.has_too_many()):
            self._spare = None

    def _hold_busy_ones(self, count: int) -> None:
        """A connection that pipelines under load might never be at rest.

        While one frame at most may be in flight, no more is read before the others are answered.
        """
        busy = (each for each in self._loop.connections if each.movable and each.protocol.in_flight)
        for connection in itertools.islice(busy, count):
            if connection not in self._held:
                intake = connection.protocol.intake
                self._held[connection], intake.max_in_flight = intake.max_in_flight, 1
        self._loop.timers.call_later(HOLD, self._let_go)

    def _let_go(self) -> None:
        while self._held:
            connection, max_in_flight = self._held.popitem()
            connection.protocol.intake.max_in_flight = max_in_flight
            if connection in self._loop.connections:
                self._loop.see_to(connection, WRITE)

    # --- those of other ports ---

    def give_ports(self, owned: frozenset[int], give_away: GiveAway) -> None:
        """Give the connections of other ports of ranges away, each once it is at rest."""
        self._owned_ports, self._foreign = owned, give_away
        self._give_foreign(FIRST_RETRY)

    def _give_foreign(self, retry: float) -> None:
        foreign = [each for each in self._loop.connections if self._is_foreign(each)]
        for connection in foreign:
            self._look_at(connection)
        if any(each in self._loop.connections for each in foreign):
            again = partial(self._give_foreign, min(2 * retry, LAST_RETRY))
            self._loop.timers.call_later(retry, again)

    def _is_foreign(self, connection: Connection) -> bool:
        owned = connection.port is None or connection.port in self._owned_ports
        return connection.tls is None and not owned

    def _look_at(self, connection: Connection) -> None:
        if connection.protocol.at_rest and not connection.unsent:
            self.at_rest(connection)
