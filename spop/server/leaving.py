"""How connections end: one by one, and all of them when their loop drains or hands over.

On the left what happens to a connection, on the right what follows::

    the peer's DISCONNECT ──────────── ours answers it ──┐
    bytes that break the protocol ─────┐                 │
    no HELLO in time, idle for too long├─ our DISCONNECT ┤
    too much memory ───────────────────┤                 │
    drain: nothing left to answer ─────┘                 │
                                                         ├─ report ─ linger ─ close
    the peer closed its side, a socket error ────────────┼─ report ────────── close
    handed over or spared: at rest, and taken ───────────┴─ report ─ its socket lives on

``report`` counts, logs and calls the hooks, once. ``linger`` closes our side and waits for the
peer to close its own, so that it can read our DISCONNECT even if it still sends. If handlers
still run and async is in force, their ACKs leave on another connection of the engine.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from spop.agent import Agent
from spop.connection import Disconnect, State
from spop.constants import LENGTH_SIZE, FrameType, Status
from spop.counters import Cell, Cells, status_cell
from spop.dispatch import Memory
from spop.errors import reason as error_text
from spop.frames import Peer
from spop.options import Options
from spop.poller import READ, WRITE
from spop.server.admission import Admission
from spop.server.ages import Ages
from spop.server.calls import Calls
from spop.server.connection_log import ConnectionLog
from spop.server.engines import Engines
from spop.server.exchange import Connection
from spop.server.memory import MemoryLimit
from spop.server.steps import Steps
from spop.server.timers import Timers

LINGER = 2.0
"""Seconds that a peer has to read our DISCONNECT and close."""
QUIET = 0.2
"""Seconds that a draining connection waits for an ACK, to send DISCONNECT right behind it."""
CANCEL_GRACE = 2.0
"""Seconds that ``async def`` handlers have to end after the end of their loop has cancelled them."""
FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds until connections that were not at rest are looked at again, to spare them."""
HOLD = 0.05
"""Seconds for which a connection with frames in flight is not read from, to come to rest."""
MOST_CROSSED = 100
"""Number of frames that are looked at in what one recv brings behind our DISCONNECT."""
SWEEPS = 4
"""Number of sweeps in each idle timeout, and in each handshake timeout for payloads."""

TOO_OLD = "max_connection_age is reached"

GIVE_AGAIN = 0.5
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


class Deadlines:
    """Connections with `seconds` to do something, ordered by their deadlines."""

    def __init__(
        self, timers: Timers, seconds: float, expired: Callable[[Connection], object]
    ) -> None:
        self._timers = timers
        self._seconds = seconds
        self._expired = expired
        self._ends: dict[Connection, float] = {}
        self._timed = False

    def __contains__(self, connection: Connection) -> bool:
        """The time of this connection has begun."""
        return connection in self._ends

    def add(self, connection: Connection) -> None:
        """The time of a connection begins now."""
        self._ends[connection] = time.monotonic() + self._seconds
        self._order_call(self._seconds)

    def discard(self, connection: Connection) -> None:
        """The connection has done it, or is closed."""
        self._ends.pop(connection, None)

    def _order_call(self, delay: float) -> None:
        if not self._timed:
            self._timed = True
            self._timers.call_later(delay, self._end)

    def _end(self) -> None:
        self._timed = False
        now = time.monotonic()
        for connection, end in list(self._ends.items()):
            if end > now:
                self._order_call(end - now)
                return
            del self._ends[connection]
            self._expired(connection)


