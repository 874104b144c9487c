"""asyncio on a loop's own thread: the loop's poller is the selector of an event loop.

So an ``async def`` handler runs where its NOTIFY was received, with no change of threads: its
sockets, timers and tasks are asyncio's, and SPOP's sockets are seen to inside of ``select()``,
in compiled code where there is any. `Guest` is for event loops that exist already, uvloop's for
one: they wait for the poller as for any file descriptor, which costs a further system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from spop.dispatch import AsyncCall
from spop.logs import SafeLogger
from spop.poller import Poller

logger = SafeLogger("spop.server")

CANCEL_GRACE = 2.0
"""Seconds that handlers have to end after they were cancelled at the end of a loop."""

Start = Callable[[AsyncCall], Any]


class Loop(Protocol):
    """What asyncio needs of a loop."""

    poller: Poller

    @property
    def alive(self) -> bool: ...

    def round(self, timeout: float | None) -> None: ...

    def set_start(self, start: Start | None) -> None: ...


class PollerSelector(selectors.BaseSelector):
    """The selector of an event loop whose ``select()`` is a round of a `Loop`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._poller = loop.poller
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._found: list[tuple[selectors.SelectorKey, int]] = []
        self.stop: Callable[[], object] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._found = []
        self._loop.round(None if timeout is None else max(0.0, timeout))
        if not self._loop.alive:
            self.stop()
        return self._found

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        try:
            self._poller.register(fd, events, partial(self._ready, fd))
        except BaseException:
            del self._keys[fd]
            raise
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        with contextlib.suppress(OSError):  # It is closed already.
            self._poller.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        old = self.get_key(fileobj)
        if events != old.events:
            self._poller.modify(old.fd, events)
        key = self._keys[old.fd] = selectors.SelectorKey(old.fileobj, old.fd, events, data)
        return key

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {key.fileobj: key for key in self._keys.values()}

    def close(self) -> None:
        for key in list(self._keys.values()):
            self.unregister(key.fd)

    def _ready(self, fd: int, events: int) -> None:
        key = self._keys.get(fd)
        if key is not None:
            # A hang-up comes as something to read, also to those who only wait to write.
            self._found.append((key, events & key.events or key.events))


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def starting(event_loop: asyncio.AbstractEventLoop) -> Start:
    """Makes the task of an `AsyncCall`. From Python 3.12 on its first step is done with that."""
    if sys.version_info >= (3, 12):
        return partial(asyncio.Task, loop=event_loop, eager_start=True)
    return partial(asyncio.Task, loop=event_loop)


def serve(loop: Loop) -> None:
    """Run a loop inside of an event loop of its own, in this thread, until it has ended."""
    selector = PollerSelector(loop)
    event_loop = asyncio.SelectorEventLoop(selector)
    selector.stop = event_loop.stop
    loop.set_start(starting(event_loop))
    loop.poller.watch(*_queues(event_loop))
    try:
        while loop.alive:
            try:
                event_loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as error:  # asyncio lets these two through.
                logger.failure(error, "a task of a handler failed")
    finally:
        selector.stop = lambda: None  # From now on the event loop ends when its tasks have.
        loop.set_start(None)
        loop.poller.watch((), ())
        _close(event_loop)


def _queues(event_loop: asyncio.BaseEventLoop) -> tuple[Any, Any]:
    """What the event loop has to do, now and later: a handler may add to these in its first step."""
    return getattr(event_loop, "_ready", ()), getattr(event_loop, "_scheduled", ())


def _close(event_loop: asyncio.SelectorEventLoop) -> None:
    """Cancel what is left, give it time to end, and close the event loop."""
    try:
        event_loop.run_until_complete(_cancel_all())
        event_loop.run_until_complete(event_loop.shutdown_asyncgens())
    finally:
        event_loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        for task in left:
            logger.warning("%r did not end in %g s and was left behind", task, CANCEL_GRACE)


class Guest:
    """Runs a loop's rounds in an event loop that exists, whenever its poller has something.

    Used in the thread of the event loop.
    """

    def __init__(self, loop: Loop, event_loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event_loop = event_loop
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = event_loop.create_future()

    def start(self) -> None:
        self._loop.set_start(starting(self._event_loop))
        self._event_loop.add_reader(self._loop.poller.fileno(), self._round)
        self._event_loop.call_soon(self._round)

    def _round(self) -> None:
        try:
            self._loop.round(0.0)
        except BaseException as error:
            self._end(error)
            return
        if not self._loop.alive:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._loop.set_start(None)
        self._event_loop.remove_reader(self._loop.poller.fileno())
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
