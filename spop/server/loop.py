"""A selector loop: one thread that moves bytes between its sockets and their connections.

For whatever has arrived on a socket it does one recv, one pass through the protocol and one
send, however many frames that was. All of its state belongs to its thread; other threads
reach it through `call_soon`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from spop.agent import Agent
from spop.connection import AgentConnection, AgentEvent, Disconnect, Hello, State
from spop.constants import Status
from spop.context import set_source
from spop.counters import Cell, Cells, status_cell
from spop.dispatch import Deferred
from spop.errors import FrameTooBigError, LocalProtocolError, ProtocolError
from spop.frames import Frame, Notify, Peer
from spop.logs import SafeLogger
from spop.poller import READ, WRITE, new_poller
from spop.port import FastPath, FastPaths
from spop.server.admission import Admission
from spop.server.engines import Engines
from spop.server.exchange import Exchange
from spop.server.executor import Executor, Job
from spop.server.frame_log import LoggedConnection
from spop.server.listeners import peer_host, peer_name
from spop.server.options import Options
from spop.server.tls import TLSSocket

logger = SafeLogger("spop.server")

RECV_SIZE = 256 * 1024
LINGER = 2.0
"""Seconds that a peer has to read our last words and close."""
QUIET = 0.2
"""Seconds that a connection may stay open for its next ACK to carry our goodbye."""
SWEEPS = 4
"""How often a loop looks for idle connections within the idle timeout."""

GiveAway = Callable[[socket.socket, dict[str, Any]], object]
"""Takes a connection at rest, its socket and what was negotiated, for another process."""


HandOut = Callable[[socket.socket], bool]
"""Accepts a connection of a listener. False: not now."""


class Shared(Protocol):
    """What the loops of a process have in common."""

    agent: Agent
    options: Options
    executor: Executor
    engines: Engines
    admission: Admission
    tls: ssl.SSLContext | None

    def thread_died(self, error: BaseException) -> None: ...


class Connection:
    """A socket, its protocol, and what is still to be sent.

    Attributes:
        fast_path: answers what comes in, where it may.
        quiet: sweeps for idle connections since it last sent something.
        exchanges: NOTIFY frames whose handlers run elsewhere; None where there are none.
    """

    __slots__ = (
        "events", "exchanges", "fast_path", "host", "opened", "peer", "protocol", "quiet",
        "sock", "unsent",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket | TLSSocket, host: str | None, protocol: AgentConnection
    ) -> None:
        self.sock = sock
        self.host = host
        self.protocol = protocol
        self.unsent: bytes | bytearray = b""
        self.events = READ
        self.peer: Peer | None = None
        self.opened = time.time()
        self.quiet = 0
        self.exchanges: set[Exchange] | None = None
        self.fast_path: FastPath


class Timer:
    """A call that was ordered for later and can be cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Deadlines:
    """Connections that have so many seconds for something, in the order of their ends."""

    def __init__(self, loop: Loop, seconds: float, expired: Callable[[Connection], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expired = expired
        self._ends: dict[Connection, float] = {}
        self._timed = False

    def add(self, connection: Connection) -> None:
        """Its time begins now."""
        self._ends[connection] = time.monotonic() + self._seconds
        self._order_call(self._seconds)

    def discard(self, connection: Connection) -> None:
        """It has done it, or is gone."""
        self._ends.pop(connection, None)

    def _order_call(self, delay: float) -> None:
        if not self._timed:
            self._timed = True
            self._loop.call_later(delay, self._end)

    def _end(self) -> None:
        self._timed = False
        now = time.monotonic()
        for connection, end in list(self._ends.items()):
            if end > now:
                self._order_call(end - now)
                return
            del self._ends[connection]
            self._expired(connection)


class Loop:
    """Serves the connections that are given to it, in a thread of its own.

    Args:
        cells: the row in which it counts.
    """

    def __init__(self, shared: Shared, cells: Cells, name: str) -> None:
        self.agent = shared.agent
        self.executor = shared.executor
        self.cells = cells
        self._options = options = shared.options
        self._engines = shared.engines
        self._admission = shared.admission
        self._tls = shared.tls
        self._died = shared.thread_died
        self._buffer = bytearray(RECV_SIZE)
        self._dispatcher = shared.agent.dispatcher(
            cells=cells,
            max_answer_size=options.max_unsent,
            max_messages=options.max_messages,
            max_arguments=options.max_arguments,
        )
        self._fast_paths = FastPaths(self._dispatcher, self._buffer, self._ready, self._go_on)
        self._poller = new_poller(cells)
        self._connections: set[Connection] = set()
        self._acknowledged: dict[Connection, None] = {}
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_ids = itertools.count()
        self._handshakes = Deadlines(self, options.handshake_timeout, self._end_handshake)
        self._lingering = Deadlines(self, LINGER, self._remove)
        self._sweeping = False
        self._submitted = False
        self._running = True
        self._draining = False
        self._give_away: GiveAway | None = None
        self._leaving = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    # --- from any thread ---

    @property
    def load(self) -> int:
        """How many connections it has."""
        return len(self._connections)

    @property
    def alive(self) -> bool:
        """It serves, or will once it is started."""
        return self._running

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have `call` run in the loop's thread."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self._poller.wake()

    def start(self) -> None:
        self.thread.start()

    def drain(self, timeout: float) -> None:
        """End: answer the frames in hand, say DISCONNECT, and leave after `timeout` at most."""
        self.call_soon(partial(self._drain, timeout))

    def hand_over(self, give_away: GiveAway, timeout: float) -> None:
        """End: give each connection away once it is at rest, and leave as `drain` does."""
        self.call_soon(partial(self._hand_over, give_away, timeout))

    def describe(self, timeout: float = 1.0) -> list[dict[str, Any]]:
        """Its connections, for people; none if it does not answer in `timeout` seconds."""
        found: list[dict[str, Any]] = []
        answered = threading.Event()

        def describe() -> None:
            found.extend(_description(connection) for connection in self._connections)
            answered.set()

        self.call_soon(describe)
        return found if answered.wait(timeout) else []

    # --- in the loop's thread ---

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        """Have `call` run in so many seconds."""
        timer = Timer(call)
        entry = (time.monotonic() + delay, next(self._timer_ids), timer)
        heapq.heappush(self._timers, entry)
        return timer

    def add(self, sock: socket.socket, sockaddr: Any) -> None:
        """Begin to serve an accepted and admitted connection."""
        connection = self._new_connection(
            sock, peer_host(sock, sockaddr), peer_name(sock, sockaddr), self._tls
        )
        self._handshakes.add(connection)

    def adopt(self, sock: socket.socket, host: str | None, negotiated: dict[str, Any]) -> None:
        """Serve a connection that another process gave away."""
        connection = self._new_connection(sock, host, negotiated["address"], None)
        try:
            self._greeted(connection, connection.protocol.resume_from(negotiated))
        except Exception as error:
            self._failed(connection, error)

    def _new_connection(
        self,
        sock: socket.socket,
        host: str | None,
        address: str,
        tls: ssl.SSLContext | None,
    ) -> Connection:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        served = TLSSocket(sock, tls) if tls and sock.family != socket.AF_UNIX else sock
        connection = Connection(served, host, self._new_protocol(address))
        protocol, fd = connection.protocol, served.fileno()
        connection.fast_path = FastPath(self._fast_paths, protocol.intake, fd, connection)
        # TLS is Python's, and a connection that logs its frames has to see them.
        connection.fast_path.enabled = served is sock and type(protocol) is AgentConnection
        self._poller.register(fd, READ, connection.fast_path)
        self._connections.add(connection)
        self.cells[Cell.CONNECTIONS_OPENED] += 1
        if not self._sweeping and self._options.idle_timeout:
            self._sweeping = True
            self.call_later(self._options.idle_timeout / SWEEPS, self._sweep)
        return connection

    def _new_protocol(self, address: str) -> AgentConnection:
        agent, options = self.agent, self._options
        new = LoggedConnection if options.log_frames else AgentConnection
        return new(
            max_frame_size=options.max_frame_size or agent.max_frame_size,
            max_payload_size=options.max_payload_size or agent.max_payload_size,
            max_in_flight=options.max_in_flight or agent.max_in_flight,
            dispatcher=self._dispatcher,
            address=address,
        )

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._running = False
            self._died(error)
        finally:
            self._close()

    def _serve(self) -> None:
        set_source(lambda: self._dispatcher.running)
        run, wait = self._poller.run, 0.0 if self._timers else None
        while self._running:
            # One thing between two looks at the sockets, as it may take longer than many frames.
            calls = len(self._calls)
            run(0.0 if calls or self._acknowledged or self._submitted else wait)
            if self._acknowledged:
                self._send_acks()
            elif self._submitted:
                self._submitted = False
                self.executor.start_jobs()
            elif calls:
                self._run_calls(calls)
            wait = self._run_timers() if self._timers else None

    def _ready(self, connection: Connection, events: int) -> None:
        try:
            if events & WRITE:
                self._flush(connection)
            if events & READ and connection.events & READ:
                self._read(connection)
        except Exception as error:
            self._failed(connection, error)

    def _go_on(
        self,
        connection: Connection,
        frames: list[Frame | Deferred],
        unsent: bytes,
        error: Exception | None,
    ) -> None:
        """Go on with what the connection's fast path can't do."""
        try:
            if isinstance(error, EOFError):
                self._end_of_file(connection)
                return
            if error is not None and not isinstance(error, ProtocolError):
                raise error
            connection.unsent = unsent
            self._received(connection, connection.protocol.go_on(frames, b"", error))
        except Exception as failure:
            self._failed(connection, failure)

    def _failed(self, connection: Connection, error: Exception) -> None:
        """Whatever goes wrong with a connection, ends this one and no other."""
        if isinstance(error, OSError):
            self._lost(connection, error.strerror or str(error))
        else:
            logger.failure(error, "connection failed")
            self._lost(connection, "internal error")

    def _read(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            if connection.events & WRITE or _wants_write(connection):
                self._watch(connection)
            return
        if size == 0:
            self._end_of_file(connection)
            return
        self.cells[Cell.BYTES_RECEIVED] += size
        self._received(connection, connection.protocol.receive_data(self._buffer, size))

    def _end_of_file(self, connection: Connection) -> None:
        self._handle(connection, connection.protocol.receive_eof())
        self._remove(connection)

    def _received(self, connection: Connection, events: list[AgentEvent]) -> None:
        if events:
            self._handle(connection, events)
        if self._leaving:
            self._leave(connection)
        self._flush(connection)
        if self._tls and connection.events & READ and _pending(connection):
            self.call_soon(partial(self._ready, connection, READ))

    def _flush(self, connection: Connection) -> None:
        self._send(connection)
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """After sending: go on with what was held back, and see what to wait for next."""
        protocol = connection.protocol
        while protocol.stalled and not connection.unsent:
            self._handle(connection, protocol.resume())
            self._send(connection)
        if connection.unsent or protocol.in_flight or connection.events != READ:
            self._watch(connection)
        if protocol.should_close and not connection.unsent:
            self._linger(connection)
        elif self._give_away is not None and not connection.unsent and protocol.at_rest:
            self._give(connection, self._give_away)

    def _send(self, connection: Connection) -> None:
        data = connection.protocol.data_to_send()
        if connection.unsent:
            data = connection.unsent + data
        if not data:
            return
        try:
            sent = connection.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent:
            connection.fast_path.active = True
            self.cells[Cell.BYTES_SENT] += sent
        connection.unsent = data[sent:] if sent < len(data) else b""

    def _watch(self, connection: Connection) -> None:
        """Read unless what was read waits for handlers or for a slow peer."""
        protocol = connection.protocol
        if connection.unsent:
            events = WRITE
        elif protocol.paused or (self._give_away is not None and protocol.in_flight):
            events = 0
        else:
            events = READ
        if _wants_write(connection):
            events |= WRITE
        if events == connection.events:
            return
        self._count_pause(connection, events)
        fd = connection.sock.fileno()
        if not events:
            self._poller.unregister(fd)
        elif not connection.events:
            self._poller.register(fd, events, connection.fast_path)
        else:
            self._poller.modify(fd, events)
        connection.events = events
        if self._tls and events & READ and _pending(connection):
            self.call_soon(partial(self._ready, connection, READ))

    def _count_pause(self, connection: Connection, events: int) -> None:
        if connection.unsent:
            self.cells[Cell.PAUSED_UNSENT] += 1
        elif not events:
            self.cells[Cell.PAUSED_IN_FLIGHT] += 1

    # --- what happened on a connection ---

    def _handle(self, connection: Connection, events: list[AgentEvent]) -> None:
        for event in events:
            if isinstance(event, Deferred):
                self._begin(connection, event)
            elif isinstance(event, Hello):
                self._greeted(connection, event.peer)
            elif isinstance(event, Disconnect):
                self._ended(connection, event)
            elif isinstance(event, Notify):
                raise AssertionError("the dispatcher answers or defers every NOTIFY")

    def _greeted(self, connection: Connection, peer: Peer) -> None:
        self._handshakes.discard(connection)
        connection.peer = peer
        if peer.healthcheck:
            self.cells[Cell.HEALTHCHECKS] += 1
            logger.debug("health check from %s", peer.address)
            return
        logger.info(
            "connection from %s: SPOP %s, max-frame-size %d, %s, engine %r",
            peer.address,
            peer.version,
            peer.max_frame_size,
            ",".join(sorted(peer.capabilities)) or "no capabilities",
            peer.engine_id,
        )
        if peer.async_engine_id:
            self._engines.add(peer.async_engine_id, connection, self)
        self.agent.connected(peer)

    def _ended(self, connection: Connection, reason: Disconnect) -> None:
        """A connection that said HELLO is over, or one that did not was refused."""
        peer, connection.peer = connection.peer, None
        if reason.remote:
            self.cells[status_cell(Cell.DISCONNECTS_RECEIVED, reason.code)] += 1
        else:
            self.cells[status_cell(Cell.DISCONNECTS_SENT, reason.code)] += 1
            self.cells[Cell.FRAMES_TOO_BIG] += reason.code == Status.TOO_BIG
        self._log_end(connection, peer, reason)
        if peer is not None and not peer.healthcheck:
            self.agent.disconnected(peer, reason)

    def _log_end(self, connection: Connection, peer: Peer | None, reason: Disconnect) -> None:
        if peer is not None and peer.healthcheck:
            return
        address = peer.address if peer else connection.protocol.address
        if not reason.remote and reason.code != Status.NORMAL:
            logger.warning("disconnected %s: %d %r", address, reason.code, reason.message)
        elif reason.remote:
            logger.info("disconnected by %s: %d %r", address, reason.code, reason.message)
        else:
            logger.info("disconnected %s: %d %r", address, reason.code, reason.message)

    def _lost(self, connection: Connection, reason: str) -> None:
        try:
            if connection.peer is not None:
                self._ended(connection, Disconnect(Status.IO, reason, True))
        finally:
            self._remove(connection)

    def _linger(self, connection: Connection) -> None:
        """Close in a way that lets the peer read what was sent, even if it still sends."""
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        self._lingering.add(connection)

    def _remove(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._forget(connection)
        connection.sock.close()

    def _forget(self, connection: Connection) -> None:
        """Have no more to do with a connection; its socket stays as it is."""
        self._connections.remove(connection)
        self._handshakes.discard(connection)
        self._lingering.discard(connection)
        self._admission.release(connection.host)
        self.cells[Cell.CONNECTIONS_CLOSED] += 1
        if connection.events:
            self._poller.unregister(connection.sock.fileno())
        self._abandon(connection)
        connection.fast_path.close()  # It may have MBs, which no cycle is to keep.
        if self._leaving and not self._connections:
            self._running = False

    def _time_out(self, connection: Connection, cell: Cell, message: str) -> None:
        if connection not in self._connections or connection.protocol.should_close:
            return
        self.cells[cell] += 1
        self._say_goodbye(connection, Status.TIMEOUT, message)
        if connection.unsent:
            self._remove(connection)

    def _end_handshake(self, connection: Connection) -> None:
        if connection.protocol.state is State.HELLO:
            self._time_out(connection, Cell.HANDSHAKE_TIMEOUTS, "no HELLO in time")

    def _sweep(self) -> None:
        """Close what was idle for the idle timeout."""
        for connection in list(self._connections):
            if connection.protocol.in_flight and not connection.unsent:
                continue
            connection.quiet = 0 if connection.fast_path.active else connection.quiet + 1
            connection.fast_path.active = False
            if connection.quiet > SWEEPS:
                self._time_out(connection, Cell.IDLE_TIMEOUTS, "idle for too long")
        self._sweeping = bool(self._connections)
        if self._sweeping:
            self.call_later(self._options.idle_timeout / SWEEPS, self._sweep)

    # --- exchanges with handlers elsewhere ---

    def _begin(self, connection: Connection, deferred: Deferred) -> None:
        exchange = Exchange(self, connection, deferred)
        if connection.exchanges is None:
            connection.exchanges = set()
        connection.exchanges.add(exchange)
        self._calls.append(partial(self._run_exchange, exchange))

    def _run_exchange(self, exchange: Exchange) -> None:
        try:
            exchange.run()
        except Exception as error:
            self._failed(exchange.connection, error)

    def submit(self, job: Job) -> None:
        """Have the executor run a job soon. Raises as `Executor.submit` does."""
        self.executor.submit(job)
        self._submitted = True

    def answer(self, exchange: Exchange, actions: bytearray) -> None:
        """Send the ACK of an exchange, on its own connection or another of the engine."""
        connection = exchange.connection
        if connection.exchanges is not None:
            connection.exchanges.discard(exchange)
        if connection in self._connections and connection.protocol.state is State.OPEN:
            self._acknowledge(connection, exchange, actions)
        else:
            self._answer_elsewhere(exchange, actions)

    def _acknowledge(self, connection: Connection, exchange: Exchange, actions: bytearray) -> None:
        protocol = connection.protocol
        deferred = exchange.deferred
        ids = deferred.stream_id, deferred.frame_id
        acknowledge = protocol.acknowledge_encoded
        if connection is not exchange.connection:
            acknowledge = protocol.acknowledge_other
            self.cells[Cell.ACKS_ELSEWHERE] += 1
        try:
            acknowledge(*ids, actions)
        except FrameTooBigError as error:
            self.agent.failed(deferred.calls[0].route.name, error)
            acknowledge(*ids, b"")
        self.cells[Cell.ACKS] += 1
        self._acknowledged[connection] = None

    def _send_acks(self) -> None:
        """Once in a round: one send for however many ACKs there are."""
        while self._acknowledged:
            connection, _ = self._acknowledged.popitem()
            if connection in self._connections:
                try:
                    self._received(connection, connection.protocol.resume())
                except Exception as error:
                    self._failed(connection, error)

    def _answer_elsewhere(self, exchange: Exchange, actions: bytearray) -> None:
        peer = exchange.connection.protocol.peer
        other = None
        if peer is not None and peer.async_engine_id:
            other = self._engines.another(peer.async_engine_id, exchange)
        if other is None:
            self.cells[Cell.ACKS_DROPPED] += 1
            return
        loop, connection = other
        loop.call_soon(partial(loop.answer_for_another, connection, exchange, actions))

    def answer_for_another(
        self, connection: Connection, exchange: Exchange, actions: bytearray
    ) -> None:
        """Send an ACK for an exchange whose own connection is gone."""
        if connection in self._connections and connection.protocol.state is State.OPEN:
            with contextlib.suppress(LocalProtocolError):
                self._acknowledge(connection, exchange, actions)
        else:
            self._answer_elsewhere(exchange, actions)

    def _abandon(self, connection: Connection) -> None:
        """Cancel the exchanges of a lost connection that no other can answer for."""
        peer = connection.protocol.peer
        exchanges = connection.exchanges or set()
        connection.exchanges = None
        if peer is not None and peer.async_engine_id:
            exchanges = self._engines.remove(peer.async_engine_id, connection, exchanges)
        for exchange in exchanges:
            exchange.loop.call_soon(exchange.cancel)

    # --- accepting ---

    def accept_from(self, listener: socket.socket, hand_out: HandOut) -> None:
        """Have `hand_out` accept connections of a listener whenever there are some."""
        accept = partial(self._accept, listener, hand_out)
        self._poller.register(listener.fileno(), READ, accept)

    def forget_listener(self, listener: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._poller.unregister(listener.fileno())

    def pause_listener(self, listener: socket.socket, hand_out: HandOut, seconds: float) -> None:
        """Leave connections to others for a while."""
        self.forget_listener(listener)
        self.call_later(seconds, partial(self._accept_again, listener, hand_out))

    def _accept(self, listener: socket.socket, hand_out: HandOut, _: int) -> None:
        for _ in range(64):
            try:
                if not hand_out(listener):
                    return
            except (BlockingIOError, ConnectionAbortedError):
                return
            except (OSError, MemoryError) as error:
                self.cells[Cell.ACCEPT_ERRORS] += 1
                why = getattr(error, "strerror", "out of memory")
                logger.error("cannot accept connections: %s", why)
                self.pause_listener(listener, hand_out, 0.5)
                return

    def _accept_again(self, listener: socket.socket, hand_out: HandOut) -> None:
        if listener.fileno() >= 0 and not self._leaving:
            self.accept_from(listener, hand_out)

    # --- ending ---

    def _drain(self, timeout: float) -> None:
        self._draining = True
        self._begin_to_leave()
        self.call_later(min(QUIET, timeout), self._end_quiet_ones)
        self.call_later(timeout, self._stop)
        for connection in list(self._connections):
            # What has arrived before now is in hand.
            self._ready(connection, READ)
        if not self._connections:
            self._running = False

    def _begin_to_leave(self) -> None:
        self._leaving = True
        for connection in self._connections:
            connection.fast_path.enabled = False

    def _hand_over(self, give_away: GiveAway, timeout: float) -> None:
        self._give_away = give_away
        self._begin_to_leave()
        self.call_later(timeout, partial(self._drain, QUIET))
        for connection in list(self._connections):
            if isinstance(connection.sock, TLSSocket):
                self._leave(connection)
            self._ready(connection, WRITE)
        if not self._connections:
            self._running = False

    def _leave(self, connection: Connection) -> None:
        """Say goodbye right behind an ACK, when the peer waits for no other.

        A peer that is in lock step then has sent nothing that could be lost.
        """
        protocol = connection.protocol
        over_tls = isinstance(connection.sock, TLSSocket)
        if (self._draining or over_tls) and protocol.state is State.OPEN and not protocol.in_flight:
            protocol.disconnect()
            self._ended(connection, Disconnect(Status.NORMAL, "the agent stops", False))

    def _end_quiet_ones(self) -> None:
        for connection in list(self._connections):
            if not connection.protocol.in_flight and not connection.unsent:
                self._say_goodbye(connection, Status.NORMAL, "the agent stops")

    def _say_goodbye(self, connection: Connection, code: Status, message: str) -> None:
        if connection.protocol.should_close:
            return
        connection.protocol.disconnect(code, message if code else "normal")
        self._ended(connection, Disconnect(code, message, False))
        self._ready(connection, WRITE)

    def _give(self, connection: Connection, give_away: GiveAway) -> None:
        sock = connection.sock
        if isinstance(sock, TLSSocket):
            return
        peer, connection.peer = connection.peer, None
        self.cells[Cell.HANDED_OVER] += 1
        self._forget(connection)
        give_away(sock, {"host": connection.host, **connection.protocol.negotiated()})
        sock.close()
        if peer is not None:
            reason = Disconnect(Status.NORMAL, "handed over to a new worker", False)
            self.agent.disconnected(peer, reason)

    def _stop(self) -> None:
        self._running = False

    def _close(self) -> None:
        self._send_acks()
        for connection in list(self._connections):
            if connection.peer is not None:
                reason = Disconnect(Status.NORMAL, "the agent stopped", False)
                self._ended(connection, reason)
            self._remove(connection)
        self._poller.close()

    # --- calls and timers ---

    def _run_calls(self, count: int) -> None:
        self._woken = False
        for _ in range(count):
            self._call(self._calls.popleft())

    def _run_timers(self) -> float | None:
        """Run the timers that are due. Returns the seconds until the next."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                self._call(call)
                self._send_acks()
        return self._timers[0][0] - now if self._timers else None

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            logger.failure(error, "call in the loop failed")


def _wants_write(connection: Connection) -> bool:
    return isinstance(connection.sock, TLSSocket) and connection.sock.wants_write


def _pending(connection: Connection) -> bool:
    return isinstance(connection.sock, TLSSocket) and connection.sock.pending() > 0


def _description(connection: Connection) -> dict[str, Any]:
    protocol, peer = connection.protocol, connection.protocol.peer
    return {
        "address": protocol.address,
        "opened": round(connection.opened, 3),
        "state": protocol.state.name,
        "version": peer.version if peer else None,
        "software": peer.software if peer else None,
        "capabilities": sorted(peer.capabilities) if peer else [],
        "max_frame_size": protocol.max_frame_size,
        "engine_id": peer.engine_id if peer else None,
        "in_flight": protocol.in_flight,
        "unsent": len(connection.unsent),
        "tls": isinstance(connection.sock, TLSSocket),
    }
