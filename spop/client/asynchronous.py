"""`AsyncClient`: calls that are awaited, from any number of tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, Self, cast

from spop.client.core import LINGER, ClientCore
from spop.client.dial import Endpoint, hear_hello
from spop.client.forked import close_in_child
from spop.client.pool import Driver, Exchange, Link, MessageOrMessages, in_notify
from spop.connection import EngineConnection, EngineEvent
from spop.constants import Status
from spop.errors import DisconnectedError, reason
from spop.frames import Ack, Peer
from spop.values import Value

RECV_SIZE = 256 * 1024


class AsyncClient(ClientCore):
    """A client whose calls are awaited, by any number of tasks of one event loop.

    It connects at the first call or at the beginning of an ``async with`` statement. Once its event
    loop is closed, another one may use it, with new connections. It takes the address of
    `spop.client.core.ClientCore` and the settings of `spop.client.settings.Settings`, as `Client`
    does.
    """

    def _reset(self) -> None:
        super()._reset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_transports: set[_Transport] = set()
        self._to_send: dict[Link, None] = {}
        # All transports share it: bytes are decoded at once.
        self.buffer: bytearray = bytearray(RECV_SIZE)
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = float("inf")

    def bind(self) -> None:
        """Belong to the running event loop, with new connections if the last one is closed.

        Raises:
            RuntimeError: it belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError("a client has one event loop, and this is another")
            self._drop_all("the event loop of this call is closed")
        self._loop = loop

    def _close_sockets(self) -> None:
        for transport in self._open_transports:
            close_in_child(transport.transport.get_extra_info("socket").fileno())

    def _driver(self) -> Driver:
        return Driver(self._open, self._flush, self._part, self._wake, self._schedule)

    # --- for callers ---

    async def connect(self) -> Peer:
        """Open a connection unless there is one, as `Client.connect` does."""
        exchange = self._begin(None)
        await self.wait_for(exchange, monotonic() + self._timeout)
        if exchange.error is not None:
            raise exchange.error
        return self.peer

    async def notify(self, message: str | MessageOrMessages, /, **args: Value) -> Ack:
        """Send one message with arguments by name, or several in one NOTIFY; await the ACK.

        Raises as `Client.notify` does. The ACK of a cancelled call is dropped.
        """
        deadline = monotonic() + self._timeout
        exchange = self._begin(in_notify(message, args))
        return (await self.wait_for(exchange, deadline)).result()

    async def notify_many(self, notifies: Iterable[MessageOrMessages], /) -> list[Ack]:
        """Send many NOTIFY frames together and await all ACKs, as `Client.notify_many` does."""
        self.bind()
        deadline = monotonic() + self._timeout
        batch = [in_notify(messages, {}) for messages in notifies]
        exchanges = [self.pool.exchange(messages) for messages in batch]
        for exchange in exchanges:
            self.pool.submit(exchange)
        self.pool.pump(monotonic())
        try:
            return [(await self.wait_for(exchange, deadline)).result() for exchange in exchanges]
        finally:
            for exchange in exchanges:
                self.pool.abandon(exchange)

    async def close(self) -> None:
        """Send DISCONNECT on all connections and close them, as `Client.close` does."""
        self.bind()
        if not self.pool.closed:
            self.pool.close()
            if self._timer is not None:
                self._timer.cancel()
            if self._expiry is not None:
                self._expiry.cancel()
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.closed for each in self._open_transports))

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- for engines ---

    def submit(self, exchange: Exchange) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self.bind()
        self.pool.call(exchange, monotonic())

    async def wait_for(self, exchange: Exchange, deadline: float) -> Exchange:
        """Wait until a call is done. `Exchange.result` gives its ACK.

        Raises:
            SpopTimeoutError: the deadline, a time of `time.monotonic`, has passed.
        """
        if not exchange.done:
            try:
                await self.waiter(exchange, deadline)
            except BaseException:
                self.pool.abandon(exchange)
                raise
        return exchange

    def waiter(self, exchange: Exchange, deadline: float) -> asyncio.Future[None]:
        """A future that ends with the call, or with SpopTimeoutError at the deadline. Whoever stops
        to wait for it abandons the call."""
        assert self._loop is not None
        exchange.waiter = waiter = self._loop.create_future()
        exchange.deadline = deadline
        # It may be before that of a call that began later: `notify_many` waits for one at a time.
        if deadline < self._expires_at:
            self._expire_at(deadline)
        return waiter

    def pump(self) -> None:
        """Start queued calls, as servers have changed."""
        if not self.pool.closed:
            self.pool.pump(monotonic())

    # --- waiting ---

    def _wake(self, exchange: Exchange) -> None:
        if exchange.waiter is not None and not exchange.waiter.done():
            exchange.waiter.set_result(None)

    def _expire(self) -> None:
        """Fail the calls whose deadline has passed, and come again at the next deadline.

        All calls have the same timeout, so deadlines come in the order in which calls began.
        """
        self._expires_at = float("inf")
        now, due = monotonic(), []
        for exchanges in self.pool.pending:
            for exchange in exchanges:
                if exchange.done or exchange.waiter is None:
                    continue
                if exchange.deadline > now:
                    due.append(exchange.deadline)
                    break
                if not exchange.waiter.done():
                    exchange.waiter.set_exception(self._timed_out(exchange))
        if due:
            self._expire_at(min(due))

    def _expire_at(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(deadline - monotonic(), self._expire)

    # --- bytes ---

    def received(self, link: Link, events: Sequence[EngineEvent]) -> None:
        """A transport has received bytes, or the end of the connection."""
        self.pool.received(link, events, monotonic())

    def _flush(self, link: Link) -> None:
        """Send at the end of this turn of the event loop, for all of its tasks together."""
        if not self._to_send:
            assert self._loop is not None
            self._loop.call_soon(self._send)
        self._to_send[link] = None

    def _send(self) -> None:
        links, self._to_send = self._to_send, {}
        for link in links:
            transport = link.transport.transport
            if not transport.is_closing():
                link.starting.clear()
                transport.write(link.protocol.data_to_send())

    def blocked(self, link: Link, blocked: bool) -> None:
        """A transport takes no more data, or takes it again."""
        link.blocked = blocked
        if not blocked:
            self.pool.pump(monotonic())

    def lost(self, link: Link, error: OSError | None) -> None:
        """A transport is closed."""
        message = "the connection is closed" if error is None else reason(error)
        self.pool.lost(link, message, Status.IO, monotonic())

    # --- connections ---

    def _open(self, endpoint: Endpoint) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(endpoint))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, endpoint: Endpoint) -> None:
        transport = _Transport(self, endpoint, self._protocol())
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._dial(endpoint, transport)
            async with asyncio.timeout(self._hello_timeout):
                await transport.greet()
        except Exception as error:
            transport.abort()
            self.pool.opening_failed(endpoint, self._unreachable(endpoint, error), monotonic())
        except BaseException:
            transport.abort()
            raise
        else:
            self.pool.opened(transport.link, monotonic())

    async def _dial(self, endpoint: Endpoint, transport: _Transport) -> None:
        loop = asyncio.get_running_loop()
        address, tls = endpoint.address, endpoint.tls
        name = endpoint.name_in_certificate if tls is not None else None
        options: dict[str, Any] = {"ssl": tls, "server_hostname": name}
        if address.path is not None:
            await loop.create_unix_connection(lambda: transport, address.path, **options)
        else:
            options["family"] = address.family
            await loop.create_connection(lambda: transport, address.host, address.port, **options)
        self._open_transports.add(transport)
        transport.closed.add_done_callback(lambda _: self._open_transports.discard(transport))

    def _part(self, link: Link) -> None:
        """The transport closes itself after the agent's DISCONNECT."""
        transport = link.transport.transport
        if not transport.is_closing():
            transport.write(link.protocol.data_to_send())
        link.transport.leave()

    # --- time ---

    def _start_timer(self, delay: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, self._tick)


