"""Waiting for sockets: epoll if the system has it, else the best of `selectors`.

`selectors` makes an object and a named tuple for each ready socket, which costs as much as
answering a frame. epoll needs neither. The compiled poller, in `_port.pyx`, runs no Python
between sockets.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import time
from collections.abc import Callable, Sized
from typing import Protocol, TypeVar

from spop.counters import Cell, Cells, new_row
from spop.port import Sleeper
from spop.twins import IMPLEMENTATION, twin

READ, WRITE = 1, 2
LONGEST_WAIT = 86400.0
"""Seconds after which a wait without an event ends. epoll takes 24.8 days at most."""

Event = TypeVar("Event")
Ready = Callable[[int], object]
"""Called with what a socket is ready for, `READ` and `WRITE` bits."""


class Poller(Protocol):
    """Sockets by file descriptor, each with the function to call when it is ready.

    ``run()`` waits for sockets and calls the functions of those that are ready. It skips a socket
    that an earlier function of the round has unregistered. It returns after that round; the
    compiled one goes on while a round calls nothing but fast paths. ``poll()`` waits and leaves
    the calls to the caller, who may have to take a lock first. Both write `Cell.ROUND_BEGAN` of
    the poller's row of cells: 0 before they wait, and the time afterwards.

    ``watch()`` names two queues of an event loop: the compiled ``run()`` also returns after a
    round that has put something into them. ``fileno()`` is ready when a socket is. ``wake()``
    makes one thread that waits return, or the next one that would wait. Any thread may call it,
    also after ``close()``. ``wake_in_wait()`` wakes another thread, in the next wait if the poller
    can do it there: then that thread finds the GIL free.
    """

    def register(self, fd: int, events: int, ready: Ready) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def run(self, timeout: float | None) -> None: ...
    def poll(self, timeout: float | None) -> list[tuple[Ready, int]]: ...
    def wake(self) -> None: ...
    def wake_in_wait(self, sleeper: Sleeper) -> None: ...
    def watch(self, soon: Sized, later: Sized) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _PythonPoller:
    """What both pollers in Python share: how they wait."""

    def __init__(self, cells: Cells | None, busy_poll: float) -> None:
        self._cells = new_row(0) if cells is None else cells
        self._busy_poll = busy_poll

    def _wait(
        self, look: Callable[[float | None], list[Event]], timeout: float | None
    ) -> list[Event]:
        """Mark the end of a round, wait, and mark the beginning of the next one.

        Returns:
            What `look` finds within `timeout` seconds.
        """
        if timeout != 0:
            self._cells[Cell.ROUND_BEGAN] = 0
        found = _found(look, timeout, self._busy_poll)
        self._cells[Cell.ROUND_BEGAN] = time.monotonic_ns()
        return found

    def watch(self, soon: Sized, later: Sized) -> None:
        """It returns after each round anyway."""

    def wake_in_wait(self, sleeper: Sleeper) -> None:
        sleeper.wake()


class EpollPoller(_PythonPoller):
    """`Poller` over epoll."""

    def __init__(self, cells: Cells | None = None, busy_poll: float = 0.0) -> None:
        super().__init__(cells, busy_poll)
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._wakeups = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # It is never read: each write is an edge.
        self._epoll.register(self._wakeups, _EPOLLIN | select.EPOLLET)

    def register(self, fd: int, events: int, ready: Ready) -> None:
        self._epoll.register(fd, _EPOLL_EVENTS[events])
        self._ready[fd] = ready

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, _EPOLL_EVENTS[events])

    def unregister(self, fd: int) -> None:
        del self._ready[fd]
        self._epoll.unregister(fd)

    def run(self, timeout: float | None) -> None:
        for fd, events in self._wait(self._epoll.poll, timeout):
            ready = self._ready.get(fd)
            if ready is not None:
                ready(READ if events == _EPOLLIN else _READ_AND_WRITE[events & _EPOLLOUT])

    def poll(self, timeout: float | None) -> list[tuple[Ready, int]]:
        found = []
        for fd, events in self._wait(self._epoll.poll, timeout):
            ready = self._ready.get(fd)
            if ready is not None:
                found.append((ready, _READ_AND_WRITE[events & _EPOLLOUT]))
        return found

    def fileno(self) -> int:
        return self._epoll.fileno()

    def wake(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # It is closed.
            os.eventfd_write(self._wakeups, 1)

    def close(self) -> None:
        self._epoll.close()
        if self._wakeups >= 0:
            os.close(self._wakeups)
            self._wakeups = -1


class SelectorPoller(_PythonPoller):
    """`Poller` over the standard library's selectors."""

    def __init__(self, cells: Cells | None = None, busy_poll: float = 0.0) -> None:
        super().__init__(cells, busy_poll)
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self.register(self._wakened.fileno(), READ, self._wake_up)

    def register(self, fd: int, events: int, ready: Ready) -> None:
        self._selector.register(fd, events, ready)

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, events, self._selector.get_key(fd).data)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def run(self, timeout: float | None) -> None:
        for key, events in self._wait(self._selector.select, timeout):
            if self._selector.get_map().get(key.fd) is key:
                key.data(events)

    def poll(self, timeout: float | None) -> list[tuple[Ready, int]]:
        ready = self._wait(self._selector.select, timeout)
        found = [(key.data, events) for key, events in ready]
        if (self._wake_up, READ) in found:
            found.remove((self._wake_up, READ))
            self._wake_up(READ)
        return found

    def fileno(self) -> int:
        fileno = getattr(self._selector, "fileno", None)
        if fileno is None:
            raise NotImplementedError("this system's selector is no file descriptor")
        return int(fileno())

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # It is full, and wakes up anyway, or closed.
            self._waker.send(b"\0")

    def _wake_up(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)

    def close(self) -> None:
        self._selector.close()
        self._waker.close()
        self._wakened.close()


_EPOLLIN: int = getattr(select, "EPOLLIN", 1)
_EPOLLOUT: int = getattr(select, "EPOLLOUT", 4)
_EPOLL_EVENTS = {READ: _EPOLLIN, WRITE: _EPOLLOUT, READ | WRITE: _EPOLLIN | _EPOLLOUT}
# Hang-ups and errors come without EPOLLOUT. Reading shows which they are.
_READ_AND_WRITE = {0: READ, _EPOLLOUT: READ | WRITE}


def _found(
    wait: Callable[[float | None], list[Event]], timeout: float | None, busy_poll: float
) -> list[Event]:
    """What `wait` finds within `timeout`, asked again and again for `busy_poll` seconds first."""
    timeout = None if timeout is None else min(timeout, LONGEST_WAIT)
    if not busy_poll or timeout == 0:
        return wait(timeout)
    began = time.monotonic()
    busy_until = began + (busy_poll if timeout is None else min(timeout, busy_poll))
    while time.monotonic() < busy_until:
        if found := wait(0):
            return found
    return wait(None if timeout is None else max(0.0, began + timeout - time.monotonic()))


def new_poller(cells: Cells | None = None, busy_poll: float = 0.0) -> Poller:
    """The fastest poller of this system.

    Args:
        cells: the row of cells to write to.
        busy_poll: seconds for which it looks again and again before it sleeps.
    """
    if not hasattr(select, "epoll"):
        return SelectorPoller(cells, busy_poll)
    if IMPLEMENTATION == "c":
        poller: Poller = twin("spop._port").Poller(cells, busy_poll)
        return poller
    return EpollPoller(cells, busy_poll)