class Loop(Protocol):
    """What the end of connections needs of their loop."""

    agent: Agent
    cells: Cells
    options: Options
    timers: Timers
    connections: set[Connection]
    admission: Admission
    calls: Calls
    steps: Steps

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` in the next round."""

    def see_to(self, connection: Connection, events: int) -> None:
        """Do what the socket is ready for."""

    def take_back(self, connection: Connection) -> None:
        """Have exchanges wait for the calls that the dispatcher would answer itself."""

    def forget(self, connection: Connection) -> None:
        """Serve a connection no longer. Its socket stays open."""

    def adopt(self, sock: socket.socket, state: dict[str, Any], new: bool) -> Connection:
        """Serve an admitted connection that another process gave away, or (not `new`) refused."""

    def end(self) -> None:
        """Run no further round."""


class Leaving:
    """Ends the connections of a loop. Used in the loop's thread alone.

    Attributes:
        begun: the loop drains or hands over.
        handing_over: all connections are given away, each once it is at rest.
        gives: some are, or all.
        memory: counts what the connections keep.
    """

    def __init__(self, loop: Loop, engines: Engines, log: ConnectionLog) -> None:
        self._loop = loop
        self._log = log
        share = loop.options.max_memory // loop.options.threads
        self.memory: Memory = MemoryLimit(loop, engines, share, self.end_for_memory).memory
        self.memory.fragmented = self._watch_payloads
        self._handshakes = Deadlines(
            loop.timers, loop.options.handshake_timeout, self._end_handshake
        )
        self._lingering = Deadlines(loop.timers, LINGER, self.close)
        self.ages: Ages = Ages(loop, self._end_old)
        self._sweeping = False
        self._draining = False
        self._give_away: GiveAway | None = None
        self._offered: set[socket.socket] = set()
        self._waits = False
        self._give_foreign: GiveAway | None = None
        self._owned_ports: frozenset[int] = frozenset()
        self._spare: Spare | None = None
        self._held: dict[Connection, int] = {}
        self.begun: bool = False

    @property
    def handing_over(self) -> bool:
        return self._give_away is not None

    @property
    def gives(self) -> bool:
        return (self._give_away or self._give_foreign or self._spare) is not None

    # --- one connection ---

    def expect_hello(self, connection: Connection) -> None:
        """A connection was accepted: its handshake timeout begins."""
        self._handshakes.add(connection)

    def said_hello(self, connection: Connection, peer: Peer) -> None:
        """HELLO is done: only the idle timeout counts now."""
        self._handshakes.discard(connection)
        self._log.begun(peer)

    def watch_idle(self) -> None:
        """Look for idle connections from now on."""
        timeout = self._loop.options.idle_timeout
        if timeout and not self._sweeping:
            self._sweeping = True
            self._loop.timers.call_later(timeout / SWEEPS, self._sweep)

    def report(self, connection: Connection, reason: Disconnect) -> None:
        """Count and log the end of a connection, or its refusal, and call the hooks."""
        cells = self._loop.cells
        self._loop.take_back(connection)
        peer, connection.peer = connection.peer, None
        if reason.remote:
            cells[status_cell(Cell.DISCONNECTS_RECEIVED, reason.code)] += 1
        else:
            cells[status_cell(Cell.DISCONNECTS_SENT, reason.code)] += 1
            cells[Cell.FRAMES_TOO_BIG] += reason.code == Status.TOO_BIG
        if peer is None or not peer.healthcheck:
            address = peer.address if peer else connection.protocol.address
            self._log.ended(address, reason, peer, time.monotonic() - connection.began)
            self._tell(peer, reason)

    def fail(self, connection: Connection, error: Exception) -> None:
        """End a connection after an unexpected error. All others go on."""
        is_ours = not isinstance(error, OSError)
        if is_ours or connection.protocol.state is State.HELLO:
            self._log.failed(connection.protocol.address, error)
        why = "internal error" if is_ours else error_text(error)
        if connection.peer is not None:
            self.report(connection, Disconnect(Status.IO, why, True))
        self.close(connection)

    def disconnect(self, connection: Connection, code: Status, message: str) -> None:
        """Send our DISCONNECT (section 3.2.9), unless the connection ends already."""
        if connection.protocol.should_close:
            return
        connection.protocol.disconnect(code, message if code else "normal")
        self.report(connection, Disconnect(code, message, False))
        self._loop.see_to(connection, WRITE)

    def end_for_memory(self, connection: Connection) -> None:
        """End a connection, to have the memory that it takes."""
        self._loop.cells[Cell.OUT_OF_MEMORY] += 1
        self._loop.take_back(connection)
        exchanges, connection.exchanges = connection.exchanges, set()
        for exchange in exchanges:
            exchange.cancel()
        if connection.protocol.should_close:
            self.close(connection)
        else:
            self._end(connection, Status.RESOURCE, "max_memory is reached")

    def linger(self, connection: Connection) -> None:
        """All bytes are sent: close our side, and wait for the peer to close its own.

        Whatever the peer still sends changes nothing, so that it can't keep the connection.
        """
        if connection in self._lingering:
            return
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        self._lingering.add(connection)

    def close(self, connection: Connection) -> None:
        """Close the socket, unless it is closed."""
        if connection in self._loop.connections:
            self._forget(connection)
            self._loop.steps.add(connection.sock.close)

    def after_answers(self, connection: Connection) -> None:
        """While the loop drains, and if it is too old: send DISCONNECT right behind the last ACK.

        Then a peer in lock step has sent nothing that could be lost.
        """
        protocol = connection.protocol
        # TLS can't be given away.
        leaves = self._draining or (self.begun and connection.tls is not None)
        waits = protocol.in_flight or protocol.stalled
        if protocol.state is not State.OPEN or waits:
            return
        if leaves:
            protocol.disconnect()
            self.report(connection, Disconnect(Status.NORMAL, "the agent stops", False))
        elif self.ages.ends_now(connection):
            self.ages.count()
            protocol.disconnect()
            self.report(connection, Disconnect(Status.NORMAL, TOO_OLD, False))

    def look_for_crossed(self, connection: Connection, data: memoryview) -> None:
        """Count the NOTIFY frames that came behind our DISCONNECT: of the first `MOST_CROSSED`.

        A flood of tiny frames would hold the loop for 16 ms otherwise.
        """
        if connection.protocol.should_close:
            for _ in range(MOST_CROSSED):
                if len(data) <= LENGTH_SIZE:
                    return
                self._loop.cells[Cell.FRAMES_CROSSED] += data[LENGTH_SIZE] == FrameType.NOTIFY
                data = data[LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "big") :]

    def _end_old(self, connection: Connection) -> None:
        self.disconnect(connection, Status.NORMAL, TOO_OLD)

    def give_away(self, connection: Connection) -> None:
        """Offer a connection at rest to another process or loop, if it is one of those to give."""
        if self._waits or connection.tls is not None:
            return
        if self._give_away is not None:
            self._give(connection, self._give_away)
        elif self._is_foreign(connection):
            assert self._give_foreign is not None
            self._give(connection, self._give_foreign)
        elif self._spare is not None and connection.movable:
            self._spare.count -= 1
            self._give(connection, self._spare.give_away)
            self._end_spare()

    def _give(self, connection: Connection, give_away: GiveAway) -> None:
        sock = connection.sock
        assert isinstance(sock, socket.socket)
        state = {
            "host": connection.host, "port": connection.port, "began": connection.began,
        }  # fmt: skip
        state.update(connection.protocol.negotiated())
        self._offered.add(sock)
        self._forget(connection)
        answered = partial(self._answered, sock, state, connection.peer)
        call_soon = self._loop.call_soon
        give_away(sock, state, lambda taken: call_soon(partial(answered, taken)))

    def _answered(
        self, sock: socket.socket, state: dict[str, Any], peer: Peer | None, taken: bool
    ) -> None:
        """Another process has taken a connection, or had no room for it: it goes on here."""
        self._offered.discard(sock)
        if taken:
            self._loop.cells[Cell.HANDED_OVER] += 1
            sock.close()
            self._tell(peer, Disconnect(Status.NORMAL, "handed over to another worker", False))
            self._end_if_done()
            return
        if not self._waits:
            self._waits = True
            self._loop.timers.call_later(GIVE_AGAIN, self._give_again)
        self._loop.admission.adopt(state["host"])
        try:
            connection = self._loop.adopt(sock, state, new=False)
        except OSError as error:
            self._log.failed(state["address"], error)
            self._loop.admission.release(state["host"])
            sock.close()
            self._end_if_done()
            return
        if self._draining:
            self.disconnect(connection, Status.NORMAL, "the agent stops")

    def _give_again(self) -> None:
        self._waits = False
        if self.begun:
            self._see_to_all(WRITE)

    def _forget(self, connection: Connection) -> None:
        self._handshakes.discard(connection)
        self._lingering.discard(connection)
        self.ages.discard(connection)
        self._loop.forget(connection)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.begun and not self._loop.connections and not self._offered:
            self._loop.end()

    def _tell(self, peer: Peer | None, reason: Disconnect) -> None:
        if peer is not None:
            self._loop.agent.disconnected(peer, reason)

    # --- those that take too long ---

    def _end_handshake(self, connection: Connection) -> None:
        if connection.protocol.state is State.HELLO:
            self._time_out(connection, Cell.HANDSHAKE_TIMEOUTS, "no HELLO in time")

    def _time_out(self, connection: Connection, cell: Cell, message: str) -> None:
        if connection not in self._loop.connections or connection.protocol.should_close:
            return
        self._loop.cells[cell] += 1
        self._end(connection, Status.TIMEOUT, message)

    def _watch_payloads(self) -> None:
        timeout = self._loop.options.handshake_timeout
        self._loop.timers.call_later(timeout / SWEEPS, self._sweep_payloads)

    def _sweep_payloads(self) -> None:
        """End the connections whose payload in fragments took the handshake timeout."""
        earliest = time.monotonic_ns() - self._loop.options.handshake_timeout * 1e9
        for connection in list(self._loop.connections):
            intake = connection.protocol.intake
            if intake.begun and intake.began < earliest:
                message = "a payload in fragments did not end in time"
                self._time_out(connection, Cell.HANDSHAKE_TIMEOUTS, message)
        self.memory.watching = any(
            connection.protocol.intake.begun for connection in self._loop.connections
        )
        if self.memory.watching:
            self._watch_payloads()

    def _end(self, connection: Connection, code: Status, message: str) -> None:
        self.disconnect(connection, code, message)
        if connection.unsent:  # The peer does not read, so it would not see the DISCONNECT.
            self.close(connection)

    def _sweep(self) -> None:
        """Close the connections that were idle for the idle timeout."""
        for connection in list(self._loop.connections):
            if connection.protocol.in_flight and not connection.unsent:
                continue
            connection.quiet = 0 if connection.fast_path.active else connection.quiet + 1
            connection.fast_path.active = False
            if connection.quiet > SWEEPS:
                self._time_out(connection, Cell.IDLE_TIMEOUTS, "idle for too long")
        self._sweeping = False
        if self._loop.connections:
            self.watch_idle()

    # --- all connections ---

    def drain(self, timeout: float) -> None:
        """Answer the frames in hand, say DISCONNECT, end the loop after `timeout` s at most."""
        self._draining = True
        self._give_away = None
        self._begin()
        self._loop.timers.call_later(min(QUIET, timeout), self._end_quiet_ones)
        self._loop.timers.call_later(timeout, self._loop.end)
        # Frames that have arrived before now are in hand.
        self._see_to_all(READ)

    def hand_over(self, give_away: GiveAway, timeout: float) -> None:
        """Give each connection away once it is at rest; `drain` the rest after `timeout` s."""
        self._give_away = give_away
        self._begin()
        self._loop.timers.call_later(timeout, partial(self.drain, QUIET))
        for connection in list(self._loop.connections):
            if connection.tls is not None:
                self.after_answers(connection)
        self._see_to_all(WRITE)

    def spare(self, count: int, give_away: GiveAway, has_too_many: Callable[[], bool]) -> None:
        """Give so many connections away, those at rest first, and go on serving the others.

        An order that comes later replaces this one. So does the end of `has_too_many`.
        """
        if not self.begun:
            self._spare = spare = Spare(count, give_away, has_too_many)
            self._spare_those_at_rest(spare, FIRST_RETRY)
            if self._spare is spare:
                self._hold_busy_ones(spare.count)

    def _spare_those_at_rest(self, spare: Spare, retry: float) -> None:
        self._end_spare()
        for connection in list(self._loop.connections):
            if self._spare is not spare:
                return
            if connection.protocol.at_rest and not connection.unsent:
                self.give_away(connection)
        # The fast path does not tell when a connection comes to rest.
        again = partial(self._spare_those_at_rest, spare, min(2 * retry, LAST_RETRY))
        if self._spare is spare:
            self._loop.timers.call_later(retry, again)

    def give_ports(self, owned: frozenset[int], give_away: GiveAway) -> None:
        """Give the connections of other ports of ranges away, each once it is at rest."""
        self._owned_ports, self._give_foreign = owned, give_away
        self._give_those_of_ports(FIRST_RETRY)

    def _give_those_of_ports(self, retry: float) -> None:
        foreign = [each for each in self._loop.connections if self._is_foreign(each)]
        for connection in foreign:
            if connection.protocol.at_rest and not connection.unsent:
                self.give_away(connection)
        if any(each in self._loop.connections for each in foreign):
            again = partial(self._give_those_of_ports, min(2 * retry, LAST_RETRY))
            self._loop.timers.call_later(retry, again)

    def _is_foreign(self, connection: Connection) -> bool:
        return (
            self._give_foreign is not None
            and connection.tls is None
            and connection.port not in (None, *self._owned_ports)
        )

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

    def _end_spare(self) -> None:
        if self._spare is not None and not (self._spare.count and self._spare.has_too_many()):
            self._spare = None

    def end_all(self, connections: Iterable[Connection]) -> None:
        """The loop has ended: close the connections that are left."""
        self._loop.steps.take_all()
        for connection in list(connections):
            if connection.peer is not None:
                self.report(connection, Disconnect(Status.NORMAL, "the agent stopped", False))
            self.close(connection)
        for sock in self._offered:
            sock.close()
        self._loop.steps.take_all()

    def _begin(self) -> None:
        self.begun = True
        self._spare = None
        for connection in self._loop.connections:
            connection.fast_path.enabled = False

    def _see_to_all(self, events: int) -> None:
        for connection in list(self._loop.connections):
            self._loop.see_to(connection, events)
        self._end_if_done()

    def _end_quiet_ones(self) -> None:
        for connection in list(self._loop.connections):
            protocol = connection.protocol
            if not (protocol.in_flight or protocol.stalled or connection.unsent):
                self.disconnect(connection, Status.NORMAL, "the agent stops")
