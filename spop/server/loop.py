"""A selector loop: one thread that moves bytes between its sockets and their connections.

For whatever has arrived on a socket it does one recv, one pass through the protocol and one
send, however many frames that was. All of its state belongs to its thread; other threads
reach it through `call_soon`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from spop.agent import Agent
from spop.connection import AgentConnection, AgentEvent, Disconnect, Hello, Peer
from spop.constants import Status
from spop.dispatch import Deferred
from spop.errors import FrameTooBigError, LocalProtocolError
from spop.frames import Notify
from spop.server.executor import Executor
from spop.server.listeners import peer_name
from spop.server.poller import READ, WRITE, new_poller

logger = logging.getLogger("spop.server")

RECV_SIZE = 256 * 1024
LINGER = 2.0
"""Seconds that a peer has to read our last words and close."""


class Connection:
    """A socket, its protocol, and what is still to be sent."""

    __slots__ = ("events", "peer", "protocol", "sock", "unsent")

    def __init__(self, sock: socket.socket, protocol: AgentConnection) -> None:
        self.sock = sock
        self.protocol = protocol
        self.unsent: bytes | bytearray = b""
        self.events = READ
        self.peer: Peer | None = None


class Loop:
    """Serves the connections that are given to it, in a thread of its own."""

    def __init__(self, agent: Agent, executor: Executor, name: str) -> None:
        self._agent = agent
        self._executor = executor
        self._dispatcher = agent.dispatcher()
        self._poller = new_poller()
        self._buffer = bytearray(RECV_SIZE)
        self._connections: set[Connection] = set()
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_ids = itertools.count()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._poller.register(self._wakened.fileno(), READ, self._run_calls)
        self._running = True
        self._draining = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    # --- from any thread ---

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have `call` run in the loop's thread."""
        self._calls.append(call)
        with contextlib.suppress(OSError):  # Full: it wakes up anyway. Closed: it has ended.
            self._waker.send(b"\0")

    def start(self) -> None:
        self.thread.start()

    def drain(self, timeout: float) -> None:
        """End: answer the frames in hand, say DISCONNECT, and leave after `timeout` at most."""
        self.call_soon(lambda: self._drain(timeout))

    # --- in the loop's thread ---

    def accept_from(self, listener: socket.socket, hand_out: Callable[..., object]) -> None:
        """Accept connections here and give each to `hand_out`, socket and address."""

        def accept(_: int) -> None:
            self._accept(listener, hand_out)

        self._poller.register(listener.fileno(), READ, accept)

    def forget_listener(self, listener: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._poller.unregister(listener.fileno())

    def add(self, sock: socket.socket, sockaddr: Any) -> None:
        """Begin to serve an accepted connection."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        agent = self._agent
        connection = Connection(
            sock,
            AgentConnection(
                max_frame_size=agent.max_frame_size,
                max_payload_size=agent.max_payload_size,
                max_in_flight=agent.max_in_flight,
                dispatcher=self._dispatcher,
                address=peer_name(sock, sockaddr),
            ),
        )
        self._connections.add(connection)
        self._poller.register(sock.fileno(), READ, partial(self._ready, connection))
        if self._draining:
            self._say_goodbye(connection)

    def _run(self) -> None:
        run = self._poller.run
        while self._running:
            run(self._timeout() if self._timers else None)
            if self._timers:
                self._run_timers()
        self._close()

    def _ready(self, connection: Connection, events: int) -> None:
        try:
            if events & WRITE:
                self._flush(connection)
            if events & READ and connection.events & READ:
                self._read(connection)
        except OSError as error:
            self._lost(connection, error.strerror or str(error))
        except Exception:
            logger.exception("connection failed")
            self._lost(connection, "internal error")

    def _read(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        protocol = connection.protocol
        if size == 0:
            self._handle(connection, protocol.receive_eof())
            self._remove(connection)
            return
        events = protocol.receive_data(self._buffer, size)
        if events:
            self._handle(connection, events)
        self._send(connection)
        if events or connection.unsent or protocol.in_flight or protocol.stalled:
            self._settle(connection)

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
        connection.unsent = data[sent:] if sent < len(data) else b""

    def _watch(self, connection: Connection) -> None:
        """Read unless what was read waits for handlers or for a slow peer."""
        protocol = connection.protocol
        events = WRITE if connection.unsent else 0 if protocol.paused else READ
        if events == connection.events:
            return
        fd = connection.sock.fileno()
        if not events:
            self._poller.unregister(fd)
        elif not connection.events:
            self._poller.register(fd, events, partial(self._ready, connection))
        else:
            self._poller.modify(fd, events)
        connection.events = events

    def _handle(self, connection: Connection, events: list[AgentEvent]) -> None:
        for event in events:
            if isinstance(event, Deferred):
                self._defer(connection, event)
            elif isinstance(event, Hello):
                connection.peer = event.peer
                self._log_hello(event.peer)
                if not event.peer.healthcheck:
                    self._agent.connected(event.peer)
            elif isinstance(event, Disconnect):
                self._log_disconnect(connection, event)
                self._ended(connection, event)
            elif isinstance(event, Notify):
                raise AssertionError("the dispatcher answers or defers every NOTIFY")

    def _defer(self, connection: Connection, deferred: Deferred) -> None:
        def done(actions: bytearray) -> None:
            self.call_soon(lambda: self._acknowledge(connection, deferred, actions))

        self._executor.submit(deferred, done)

    def _acknowledge(self, connection: Connection, deferred: Deferred, actions: bytearray) -> None:
        if connection not in self._connections:
            return
        protocol = connection.protocol
        ids = deferred.stream_id, deferred.frame_id
        try:
            protocol.acknowledge_encoded(*ids, actions)
        except FrameTooBigError as error:
            self._agent.failed(deferred.calls[0].route.name, error)
            protocol.acknowledge_encoded(*ids, b"")
        except LocalProtocolError:
            return
        self._handle(connection, protocol.resume())
        if self._draining and not protocol.in_flight:
            self._say_goodbye(connection)
        try:
            self._flush(connection)
        except OSError as error:
            self._lost(connection, error.strerror or str(error))

    def _linger(self, connection: Connection) -> None:
        """Close in a way that lets the peer read what was sent, even if it still sends."""
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        self._call_later(LINGER, lambda: self._remove(connection))

    def _lost(self, connection: Connection, reason: str) -> None:
        self._ended(connection, Disconnect(Status.IO, reason, True))
        self._remove(connection)

    def _ended(self, connection: Connection, reason: Disconnect) -> None:
        peer, connection.peer = connection.peer, None
        if peer is not None and not peer.healthcheck:
            self._agent.disconnected(peer, reason)

    def _remove(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        if connection.events:
            self._poller.unregister(connection.sock.fileno())
        connection.sock.close()
        if self._draining and not self._connections:
            self._running = False

    def _accept(self, listener: socket.socket, hand_out: Callable[..., object]) -> None:
        for _ in range(64):
            try:
                sock, sockaddr = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error("cannot accept connections: %s", error.strerror)
                self.forget_listener(listener)
                self._call_later(0.5, lambda: self._accept_again(listener, hand_out))
                return
            try:
                hand_out(sock, sockaddr)
            except Exception:
                logger.exception("connection could not be set up")
                sock.close()

    def _accept_again(self, listener: socket.socket, hand_out: Callable[..., object]) -> None:
        if listener.fileno() >= 0:
            self.accept_from(listener, hand_out)

    def _drain(self, timeout: float) -> None:
        self._draining = True
        for connection in list(self._connections):
            # What has arrived before now is in hand: take it, then say goodbye.
            self._ready(connection, READ)
            if connection in self._connections and not connection.protocol.in_flight:
                self._say_goodbye(connection)
        if not self._connections:
            self._running = False
        self._call_later(timeout, self._stop)

    def _say_goodbye(self, connection: Connection) -> None:
        if connection.protocol.should_close:
            return
        connection.protocol.disconnect()
        self._ended(connection, Disconnect(Status.NORMAL, "the agent stops", False))
        self._ready(connection, WRITE)

    def _stop(self) -> None:
        self._running = False

    def _close(self) -> None:
        for connection in list(self._connections):
            self._ended(connection, Disconnect(Status.NORMAL, "the agent stopped", False))
            self._remove(connection)
        self._poller.close()
        self._waker.close()
        self._wakened.close()

    def _run_calls(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        for _ in range(len(self._calls)):
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                logger.exception("call in the loop failed")

    def _call_later(self, delay: float, call: Callable[[], object]) -> None:
        entry = (time.monotonic() + delay, next(self._timer_ids), call)
        heapq.heappush(self._timers, entry)

    def _timeout(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _log_hello(self, peer: Peer) -> None:
        if peer.healthcheck:
            logger.debug("health check from %s", peer.address)
        else:
            logger.info(
                "connection from %s: SPOP %s, max-frame-size %d, %s, engine %r",
                peer.address,
                peer.version,
                peer.max_frame_size,
                ",".join(sorted(peer.capabilities)) or "no capabilities",
                peer.engine_id,
            )

    def _log_disconnect(self, connection: Connection, reason: Disconnect) -> None:
        address = connection.peer.address if connection.peer else "unknown peer"
        if reason.remote:
            logger.info("disconnected by %s: %d %r", address, reason.code, reason.message)
        else:
            logger.warning("disconnected %s: %d %r", address, reason.code, reason.message)