class _Transport(asyncio.BufferedProtocol):
    """A connection from its HELLO to its end."""

    transport: asyncio.Transport

    def __init__(self, client: AsyncClient, endpoint: Endpoint, protocol: EngineConnection) -> None:
        self.link = Link(endpoint, protocol, self)
        self._client = client
        loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[None] = loop.create_future()
        self._leaving = False
        self.closed: asyncio.Future[None] = loop.create_future()

    async def greet(self) -> None:
        """Exchange HELLO. Raises DisconnectedError if the agent refuses."""
        self.transport.write(self.link.protocol.data_to_send())
        await self._hello

    def leave(self) -> None:
        """Close after the agent's DISCONNECT, or when it has not come in time."""
        self._leaving = True
        if self.link.protocol.should_close:
            self.transport.close()
        else:
            asyncio.get_running_loop().call_later(LINGER, self.abort)

    def abort(self) -> None:
        self._hello.cancel()  # Nothing waits for it any more.
        if hasattr(self, "transport"):
            self.transport.abort()

    # --- asyncio calls these ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit it.

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._client.buffer)  # A slice of it is no copy, as TLS needs it.

    def buffer_updated(self, size: int) -> None:
        protocol = self.link.protocol
        events = (
            protocol.receive_data(self._client.buffer, size) if size else protocol.receive_eof()
        )
        if self._leaving:
            if protocol.should_close:
                self.transport.close()
        elif self._hello.done():
            self._client.received(self.link, events)
        else:
            try:
                if hear_hello(protocol, events):
                    self._hello.set_result(None)
            except DisconnectedError as error:
                self._hello.set_exception(error)

    def eof_received(self) -> None:
        self.buffer_updated(0)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if not self._hello.done():
            self.buffer_updated(0)
        elif not self._leaving:
            self._client.lost(self.link, error if isinstance(error, OSError) else None)

    def pause_writing(self) -> None:
        self._client.blocked(self.link, True)

    def resume_writing(self) -> None:
        self._client.blocked(self.link, False)
