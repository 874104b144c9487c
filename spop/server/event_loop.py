"""asyncio on a loop's own thread: the loop's poller is the selector of an event loop.

So an ``async def`` handler runs in the thread that received its NOTIFY. Its sockets, timers and
tasks are asyncio's. SPOP's sockets are served inside of ``select()``, by the fast path.

A `Guest` is for event loops with their own way to wait: uvloop's, and the one that a caller of
`Agent.serve_async` runs. They watch the poller as a file descriptor, which costs one more
system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol

from spop.agent import Agent
from spop.counters import Cell, Cells
from spop.dispatch import AsyncCall
from spop.lifespan import LoopState, use_state
from spop.logs import SafeLogger, fields
from spop.loop_life import LoopLife
from spop.options import Options
from spop.outcome import outcome, outcome_of, result_of
from spop.poller import Poller
from spop.server.calls import Calls
from spop.server.exchange import Connection
from spop.server.leaving import CANCEL_GRACE

logger: SafeLogger = SafeLogger("spop.server")

Start = Callable[[AsyncCall], Any]


class Loop(Protocol):
    """What asyncio needs of a loop."""

    agent: Agent
    cells: Cells
    context: Context
    poller: Poller

    calls: Calls
    connections: set[Connection]
    life: LoopLife | None
    options: Options

    @property
    def alive(self) -> bool: ...

    def has_begun(self, state: LoopState) -> None: ...

    @property
    def tasks(self) -> list[asyncio.Task[Any]]: ...

    def use_context(self, context: Context) -> None: ...

    def send_acks(self) -> None: ...

    def round(self, timeout: float | None) -> None: ...

    def longest_wait(self) -> float | None: ...

    def set_start(self, start: Start | None, ended: Callable[[], object] | None = None) -> None: ...


class PollerSelector(selectors.BaseSelector):
    """The selector of an event loop whose ``select()`` is a round of a `Loop`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._poller = loop.poller
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._found: list[tuple[selectors.SelectorKey, int]] = []
        self._soon: Sized = ()
        self._later: Sized = ()
        self.stop: Callable[[], object] | None = None

    def watch(self, soon: Sized, later: Sized) -> None:
        """Do not wait when a handler has added to these queues of the event loop."""
        self._soon, self._later = soon, later
        self._poller.watch(soon, later)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._found = []
        if timeout is not None and timeout < 0:
            timeout = 0.0
        # To send ACKs can begin further frames, whose tasks `timeout` does not know yet.
        later = len(self._later)
        self._loop.send_acks()
        if len(self._soon) or len(self._later) != later:
            timeout = 0.0
        self._loop.round(timeout)
        if self.stop is not None and not self._loop.alive:
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
            # A hang-up comes as READ, even for a socket that waits only for WRITE.
            self._found.append((key, events & key.events or key.events))


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def starting(event_loop: asyncio.AbstractEventLoop) -> Start:
    """Makes the task of an `AsyncCall`. From Python 3.12 on this also runs its first step."""
    if sys.version_info >= (3, 12):
        return partial(asyncio.Task, loop=event_loop, eager_start=True)
    return partial(asyncio.Task, loop=event_loop)


def serve(loop: Loop, kind: str) -> None:
    """Run a loop inside of an event loop of its own, in this thread, until it has ended.

    Args:
        kind: "asyncio" or "uvloop".
    """
    (_serve_on_uvloop if kind == "uvloop" else _serve_on_asyncio)(loop)


def _serve_on_asyncio(loop: Loop) -> None:
    selector = PollerSelector(loop)
    event_loop = asyncio.SelectorEventLoop(selector)
    selector.stop = event_loop.stop
    loop.set_start(starting(event_loop))
    selector.watch(*_queues(event_loop))
    try:
        _begin(loop, event_loop)
        _run(event_loop, lambda: not loop.alive, loop.life)
    finally:
        selector.stop = None  # `_close` runs the event loop further, until the tasks have ended.
        loop.set_start(None)
        selector.watch((), ())
        _close(event_loop, loop)


