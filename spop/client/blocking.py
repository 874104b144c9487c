"""`Client`: calls that block, from any number of threads.

No thread only reads. Of the callers that wait, one leads: it reads all connections, gives the
others their ACKs, and passes the lead on when its own ACK is there. So a single caller sends, waits
and receives without a switch of threads.

Each caller that is woken wakes the next one, as all of them together would only wait for the
interpreter. Their next frames are sent when the last one was woken: one send for all. Connections
are opened and closed in threads of their own, so that no call waits for that.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any, Self

from spop.client.core import LINGER, ClientCore
from spop.client.dial import Dialogue, Endpoint, connect
from spop.client.pool import Driver, Exchange, Link, MessageOrMessages, in_notify
from spop.constants import Status
from spop.errors import (
    LocalProtocolError,
    SpopError,
    SpopTimeoutError,
    UnreachableError,
    reason,
)
from spop.frames import Ack, Message, Peer
from spop.poller import READ, WRITE, Poller, Ready, new_poller
from spop.values import Value

RECV_SIZE = 256 * 1024
QUIET = 0.01
"""Seconds without received bytes after which a caller reads before it sends. So it finds the
connections that have ended."""
LONGEST_WAIT = 0.5
"""Seconds after which the leader returns to Python, for a signal that came just before it began
to wait."""
LOSES_LOCKS = sys.version_info[:2] == (3, 14)
"""In CPython 3.14 a signal's handler may raise between `__enter__` of a lock and the block, which
leaves the lock acquired (gh-148874; mended in 3.15)."""
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Client(ClientCore):
    """A client whose calls block, for any number of threads.

    It connects at the first call or at the beginning of a ``with`` statement. It takes the address
    of `spop.client.core.ClientCore` and the settings of `spop.client.settings.Settings`, as
    `AsyncClient` does.
    """

    def _reset(self) -> None:
        super()._reset()
        self._lock = threading.RLock()
        self._poller: Poller
        self._buffer = bytearray(RECV_SIZE)
        self._leader: Exchange | None = None
        self._leader_sleeps = False
        self._heir: Exchange | None = None
        self._to_send: dict[Link, None] = {}
        self._heard_at = 0.0
        self._followers: dict[Exchange, threading.Lock] = {}
        self._waking: dict[Exchange, threading.Lock] = {}
        self._batons: dict[Exchange, threading.Lock] = {}
        self._moves_bytes = False
        self._sent: dict[int, Exchange] = {}
        self._partings: dict[Link, threading.Thread] = {}
        self._started = False
        self._release: Callable[[], object] = bool

    def _driver(self) -> Driver:
        return Driver(self._open, self._flush, self._part, self._wake, self._schedule)

    def _close_sockets(self) -> None:
        for link in (*self.pool.links, *self._partings):
            link.transport.close()
        self._release()
        self._release_all()  # A signal's handler forked while it waited.

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self._poller = new_poller()
                release = weakref.finalize(self, self._poller.close)
                release.atexit = False  # Daemon threads may ask until the process ends.
                self._release = release
                self._started = True

    # --- for callers ---

    def connect(self) -> Peer:
        """Open a connection unless there is one. Returns what its HELLO agreed on.

        Raises:
            RefusedError, UnreachableError: the agent can't be reached.
            SpopTimeoutError: no HELLO came in time.
            DisconnectedError: the agent refused, with its status and message.
        """
        exchange = self._begin(None)
        self.wait_for(exchange, monotonic() + self._timeout)
        if exchange.error is not None:
            raise exchange.error
        return self.peer

    def notify(self, message: str | MessageOrMessages, /, **args: Value) -> Ack:
        """Send one message with arguments by name, or several in one NOTIFY; wait for the ACK.

        Raises:
            SpopTimeoutError: no ACK came in time.
            RefusedError, UnreachableError: the agent can't be reached.
            DisconnectedError: the agent refused or ended the connection. It may have handled the
                messages. They are not sent again.
            FrameTooBigError: the messages fit no frame and the agent takes no fragments.
            LocalProtocolError: the client is closed.
            TypeError, OverflowError, ValueError: an argument can't be encoded.
        """
        exchange = self.pool.exchange(in_notify(message, args))
        deadline = monotonic() + self._timeout
        self.submit(exchange, deadline)
        return self.wait_for(exchange, deadline).result()

    def notify_many(self, notifies: Iterable[MessageOrMessages], /) -> list[Ack]:
        """Send many NOTIFY frames together, each of a message or of several; wait for all ACKs.

        Returns:
            The ACKs in the order of the NOTIFY frames.

        Raises:
            SpopError: the first error, as in `notify`. The other answers are lost.
        """
        deadline = monotonic() + self._timeout
        batch = [in_notify(messages, {}) for messages in notifies]
        exchanges = [self.pool.exchange(messages) for messages in batch]
        try:
            self._hear()
            with self._lock:
                for exchange in exchanges:
                    self.pool.submit(exchange)
                self._moves_bytes = True
                self.pool.pump(monotonic())
                self._moves_bytes = False
            return self._all_acks(exchanges, deadline)
        except SpopError:
            raise
        except BaseException:
            self._recover(*exchanges)
            raise

    def _all_acks(self, exchanges: list[Exchange], deadline: float) -> list[Ack]:
        try:
            return [self.wait_for(exchange, deadline).result() for exchange in exchanges]
        except SpopError:
            with self._lock:
                for exchange in exchanges:
                    self.pool.abandon(exchange)
            raise

    def send(self, messages: Iterable[Message]) -> int:
        """Send a NOTIFY without waiting. Returns its number; `wait` must follow.

        The number is the stream-id, unless `haproxy_version` lets connections count them.
        """
        exchange = self._begin(messages)
        number = exchange.ids[0]
        self._sent[number] = exchange
        return number

    def wait(self, number: int) -> Ack:
        """Wait for the ACK of a NOTIFY of `send`. Raises as `notify` does."""
        exchange = self._sent.pop(number, None)
        if exchange is None:
            raise LocalProtocolError(f"no NOTIFY of stream {number} waits for an ACK")
        return self.wait_for(exchange, monotonic() + self._timeout).result()

    def close(self) -> None:
        """Send DISCONNECT on all connections and close them. Calls in progress fail.

        Agents have a second to answer.
        """
        with self._lock:
            if self.pool.closed:
                return
            self.pool.close()
            if self._timer is not None:
                self._timer.cancel()
            partings = list(self._partings.values())
            if self._leader is None:
                self._release()
        for thread in partings:
            thread.join()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- for engines ---

    def submit(self, exchange: Exchange, deadline: float = 0.0) -> None:
        """Begin a call; `wait_for` must follow.

        With the call's deadline, a caller that is alone waits here: it takes the lock once less.

        Raises:
            SpopTimeoutError: it waited here, and the deadline has passed.
        """
        now = monotonic()
        try:
            if now > self._heard_at + QUIET:
                self._hear()
            with self._lock:
                self._moves_bytes = True
                self.pool.call(exchange, now)
                self._moves_bytes = False
                leads = (
                    self._leader is None
                    and self._heir is None
                    and not self._to_send
                    and not exchange.done
                    and deadline > now
                )
                if leads:
                    self._leader, self._leader_sleeps = exchange, True
            if leads:
                self._lead(exchange, deadline - now)
                if not exchange.done or self._heir is exchange:
                    # Here, as nobody would lead if a signal's handler raised in between.
                    self.wait_for(exchange, deadline)
        except SpopTimeoutError:
            raise
        except LocalProtocolError:
            self._moves_bytes = False
            raise
        except BaseException:
            self._recover(exchange)
            raise

    def wait_for(self, exchange: Exchange, deadline: float) -> Exchange:
        """Wait until a call is done. `Exchange.result` gives its ACK.

        Raises:
            SpopTimeoutError: the deadline, a time of `time.monotonic`, has passed.
        """
        try:
            while not exchange.done:
                self._wait(exchange, deadline)
            if self._heir is exchange:
                self._leave(exchange)
        except SpopTimeoutError:
            raise
        except BaseException:
            self._recover(exchange)
            raise
        return exchange

    def pump(self) -> None:
        """Start queued calls, as servers have changed."""
        with self._lock:
            if self._started and not self.pool.closed:
                self.pool.pump(monotonic())

    # --- waiting ---

    def _hear(self) -> None:
        """Read what came while no call waited, as a connection that ended takes no call."""
        if not self._started:
            self._start()
        if self._leader is None and not self.pool.closed:
            self._heard_at = monotonic()
            # Without the lock, a leader that begins to wait now could lose a wake-up.
            with contextlib.suppress(ValueError), self._lock:  # Another thread may close it.
                if self._leader is None:
                    self._handle(self._poller.poll(0))

    def _wait(self, exchange: Exchange, deadline: float) -> None:
        """Lead or follow until the call is done, the lead changes, or time is up."""
        with self._lock:
            if exchange.done:
                return
            if self._to_send:
                self._send_all()
            baton = None
            heir_leads = self._heir not in (None, exchange) and _may_be_interrupted()
            if self._leader is None and not heir_leads:
                self._leader, self._leader_sleeps, self._heir = exchange, True, None
            else:
                baton = self._batons[exchange] = threading.Lock()
                baton.acquire()
                self._followers[exchange] = baton
        remaining = deadline - monotonic()
        if baton is None:
            self._lead(exchange, remaining)
        else:
            self._follow(exchange, baton, remaining)
        if remaining <= 0 and not exchange.done:
            error = self._timed_out(exchange)
            self._leave(exchange)
            raise error

    def _follow(self, exchange: Exchange, baton: threading.Lock, timeout: float) -> None:
        try:
            if timeout > 0:
                baton.acquire(timeout=timeout)
        finally:
            with self._lock:
                self._forget(exchange)
                self._wake_next()
                self._send_all()

    def _lead(self, exchange: Exchange, timeout: float) -> None:
        ready: list[tuple[Ready, int]] = []
        try:
            if timeout > 0:
                ready = self._poller.poll(min(timeout, LONGEST_WAIT))
        finally:
            with self._lock:
                self._leader_sleeps = False
                leaves = bool(self._followers) and _may_be_interrupted()
                if not leaves:
                    self._handle(ready)
                self._leader = None
                if not exchange.done and not leaves:
                    self._heir = exchange
                elif self._followers or self.pool.closed:
                    self._pass_lead_on()

    def _pass_lead_on(self) -> None:
        """Make the latest caller the leader, as it probably waits the longest."""
        if self._leader is not None or self._heir is not None:
            return
        if self._followers:
            self._heir, baton = self._followers.popitem()
            self._wake_in_turn(self._heir, baton)
        elif self.pool.closed:
            self._release()

    def _forget(self, exchange: Exchange) -> None:
        self._followers.pop(exchange, None)
        self._waking.pop(exchange, None)
        self._batons.pop(exchange, None)

    def _leave(self, exchange: Exchange) -> None:
        """A caller neither leads nor follows any more."""
        with self._lock:
            self.pool.abandon(exchange)
            if self._leader is exchange:
                self._leader = None
            if self._heir is exchange:
                self._heir = None
            self._forget(exchange)
            self._pass_lead_on()
            self._wake_next()
            self._send_all()

    def _recover(self, *exchanges: Exchange) -> None:
        """A signal's handler raised, anywhere in a step of the caller of these.

        The step may have forgotten a follower that it was about to wake, or an heir. So all that
        wait are woken and find out for themselves who leads. If it was moving bytes, some may be
        lost between a socket and its protocol, and the connections are closed.
        """
        if LOSES_LOCKS:
            with contextlib.suppress(RuntimeError):  # This thread does not own it.
                self._lock.release()
        with self._lock:
            moved, self._moves_bytes = self._moves_bytes, False
            self._heir = None
            self.pool.recover("interrupted by a signal", monotonic(), lose_links=moved)
            for exchange in exchanges:
                self._leave(exchange)
            self._release_all()

    def _release_all(self) -> None:
        for baton in self._batons.values():
            if baton.locked():
                baton.release()

    def _wake(self, exchange: Exchange) -> None:
        baton = self._followers.pop(exchange, None)
        if baton is not None:
            self._wake_in_turn(exchange, baton)
        elif exchange is self._leader and self._leader_sleeps:
            self._poller.wake()

    def _wake_in_turn(self, exchange: Exchange, baton: threading.Lock) -> None:
        self._waking[exchange] = baton
        self._wake_next()

    def _wake_next(self) -> None:
        """Wake the first caller in line, unless it was woken already."""
        baton = next(iter(self._waking.values()), None)
        if baton is not None and baton.locked():
            baton.release()

    # --- bytes ---

    def _handle(self, ready: list[tuple[Ready, int]]) -> None:
        self._moves_bytes = True
        for handle, events in ready:
            handle(events)
        self._moves_bytes = False

    def _ready(self, link: Link, events: int) -> None:
        if link not in self.pool.links:
            return
        try:
            if events & WRITE:
                self._send(link)
                self.pool.pump(monotonic())
            if events & READ:
                self._receive(link)
        except OSError as error:
            self.pool.lost(link, reason(error), Status.IO, monotonic())

    def _receive(self, link: Link) -> None:
        sock, protocol = link.transport, link.protocol
        more = True
        while more:
            try:
                size = sock.recv_into(self._buffer)
            except WOULD_BLOCK:
                return
            events = protocol.receive_data(self._buffer, size) if size else protocol.receive_eof()
            more = size > 0 and link.endpoint.tls is not None and sock.pending() > 0
            self._heard_at = now = monotonic()
            self.pool.received(link, events, now)

    def _flush(self, link: Link) -> None:
        if self._waking:
            self._to_send[link] = None
        else:
            self._send(link)

    def _send_all(self) -> None:
        """Send the frames that were kept until all callers in line were woken."""
        if self._to_send and not self._waking:
            self._moves_bytes = True
            links, self._to_send = self._to_send, {}
            for link in links:
                if link in self.pool.links:
                    self._send(link)
            self._moves_bytes = False

    def _send(self, link: Link) -> None:
        data = link.unsent or link.protocol.data_to_send()
        try:
            sent = link.transport.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self.pool.lost(link, reason(error), Status.IO, monotonic())
            return
        if sent:
            link.starting.clear()
        link.unsent = memoryview(data)[sent:] if sent < len(data) else b""
        if link.blocked is not bool(link.unsent):
            link.blocked = not link.blocked
            events = READ | WRITE if link.blocked else READ
            self._poller.modify(link.transport.fileno(), events)

    # --- connections ---

    def _spawn(self, target: Callable[..., object], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name="spop-client", daemon=True)
        thread.start()
        return thread

    def _open(self, endpoint: Endpoint) -> None:
        try:
            self._spawn(self._connect, endpoint)
        except RuntimeError as error:  # The system has no thread for it.
            raise UnreachableError(f"{endpoint.address}: {error}") from None

    def _connect(self, endpoint: Endpoint) -> None:
        """Open a connection, in a thread of its own."""
        protocol = self._protocol()
        try:
            sock = connect(endpoint, protocol, self._connect_timeout, self._hello_timeout).sock
        except Exception as error:
            with self._lock:
                failure = self._unreachable(endpoint, error)
                self.pool.opening_failed(endpoint, failure, monotonic())
            return
        sock.setblocking(False)
        link = Link(endpoint, protocol, sock)
        with self._lock:
            if not self.pool.closed:
                self._poller.register(sock.fileno(), READ, partial(self._ready, link))
            self.pool.opened(link, monotonic())

    def _part(self, link: Link) -> None:
        sock = link.transport
        with contextlib.suppress(KeyError):  # The client was closed meanwhile.
            self._poller.unregister(sock.fileno())
        if not link.protocol.should_close:
            with contextlib.suppress(RuntimeError):  # The system has no thread for it.
                self._partings[link] = self._spawn(self._say_goodbye, link)
                return
            link.protocol.disconnect()
        # No DISCONNECT of the agent is to be waited for.
        with contextlib.suppress(OSError):
            sock.send(link.protocol.data_to_send())
        sock.close()

    def _say_goodbye(self, link: Link) -> None:
        """Send DISCONNECT and wait for the agent's, in a thread of its own."""
        with link.transport as sock:
            Dialogue(sock, link.protocol).say_goodbye(LINGER, link.unsent)
        with self._lock:
            self._partings.pop(link, None)

    # --- time ---

    def _start_timer(self, delay: float) -> threading.Timer:
        timer = threading.Timer(delay, self._tick)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # The system has no thread for it: what is scheduled next tries again.
            self._timer_at = float("inf")
        return timer

    def _tick(self) -> None:
        with self._lock:
            super()._tick()


def _may_be_interrupted() -> bool:
    """Whether signals' handlers run in this thread. It leads, but what comes is for others to read.

    A handler that raised between a `recv` and the end of its handling would lose their answers.
    """
    return threading.current_thread() is threading.main_thread()
