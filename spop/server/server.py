"""The server: listeners, loops and executor put together, started and stopped."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable
from typing import Any, Self

from spop import codec
from spop.address import Address
from spop.agent import Agent
from spop.server.executor import Executor
from spop.server.listeners import bound_address, listen
from spop.server.loop import Loop

logger = logging.getLogger("spop.server")

DEFAULT_POOL_SIZE = 16


class Server:
    """Serves an agent on some addresses.

    Args:
        agent: its handlers must be registered.
        bind: one address or several, each ``HOST:PORT`` (port 0: any free one) or
            ``unix:PATH``.
        threads: selector loops, each with a thread of its own.
        pool_size: threads for handlers that are ``blocking=True``.
        drain_timeout: seconds that handlers have to finish when the server stops.
    """

    def __init__(
        self,
        agent: Agent,
        bind: str | Iterable[str],
        *,
        threads: int = 1,
        pool_size: int = DEFAULT_POOL_SIZE,
        drain_timeout: float = 10.0,
    ) -> None:
        if threads < 1 or pool_size < 1:
            raise ValueError("threads and pool_size must be at least 1")
        self.agent = agent
        self._bind = [Address.parse(text) for text in ([bind] if isinstance(bind, str) else bind)]
        self._threads = threads
        self._drain_timeout = drain_timeout
        self._executor = Executor(agent, pool_size)
        self._listeners: list[socket.socket] = []
        self._loops: list[Loop] = []

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens, with the ports that it was given."""
        return [bound_address(listener) for listener in self._listeners]

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def busy_handlers(self) -> int:
        """Blocking handlers that run now; after `stop`, those that did not end in time."""
        return self._executor.busy

    def start(self) -> None:
        """Listen and serve, in threads.

        Raises:
            OSError: an address can't be listened on.
        """
        try:
            for address in self._bind:
                self._listeners.append(listen(address))
        except BaseException:
            self._close_listeners()
            raise
        self._executor.start()
        self._loops = [
            Loop(self.agent, self._executor, f"spop-loop-{number}")
            for number in range(self._threads)
        ]
        self._accept()
        for loop in self._loops:
            loop.start()
        logger.info(
            "agent %r serves on %s (codec: %s, threads: %d)",
            self.agent.name,
            ", ".join(map(str, self.addresses)),
            codec.IMPLEMENTATION,
            self._threads,
        )

    def _accept(self) -> None:
        """The first loop accepts; connections go to all loops in turn."""
        turns = itertools.cycle(self._loops)
        first = self._loops[0]

        def hand_out(sock: socket.socket, sockaddr: Any) -> None:
            loop = next(turns)
            if loop is first:
                loop.add(sock, sockaddr)
            else:
                loop.call_soon(lambda: loop.add(sock, sockaddr))

        for listener in self._listeners:
            first.accept_from(listener, hand_out)

    def stop(self) -> None:
        """Stop listening, answer the frames in hand, say DISCONNECT, end the threads."""
        if not self._loops:
            return
        self._stop_listening()
        for loop in self._loops:
            loop.drain(self._drain_timeout)
        for loop in self._loops:
            loop.thread.join()
        self._executor.stop()
        self._loops = []
        if self.busy_handlers:
            logger.warning(
                "%d handlers did not end in %g s and were left behind",
                self.busy_handlers,
                self._drain_timeout,
            )

    def _stop_listening(self) -> None:
        first, closed = self._loops[0], threading.Event()

        def close() -> None:
            for listener in self._listeners:
                first.forget_listener(listener)
            self._close_listeners()
            closed.set()

        first.call_soon(close)
        closed.wait()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            path = listener.getsockname() if listener.family == socket.AF_UNIX else None
            listener.close()
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self._listeners = []

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. Only the main thread can.

        Raises:
            OSError: an address can't be listened on.
        """
        with _Signals(signal.SIGINT, signal.SIGTERM) as signals, self:
            signals.wait()
            logger.info("stopping")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class _Signals:
    """Some signals as something to wait for, in the main thread.

    They arrive as bytes in a pipe, written by the interpreter's own handler: a handler in Python
    may run inside of any lock that the main thread holds, and only once that thread wakes up.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handlers = {n: signal.signal(n, lambda *_: None) for n in self._numbers}
        return self

    def wait(self) -> None:
        """Return when one of the signals has come."""
        while not set(os.read(self._read_end, 1)) & set(self._numbers):
            pass

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read_end)
        os.close(self._write_end)
