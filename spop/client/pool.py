"""The connections of one engine, and the calls that use them, without I/O.

A `Pool` chooses the connection of each NOTIFY and finds the call of each ACK. Connections are
`Link`s, calls are `Exchange`s. The pool decides when to open a connection, to which server, and
when to close one. A `Driver` does it and reports back. The pool has no lock and no clock: its
caller holds the lock and passes the time.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spop.client.dial import Endpoint
from spop.client.servers import Servers
from spop.client.settings import Settings
from spop.connection import UNORDERED, Disconnect, EngineConnection, EngineEvent
from spop.constants import Status
from spop.errors import DisconnectedError, LocalProtocolError, SpopError, UnreachableError
from spop.frames import Ack, Message, Peer
from spop.values import Buffer, Value

FRAME_ID = 1
"""The frame-id of every NOTIFY. Each NOTIFY has its own stream-id, which is never used again."""

MessageOrMessages = Message | Iterable[Message]
"""The messages of one NOTIFY."""


class Exchange:
    """A call: messages that wait for a connection, then for their ACK.

    Attributes:
        ids: stream-id and frame-id of its NOTIFY. No other call has the same.
        messages: the messages to send; None if the call only waits for a connection.
        link: the connection that took it; None while it is queued.
        sent_as: stream-id and frame-id in its frame. They are `ids`, unless each connection counts.
        sent_at: the time at which the connection took it.
        acked_at: the time at which its ACK was received.
        deadline: the time at which its caller gives up.
        done: there is an ACK or an error, or nobody waits any longer.
        waiter: the driver's; it wakes the caller with it.
    """

    __slots__ = (
        "ack", "acked_at", "deadline", "done", "error", "ids", "link", "messages", "sent_as",
        "sent_at", "waiter",
    )  # fmt: skip

    def __init__(self, ids: tuple[int, int], messages: Iterable[Message] | None) -> None:
        self.ids: tuple[int, int] = ids
        self.messages: Iterable[Message] | None = messages
        self.link: Link | None = None
        self.sent_as: tuple[int, int] = ids
        self.sent_at: float = 0.0
        self.acked_at: float = 0.0
        self.deadline: float = 0.0
        self.done: bool = False
        self.ack: Ack | None = None
        self.error: Exception | None = None
        self.waiter: Any = None

    def result(self) -> Ack:
        """The ACK. Raises the error if there is no ACK."""
        if self.ack is None:
            raise self.error or LocalProtocolError("the call was given up")
        return self.ack


@dataclass(slots=True, eq=False)
class Link:
    """A connection of the pool.

    Attributes:
        transport: the driver's; it sends and receives the bytes.
        capacity: number of NOTIFY frames that may wait for their ACKs.
        starting: exchanges of which no byte has gone to the kernel.
        blocked: the kernel takes no more bytes now.
        used_at: the time at which it last took a call.
        exchanges: the calls that wait for an ACK, by their `sent_as`. All connections share it,
            unless each counts its stream-ids.
        last_id: the last stream-id, if the connection counts them.
    """

    endpoint: Endpoint
    protocol: EngineConnection
    transport: Any
    capacity: int = 0
    starting: list[Exchange] = field(default_factory=list)
    blocked: bool = False
    unsent: Buffer = b""
    used_at: float = 0.0
    exchanges: dict[tuple[int, int], Exchange] = field(default_factory=dict)
    last_id: int = -1


def in_notify(message: str | MessageOrMessages, args: dict[str, Value]) -> Iterable[Message]:
    """The messages of a NOTIFY, from the arguments of a call.

    Raises:
        TypeError: there are arguments by name beside a `Message`, which has its own.
    """
    if isinstance(message, str):
        return [Message(message, args)]
    if args:
        raise TypeError("arguments by name go with a message's name, not with Message objects")
    return [message] if isinstance(message, Message) else message


class Driver(NamedTuple):
    """The functions of the side that does the I/O. Only `send` may call the pool before it
    returns, if it finds the link lost.

    Attributes:
        open: connect and exchange HELLO; then call `Pool.opened` or `Pool.opening_failed`. It raises a
            SpopError if it can't begin.
        send: send the bytes of the link's protocol; clear ``link.starting`` when some were sent.
        close: send DISCONNECT, wait for the agent's unless it came before, and close.
        wake: wake the caller of an exchange that is done.
        schedule: call `Pool.tick` at that time or before.
    """

    open: Callable[[Endpoint], object]
    send: Callable[[Link], object]
    close: Callable[[Link], object]
    wake: Callable[[Exchange], object]
    schedule: Callable[[float], object]


class Pool:
    """The connections of one engine and the calls that go over them.

    Args:
        servers: where connections go.

    Attributes:
        links: the open connections.
        openings: number of connections that are being opened.
        closed: no more calls are taken.
        peer: what the last HELLO agreed on; None before the first.
    """

    def __init__(self, driver: Driver, servers: Servers[Any], limits: Settings) -> None:
        self._driver = driver
        self._send, self._wake = driver.send, driver.wake  # They are used for each call.
        self._servers = servers
        self._limits = limits
        self._numbered = limits.numbered
        self._rate = Rate(limits.maxconnrate)
        self.links: deque[Link] = deque()
        self.openings: int = 0
        self._queue: deque[Exchange] = deque()
        self._exchanges: dict[tuple[int, int], Exchange] = {}
        self._stream_ids = itertools.count(1)
        self.closed: bool = False
        self.peer: Peer | None = None

    @property
    def queued(self) -> int:
        """Number of calls that wait for a connection."""
        return len(self._queue)

    @property
    def waiting(self) -> int:
        """Number of NOTIFY frames that wait for their ACK."""
        if self._numbered:
            return sum(len(link.exchanges) for link in self.links)
        return len(self._exchanges)

    @property
    def pending(self) -> Iterable[Iterable[Exchange]]:
        """The calls that wait for a connection, and those that wait for their ACK, each in the
        order in which they began."""
        yield self._queue
        if self._numbered:
            for link in self.links:
                yield link.exchanges.values()
        else:
            yield self._exchanges.values()

    # --- calls ---

    def exchange(self, messages: Iterable[Message] | None) -> Exchange:
        """A new call, for `submit` or `call`."""
        return Exchange((next(self._stream_ids), FRAME_ID), messages)

    def submit(self, exchange: Exchange) -> None:
        """Queue a call; `pump` then starts it.

        Raises:
            LocalProtocolError: the client is closed, or made for health checks only.
        """
        if self.closed:
            raise LocalProtocolError("the client is not connected: it was closed")
        if exchange.messages is None and self.links:
            exchange.done = True
            return
        if exchange.messages is not None and self.peer is not None and self.peer.healthcheck:
            raise LocalProtocolError("no NOTIFY in a health check")
        self._queue.append(exchange)

    def call(self, exchange: Exchange, now: float) -> None:
        """`submit` and `pump` for one call. It skips the queue if a connection takes it now."""
        if self._queue or exchange.messages is None or (link := self._link_with_room()) is None:
            self.submit(exchange)
            self.pump(now)
        else:
            self._start(exchange, link, now)
            self._send(link)

    def pump(self, now: float) -> None:
        """Start queued calls on connections with room, and open connections for the others."""
        queue = self._queue
        used: dict[Link, None] = {}
        while queue and (link := self._link_with_room()) is not None:
            self._start(queue[0], link, now)
            queue.popleft()
            used[link] = None
        for link in used:
            self._send(link)
        if queue or len(self.links) + self.openings < self._limits.minimum:
            self._grow(now)

    def abandon(self, exchange: Exchange) -> None:
        """Nobody waits for a call any more. Its ACK is dropped. Without pipelining its
        connection takes no other call before that ACK."""
        if exchange.done:
            return
        exchange.done = True
        if exchange.link is None:
            with contextlib.suppress(ValueError):  # A signal came before it was queued.
                self._queue.remove(exchange)
        elif exchange.link.protocol.pipelined:
            exchange.link.protocol.waiting.discard(exchange.sent_as)
            exchange.link.exchanges.pop(exchange.sent_as, None)

    def _link_with_room(self) -> Link | None:
        """The next connection that takes a call, in turn; None if all are full.

        Calls of one turn of an event loop go over the same connection, with one call of the kernel.
        HAProxy's messages do so too.
        """
        links = self.links
        if (
            links
            and (last := links[-1]).starting
            and not last.blocked
            and len(last.protocol.waiting) < last.capacity
        ):
            return last
        for link in links:
            if len(link.protocol.waiting) < link.capacity and not link.blocked:
                while links[-1] is not link:
                    links.rotate(-1)
                return link
        return None

    def _start(self, exchange: Exchange, link: Link, now: float) -> None:
        if exchange.messages is None:
            self._finish(exchange)
            return
        ids = exchange.ids
        if self._numbered:
            exchange.sent_as = ids = link.last_id + 2, FRAME_ID
        exchange.link = link
        link.exchanges[ids] = exchange
        try:
            link.protocol.notify(ids[0], ids[1], exchange.messages)
        except Exception as error:  # It can't be encoded: the caller's mistake.
            exchange.link = None
            del link.exchanges[ids]
            self._finish(exchange, error=error)
            return
        if self._numbered:
            link.last_id = ids[0]
        exchange.sent_at = link.used_at = now
        link.starting.append(exchange)

    def _finish(self, exchange: Exchange, error: Exception | None = None) -> None:
        """End a call that no ACK ends."""
        if not exchange.done:
            exchange.error, exchange.done = error, True
            self._wake(exchange)

    # --- connections ---

    def received(self, link: Link, events: Sequence[EngineEvent], now: float) -> None:
        """Take the events that a connection's protocol has made of received bytes."""
        for event in events:
            if type(event) is Ack:
                exchange = link.exchanges.get((event.stream_id, event.frame_id))
                if exchange is None or (exchange.link is not link and not self._crossed(exchange)):
                    continue
                del link.exchanges[exchange.sent_as]
                if not exchange.done:
                    exchange.ack, exchange.acked_at, exchange.done = event, now, True
                    self._wake(exchange)
            elif type(event) is Disconnect:
                self.lost(link, event.message, event.code, now)
                return
        if self._queue:
            self.pump(now)

    def _crossed(self, exchange: Exchange) -> bool:
        """Whether an ACK may come on another connection of the engine: with async in force
        (section 3.2.1)."""
        if exchange.link is None or not exchange.link.protocol.asynchronous:
            return False
        exchange.link.protocol.waiting.discard(exchange.sent_as)
        return True

    def lost(self, link: Link, message: str, code: int, now: float) -> None:
        """A connection has ended. Calls that were sent on it fail; the others go to another
        connection."""
        if link not in self.links:
            return
        for exchange in reversed(link.starting):
            if not exchange.done and exchange.link is link:
                self._queue.appendleft(exchange)
                exchange.link, exchange.sent_at = None, 0.0
                link.exchanges.pop(exchange.sent_as, None)
        link.starting.clear()
        for sent in [each for each in link.exchanges.values() if each.link is link]:
            self._fail(sent, link, message, code)
        self.links.remove(link)
        self._servers.closed(link.endpoint)
        self._driver.close(link)
        self.pump(now)

    def _fail(self, exchange: Exchange, link: Link, message: str, code: int) -> None:
        error = DisconnectedError(f"{link.endpoint.address}: {message}", code)
        self._finish(exchange, error=error)
        link.exchanges.pop(exchange.sent_as, None)

    def recover(self, message: str, now: float, *, lose_links: bool) -> None:
        """Put in order what an exception has left in the middle of a step.

        Each step leaves a call that is not done in the queue, or among those that were sent. A
        connection of which bytes may be lost can only be closed.
        """
        self._queue = deque(each for each in self._queue if each.link is None)
        for link in list(self.links) if lose_links else ():
            self.lost(link, message, Status.IO, now)
        if not self.closed:
            self.pump(now)

    def opened(self, link: Link, now: float) -> None:
        """`Driver.open` has opened a connection."""
        self._opening_ended()
        self._servers.opened(link.endpoint)
        link.used_at = now
        link.capacity = self._capacity(link.protocol)
        if not self._numbered:
            link.exchanges = self._exchanges
        self.links.append(link)
        self.peer = link.protocol.peer
        if self.closed:
            self._leave(link)
            return
        for exchange in [waiting for waiting in self._queue if waiting.messages is None]:
            self._queue.remove(exchange)
            self._finish(exchange)
        self.pump(now)
        self._schedule_idle(now)

    def opening_failed(self, endpoint: Endpoint, error: SpopError, now: float) -> None:
        """`Driver.open` has failed. Calls fail too, if no other connection may come."""
        self._opening_ended()
        self._servers.failed(endpoint, now)
        if self._alone and self._servers.next(now) is None:
            self._fail_queue(error)
        if not self.closed:
            self.pump(now)

    def _opening_ended(self) -> None:
        # A signal may have come between its start and its count.
        self.openings = max(0, self.openings - 1)

    @property
    def idle(self) -> int:
        """Number of connections that can take a call now."""
        return sum(len(link.protocol.waiting) < link.capacity for link in self.links)

    def _capacity(self, protocol: EngineConnection) -> int:
        if protocol.peer is not None and protocol.peer.healthcheck:
            return 0
        return self._limits.max_waiting_frames if protocol.pipelined else 1

    def tick(self, now: float) -> None:
        """Do what was scheduled: close idle connections, open those that had to wait."""
        if self.closed:
            return
        for link in list(self.links):
            if len(self.links) > self._limits.minimum and self._idle(link, now):
                self._leave(link)
        self.pump(now)
        self._schedule_idle(now)

    def close(self) -> None:
        """Fail all calls and disconnect all connections."""
        self.closed = True
        error = LocalProtocolError("the client was closed")
        self._fail_queue(error)
        for link in list(self.links):
            self._leave(link, error)

    def give_up(self, error: SpopError) -> None:
        """Fail all calls. Wake nobody, and leave the connections as they are."""
        sent = [exchange for link in self.links for exchange in link.exchanges.values()]
        for exchange in (*self._queue, *sent):
            exchange.done, exchange.error = True, copy.copy(error)

    def _leave(self, link: Link, error: SpopError | None = None) -> None:
        self.links.remove(link)
        self._servers.closed(link.endpoint)
        for ids in link.protocol.waiting:
            if (exchange := link.exchanges.pop(ids, None)) is not None:
                self._finish(exchange, error=copy.copy(error))
        link.protocol.disconnect()
        self._driver.close(link)

    def _fail_queue(self, error: SpopError) -> None:
        while self._queue:
            self._finish(self._queue.popleft(), error=copy.copy(error))

    def _idle(self, link: Link, now: float) -> bool:
        """It took no call for the idle timeout, and none waits for its ACK."""
        idle_timeout = self._limits.idle_timeout
        if idle_timeout is None or now < link.used_at + idle_timeout:
            return False
        waiting = (link.exchanges.get(ids) for ids in link.protocol.waiting)
        return all(exchange is None or exchange.done for exchange in waiting)

    def _schedule_idle(self, now: float) -> None:
        idle_timeout = self._limits.idle_timeout
        if idle_timeout is not None and len(self.links) > self._limits.minimum:
            due = min(link.used_at for link in self.links) + idle_timeout
            self._driver.schedule(due if due > now else now + idle_timeout)

    @property
    def _alone(self) -> bool:
        """There is no connection, and none is being opened."""
        return not self.links and not self.openings

    def _grow(self, now: float) -> None:
        """Open connections while calls wait for one, as the limits allow."""
        while self._wants_connection():
            allowed_at = self._rate.next(now)
            if allowed_at > now:
                if self._alone and not self._limits.waits_for_rate:
                    self._fail_queue(UnreachableError("maxconnrate allows no connection now"))
                else:
                    self._driver.schedule(allowed_at)
                return
            endpoint = self._servers.next(now)
            if endpoint is None and self._queue and self._alone:
                endpoint = self._servers.soonest()
                if endpoint is None:
                    self._fail_queue(UnreachableError("there is no server to connect to"))
                    return
            if endpoint is None:
                self._driver.schedule(self._servers.retry_at(now))
                return
            self._rate.count(now)
            try:
                self._driver.open(endpoint)
            except SpopError as error:
                self._servers.failed(endpoint, now)
                if self._alone:
                    self._fail_queue(error)
                self._driver.schedule(self._servers.retry_at(now))
                return
            self.openings += 1

    def _wants_connection(self) -> bool:
        """Whether queued calls need one more connection. Before the first HELLO, agents are
        assumed to pipeline."""
        limits, count = self._limits, len(self.links) + self.openings
        if count < limits.minimum:
            return True
        if count >= limits.maximum:
            return False
        each = limits.max_waiting_frames
        if self.peer is not None and self.peer.capabilities.isdisjoint(UNORDERED):
            each = 1
        return len(self._queue) > self.openings * each


class Rate:
    """At most so many events in a sliding second."""

    def __init__(self, per_second: int | None) -> None:
        """None or 0: there is no limit."""
        self._times: deque[float] = deque(maxlen=per_second or 0)

    def next(self, now: float) -> float:
        """The time at which one more is allowed: `now` or later."""
        times = self._times
        return max(now, times[0] + 1.0) if times and len(times) == times.maxlen else now

    def count(self, now: float) -> None:
        self._times.append(now)