def _serve_on_uvloop(loop: Loop) -> None:
    import uvloop

    event_loop = uvloop.new_event_loop()
    try:
        _begin(loop, event_loop)
        guest = Guest(loop, event_loop)
        guest.ended.add_done_callback(lambda _: event_loop.stop())
        try:
            guest.start()
            _run(event_loop, guest.ended.done, loop.life)
            guest.ended.result()
        finally:
            guest.stop()
    finally:
        _close(event_loop, loop)


def _begin(loop: Loop, event_loop: asyncio.AbstractEventLoop) -> None:
    """Set up the lifespans. This thread's context, which is the loop's, gets their state."""
    state: LoopState = {}
    if loop.life is not None:
        state = event_loop.run_until_complete(loop.life.start())
        loop.life.ended_early = event_loop.stop
    use_state(state)
    event_loop.run_until_complete(loop.calls.begin())
    loop.has_begun(state)


async def serve_here(loop: Loop, began: Callable[[], object], drain: Callable[[], object]) -> None:
    """Run a loop inside of the running event loop, until it has ended.

    Args:
        began: called when the lifespans are set up.
        drain: called when this task is cancelled, to make the loop end. A second cancellation
            does not wait for that end.

    Raises:
        BaseException: the error that ended the loop, if one did.
    """
    state: LoopState = {} if loop.life is None else await loop.life.start()
    context = copy_context()
    context.run(use_state, state)
    loop.use_context(context)
    guest = Guest(loop, asyncio.get_running_loop())
    if loop.life is not None:
        loop.life.ended_early = partial(guest.end, loop.life)
    try:
        await loop.calls.begin()
        loop.has_begun(state)
        began()
        guest.start()
        await guest.wait()
    except asyncio.CancelledError:
        drain()
        await guest.wait()
        raise
    finally:
        guest.stop()
        await _finish(loop)


async def _finish(loop: Loop) -> None:
    """End what handlers have left, and then what they have used."""
    await _cancel(loop.tasks, loop.connections)
    await loop.calls.finish(loop.options.drain_timeout)
    await _end_life(loop)


async def _end_life(loop: Loop) -> None:
    """Tear down the lifespans, for as long as a drain may take."""
    if loop.life is None:
        return
    limit = max(CANCEL_GRACE, loop.options.drain_timeout)
    try:
        result_of(await asyncio.wait_for(outcome_of(loop.life.stop()), limit))
    except TimeoutError:
        what = fields("lifespans cancelled", duration=limit)
        logger.warning("lifespans did not end in %g s and were cancelled", limit, extra=what)
    except Exception as error:
        logger.failure(error, "a lifespan failed", extra=fields("lifespan failed"))


def _run(
    event_loop: asyncio.AbstractEventLoop, ended: Callable[[], bool], life: LoopLife | None
) -> None:
    while not ended():
        if life is not None:
            life.check()
        try:
            event_loop.run_forever()
        except (KeyboardInterrupt, SystemExit) as error:  # asyncio lets these two through.
            logger.failure(error, "a task of a handler failed", extra=fields("task failed"))


def _queues(event_loop: asyncio.BaseEventLoop) -> tuple[Any, Any]:
    """The queues of callbacks and timers. A handler may add to these in its first step."""
    return getattr(event_loop, "_ready", ()), getattr(event_loop, "_scheduled", ())


def _close(event_loop: asyncio.AbstractEventLoop, loop: Loop) -> None:
    """Cancel the tasks, wait `CANCEL_GRACE` for their end, and close the event loop.

    Lifespans end between the tasks of handlers and what these have left.
    """
    try:
        event_loop.run_until_complete(_finish(loop))
        event_loop.run_until_complete(_cancel(asyncio.all_tasks(event_loop)))
        event_loop.run_until_complete(_close_generators(event_loop))
    finally:
        event_loop.close()


