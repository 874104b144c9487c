"""How connections end: one by one, and all of them when their loop drains or hands over. `giving` has the ones
that go on elsewhere.

On the left what happens to a connection, on the right what follows::

    the peer's DISCONNECT ──────────── ours answers it ──┐
    bytes that break the protocol ─────┐                 │
    no HELLO in time, idle for too long├─ our DISCONNECT ┤
    too much memory ───────────────────┤                 │
    drain: nothing left to answer ─────┘                 │
                                                         ├─ report ─ linger ─ close
    the peer closed its side, a socket error ────────────┼─ report ────────── close
    given away: at rest, and taken ──────────────────────┴─ report ─ its socket lives on

``report`` counts, logs and calls the hooks, once. ``linger`` closes our side and waits for the
peer to close its own, so that it can read our DISCONNECT even if it still sends. If handlers
still run and async is in force, their ACKs leave on another connection of the engine.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from spop.agent import Agent
from spop.connection import Disconnect, State
from spop.constants import LENGTH_SIZE, FrameType, Status
from spop.counters import Cell, status_cell
from spop.dispatch import Memory
from spop.errors import reason as error_text
from spop.frames import Peer
from spop.options import Options
from spop.poller import READ, WRITE
from spop.server import giving
from spop.server.ages import Ages
from spop.server.calls import Calls
from spop.server.connection_log import ConnectionLog
from spop.server.engines import Engines
from spop.server.exchange import Connection
from spop.server.giving import GiveAway, Giving
from spop.server.memory import MemoryLimit
from spop.server.steps import Steps
from spop.server.timers import Deadlines

LINGER = 2.0
"""Seconds that a peer has to read our DISCONNECT and close."""
QUIET = 0.2
"""Seconds that a draining connection waits for an ACK, to send DISCONNECT right behind it."""
CANCEL_GRACE = 2.0
"""Seconds that ``async def`` handlers have to end after the end of their loop has cancelled them."""
SWEEPS = 4
"""Number of sweeps in each idle timeout, and in each handshake timeout for payloads."""

TOO_OLD = "max_connection_age is reached"


class Loop(giving.Loop, Protocol):
    """What the end of connections needs of their loop."""

    agent: Agent
    options: Options
    calls: Calls
    steps: Steps

    def take_back(self, connection: Connection) -> None:
        """Have exchanges wait for the calls that the dispatcher would answer itself."""

    def forget(self, connection: Connection) -> None:
        """Serve a connection no longer. Its socket stays open."""

    def end(self) -> None:
        """Run no further round."""


class Leaving:
    """Ends the connections of a loop. Used in the loop's thread alone.

    Attributes:
        begun: the loop drains or hands over.
        giving: gives connections away that another process or loop takes.
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
        self.begun: bool = False
        self.giving: Giving = Giving(loop, self, log)

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
        """All bytes are sent: close our side, and wait for the peer to close its own."""
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        self._lingering.add(connection)

    def close(self, connection: Connection) -> None:
        """Close the socket, unless it is closed."""
        if connection in self._loop.connections:
            self.forget(connection)
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
        """Count the NOTIFY frames that came behind our DISCONNECT."""
        while connection.protocol.should_close and len(data) > LENGTH_SIZE:
            self._loop.cells[Cell.FRAMES_CROSSED] += data[LENGTH_SIZE] == FrameType.NOTIFY
            data = data[LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "big") :]

    def _end_old(self, connection: Connection) -> None:
        self.disconnect(connection, Status.NORMAL, TOO_OLD)

    def forget(self, connection: Connection) -> None:
        """A connection is no longer this loop's."""
        self._handshakes.discard(connection)
        self._lingering.discard(connection)
        self.ages.discard(connection)
        self._loop.forget(connection)
        self.end_if_done()

    def moved(self, peer: Peer | None) -> None:
        """Another process serves this peer."""
        self._tell(peer, Disconnect(Status.NORMAL, "handed over to another worker", False))

    def returned(self, connection: Connection) -> None:
        """No other process took this connection: it goes on here, or ends with the loop."""
        if self._draining:
            self.disconnect(connection, Status.NORMAL, "the agent stops")

    def end_if_done(self) -> None:
        """End the loop if it is to end and waits for no connection."""
        if self.begun and not self._loop.connections and not self.giving.offered:
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
        self.giving.stop()
        self._begin()
        self._loop.timers.call_later(min(QUIET, timeout), self._end_quiet_ones)
        self._loop.timers.call_later(timeout, self._loop.end)
        # Frames that have arrived before now are in hand.
        self._see_to_all(READ)

    def hand_over(self, give_away: GiveAway, timeout: float) -> None:
        """Give each connection away once it is at rest; `drain` the rest after `timeout` s."""
        self.giving.give_all(give_away)
        self._begin()
        self._loop.timers.call_later(timeout, partial(self.drain, QUIET))
        for connection in list(self._loop.connections):
            if connection.tls is not None:
                self.after_answers(connection)
        self._see_to_all(WRITE)

    def end_all(self, connections: Iterable[Connection]) -> None:
        """The loop has ended: close the connections that are left."""
        self._loop.steps.take_all()
        for connection in list(connections):
            if connection.peer is not None:
                self.report(connection, Disconnect(Status.NORMAL, "the agent stopped", False))
            self.close(connection)
        for sock in self.giving.offered:
            sock.close()
        self._loop.steps.take_all()

    def _begin(self) -> None:
        self.begun = True
        for connection in self._loop.connections:
            connection.fast_path.enabled = False

    def _see_to_all(self, events: int) -> None:
        for connection in list(self._loop.connections):
            self._loop.see_to(connection, events)
        self.end_if_done()

    def _end_quiet_ones(self) -> None:
        for connection in list(self._loop.connections):
            protocol = connection.protocol
            if not (protocol.in_flight or protocol.stalled or connection.unsent):
                self.disconnect(connection, Status.NORMAL, "the agent stops")
