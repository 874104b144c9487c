"""A TCP proxy between HAProxy and agent, which carries bytes in a bad manner."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Self

Manner = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Writes received bytes, or some of them. It raises ConnectionError to cut the connection."""


async def carry(data: bytes, writer: asyncio.StreamWriter) -> None:
    """The manner of a good network."""
    writer.write(data)
    await writer.drain()


class Network:
    """The proxy, in a thread, for a ``with`` statement.

    Args:
        target: the agent's port on 127.0.0.1.

    Attributes:
        to_agent, to_haproxy: the manners of both directions.
        port: where HAProxy connects to.
    """

    def __init__(self, target: int) -> None:
        self.to_agent: Manner = carry
        self.to_haproxy: Manner = carry
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.start_server(self._connected, sock=self._listener)
        self._server = asyncio.run_coroutine_threadsafe(started, self._loop).result()
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        for each in (writer, back):
            sock: socket.socket = each.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(
                _pump(reader, back, lambda *args: self.to_agent(*args)),
                _pump(there, writer, lambda *args: self.to_haproxy(*args)),
            )
        except (ConnectionError, asyncio.CancelledError):  # asyncio would print the latter.
            pass
        finally:
            writer.transport.abort()
            back.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> None:
    while data := await reader.read(65536):
        await manner(data, writer)
    with contextlib.suppress(OSError):
        writer.write_eof()