async def _close_generators(event_loop: asyncio.AbstractEventLoop) -> None:
    """Close the asynchronous generators, unless one of them takes longer than `CANCEL_GRACE`."""
    closing = event_loop.create_task(event_loop.shutdown_asyncgens())
    await asyncio.wait([closing], timeout=CANCEL_GRACE)


async def _cancel(
    tasks: Iterable[asyncio.Task[Any]], connections: Iterable[Connection] = ()
) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        for task in left:
            name = _name(task, connections)
            line = "%s did not end in %g s and is left behind"
            logger.warning(line, name, CANCEL_GRACE, extra=fields("left behind", what=name))
            # `asyncio.run` would wait for it without a limit.
            asyncio._unregister_task(task)


def _name(task: asyncio.Task[Any], connections: Iterable[Connection]) -> str:
    """What a task does, for people."""
    call = task.get_coro()
    if not isinstance(call, AsyncCall):
        return repr(task)
    exchange = getattr(call.finished, "__self__", None)
    kept = (each for each in connections if call.finished in each.protocol.intake.calls)
    connection = next(kept, None) if exchange is None else exchange.connection
    peer = f" of {connection.protocol.address}" if connection is not None else ""
    return f"the handler of message {call.name!r}{peer}"


class Guest:
    """Runs the rounds of a loop in any event loop.

    A round is due when a socket is ready, when a timer of the loop is due, and when a handler's
    task has ended, as there may be an ACK to send. Only the thread of the event loop uses it.

    Attributes:
        ended: done after the last round. If a round has failed it has the error.
    """

    def __init__(self, loop: Loop, event_loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event_loop = event_loop
        self._context = loop.context.copy()  # The loop's own may be that of the whole thread.
        self._fd = loop.poller.fileno()
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.Handle | None = None
        self._due = 0.0
        self.ended: asyncio.Future[None] = event_loop.create_future()

    def start(self) -> None:
        self._loop.set_start(starting(self._event_loop), self._order)
        # The event loop calls `_round` in the context in which the reader was added.
        self._context.run(self._event_loop.add_reader, self._fd, self._round)
        self._order()

    def stop(self) -> None:
        """Run no further round."""
        self._loop.set_start(None)
        self._event_loop.remove_reader(self._fd)
        for handle in (self._soon, self._later):
            if handle is not None:
                handle.cancel()

    def end(self, life: LoopLife) -> None:
        """Run no further round, as a lifespan has ended by itself."""
        _, error = outcome(life.check)
        if error is not None and not self.ended.done():
            self.ended.set_exception(error)

    async def wait(self) -> None:
        """Wait for the end of the loop. A cancellation does not end the loop.

        Raises:
            BaseException: the error that ended the loop, if one did.
        """
        await asyncio.wait([self.ended])
        self.ended.result()

    def _order(self) -> None:
        """Have a round in the next turn of the event loop."""
        if self._soon is None:
            self._soon = self._event_loop.call_soon(self._run_soon, context=self._context)

    def _run_soon(self) -> None:
        self._soon = None
        self._round()

    def _order_later(self, wait: float) -> None:
        due = self._event_loop.time() + wait
        if self._later is not None:
            if self._due <= due:
                return
            self._later.cancel()
        self._due = due
        self._later = self._event_loop.call_later(wait, self._run_due, context=self._context)

    def _run_due(self) -> None:
        self._later = None
        self._round()

    def _round(self) -> None:
        if self.ended.done():
            return
        try:
            self._loop.round(0.0)
            self._loop.agent.pass_on_interrupt()
            wait = self._loop.longest_wait()
        except BaseException as error:
            self.ended.set_exception(error)
            return
        self._loop.cells[Cell.ROUND_BEGAN] = 0  # The time until the next round is not the loop's.
        if not self._loop.alive:
            self.ended.set_result(None)
        elif wait == 0:
            self._order()
        elif wait is not None:
            self._order_later(wait)
