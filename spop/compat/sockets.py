"""Plain sockets on the caller's event loop, without a callback of asyncio for each of them.

The event loop watches one poller, which knows the sockets that are ready. So for many connections
a round costs little more than their ``recv`` and ``send``. TLS is left to asyncio's transports.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from spop.poller import READ, WRITE, Poller, new_poller

RECV_SIZE = 64 * 1024
HIGH_WATER = 64 * 1024
"""Bytes that a socket has not taken, above which a connection has to stop writing."""


class Sockets:
    """The sockets of one server.

    Raises:
        NotImplementedError: this system's poller can't be watched.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poller: Poller = new_poller()
        self._fd: int = self._poller.fileno()
        loop.add_reader(self._fd, self._poller.run, 0.0)

    def take(self, protocol: asyncio.Protocol) -> asyncio.Protocol:
        """A protocol that gives its socket to `protocol`, by way of a `SocketTransport`."""
        return _Taken(self._loop, self._poller, protocol)

    def close(self) -> None:
        """Watch no socket any more."""
        self._loop.remove_reader(self._fd)
        self._poller.close()


class _Taken(asyncio.Protocol):
    def __init__(
        self, loop: asyncio.AbstractEventLoop, poller: Poller, protocol: asyncio.Protocol
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._protocol = protocol

    def connection_made(self, transport: Any) -> None:
        accepted = transport.get_extra_info("socket")
        try:
            sock = socket.socket(fileno=os.dup(accepted.fileno()))
        except OSError:  # There are no more file descriptors: asyncio's own transport goes on.
            transport.set_protocol(self._protocol)
            self._protocol.connection_made(transport)
            return
        transport.abort()  # Closes its file descriptor. The connection lives on in ours.
        self._protocol.connection_made(
            SocketTransport(self._loop, self._poller, sock, self._protocol)
        )


class SocketTransport(asyncio.Transport):
    """What a `Connection` needs of a transport, over a socket of its own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        sock: socket.socket,
        protocol: asyncio.Protocol,
    ) -> None:
        super().__init__({"socket": sock})
        sock.setblocking(False)
        self._loop = loop
        self._poller = poller
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._events = 0
        self._closing = False
        self._held_back = False
        self._unsent = bytearray()
        self._watch(READ)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._watch(self._events & ~READ)

    def resume_reading(self) -> None:
        if not self._closing:
            self._watch(self._events | READ)

    def write(self, data: Any) -> None:
        sent = 0
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._end_soon(error)
                return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._watch(self._events | WRITE)
            if len(self._unsent) > HIGH_WATER and not self._held_back:
                self._held_back = True
                self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._watch(self._events & ~READ)
            if not self._unsent:
                self._end_soon(None)

    def abort(self) -> None:
        self._end_soon(None)

    def _watch(self, events: int) -> None:
        if events == self._events:
            return
        if not self._events:
            self._poller.register(self._fd, events, self._ready)
        elif events:
            self._poller.modify(self._fd, events)
        else:
            self._poller.unregister(self._fd)
        self._events = events

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE:
                self._send()
            if events & READ & self._events:
                self._receive()
        except Exception as error:
            context = {"message": "a connection failed", "exception": error, "transport": self}
            self._loop.call_exception_handler(context)
            self._end_soon(error)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECV_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end_soon(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._watch(self._events & ~READ)
            if not self._protocol.eof_received():
                self.close()

    def _send(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end_soon(error)
            return
        if self._unsent:
            return
        self._watch(self._events & ~WRITE)
        if self._closing:
            self._end_soon(None)
        elif self._held_back:
            self._held_back = False
            self._protocol.resume_writing()

    def _end_soon(self, error: Exception | None) -> None:
        """Close in the next turn of the event loop, once."""
        self._closing = True
        self._watch(0)
        self._unsent.clear()
        if self._fd >= 0:
            self._fd = -1
            self._loop.call_soon(self._end, error)

    def _end(self, error: Exception | None) -> None:
        self._sock.close()
        self._protocol.connection_lost(error)
