"""Lifespans and periodic calls on an event loop: what lives as long as one loop of a server."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from spop.lifespan import NOTHING, LoopState, Merged, Periodic, Resources, use_state
from spop.outcome import Outcome, outcome_in_task, outcome_in_thread, outcome_of, result_of
from spop.parameters import described, is_async

T = TypeVar("T")


class LoopLife:
    """The lifespans and periodic calls of one loop, in a task of its event loop.

    They begin and end in the same task, because task groups and timeouts in them need it.

    Args:
        state: the worker's.
        is_first: it is the first loop of its worker.

    Attributes:
        task: the task. It ends early only when a lifespan fails. Its result is its outcome, as a
            SystemExit that leaves a task leaves the event loop, too.
        ended_early: called then.
    """

    def __init__(self, resources: Resources, state: LoopState, is_first: bool) -> None:
        self._resources = resources
        self._merged = Merged(state)
        self._periodic = [each for each in resources.periodic if is_first or not each.once]
        self.task: asyncio.Task[Outcome] | None = None
        self.ended_early: Callable[[], object] = lambda: None

    async def start(self) -> LoopState:
        """Begin, and return the loop's state.

        Raises:
            BaseException: a lifespan raised it.
        """
        self._began, self._ends = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(outcome_of(self._live()), name="spop-lifespan")
        began = asyncio.create_task(self._began.wait())
        await asyncio.wait([self.task, began], return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if not self._began.is_set():
            result_of(await self.task)
        self.task.add_done_callback(self._task_ended)
        return self._merged.state

    def _task_ended(self, _: asyncio.Task[Outcome]) -> None:
        if not self._ends.is_set():
            self.ended_early()

    def check(self) -> None:
        """Raise the error of a lifespan that has ended early.

        Raises:
            BaseException: a lifespan raised it.
        """
        if self.task is not None and self.task.done():
            result_of(self.task.result())
            raise RuntimeError("a lifespan has ended by itself")

    async def stop(self) -> None:
        """End, if a failure has not ended it, and wait for that.

        Raises:
            BaseException: a lifespan raised it.
        """
        if self.task is not None and not self.task.done():
            self._ends.set()
            result_of(await self.task)

    async def _live(self) -> None:
        async with self._lifespans():
            use_state(self._merged.state)
            calls = [asyncio.create_task(self._repeat(each)) for each in self._periodic]
            self._began.set()
            try:
                await self._ends.wait()
            finally:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _lifespans(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for lifespan in self._resources.lifespans:
                if inspect.isasyncgenfunction(lifespan):
                    generator = lifespan()
                    self._merged.add(lifespan, await anext(generator, NOTHING))
                    stack.push_async_callback(_end, generator)
            yield

    async def _repeat(self, periodic: Periodic) -> None:
        function = periodic.function
        while True:
            await asyncio.sleep(periodic.wait())
            call = function if is_async(function) else functools.partial(_call_in_thread, function)
            _, error = await outcome_in_task(call)
            if error is not None:
                self._resources.failed(periodic.name, error)
                del error  # Breaks a reference cycle: its traceback has this frame.


async def _call_in_thread(function: Callable[[], Any]) -> None:
    returned = result_of(await outcome_in_thread(function))
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError(f"{described(function)} returned a coroutine, which nobody awaits")


async def _end(generator: AsyncIterator[Any]) -> None:
    if await anext(generator, NOTHING) is not NOTHING:
        raise RuntimeError("a lifespan yields more than once")


class LoopThread:
    """An event loop with the lifespans of an agent, in a thread of its own. `Agent.test` uses it.

    Lifespans end with `close`, or with the process. Without lifespans the event loop also ends
    when this object is dropped.

    Raises:
        BaseException: a lifespan raised it.
    """

    def __init__(self, resources: Resources) -> None:
        self._event_loop = asyncio.new_event_loop()
        threading.Thread(
            target=_run_and_close, args=[self._event_loop], name="spop-test", daemon=True
        ).start()
        self._stop = weakref.finalize(self, _stop, self._event_loop)
        self._stack = contextlib.ExitStack()
        self.state: LoopState = {}
        if resources:
            self._begin(resources)

    def _begin(self, resources: Resources) -> None:
        atexit.register(self.close)
        try:
            life = LoopLife(resources, self._stack.enter_context(resources.worker()), True)
            self.state = self.run(life.start())
            self._stack.callback(lambda: self.run(life.stop()))
        except BaseException:
            self.close()
            raise

    async def with_state(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that may use the loop's state."""
        use_state(self.state)
        return await coroutine

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop and return its result."""
        result: T = result_of(self._outcome(coroutine).result())
        return result

    async def run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """`run` for a caller in another event loop."""
        result: T = result_of(await asyncio.wrap_future(self._outcome(coroutine)))
        return result

    def _outcome(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Outcome]:
        return asyncio.run_coroutine_threadsafe(outcome_of(coroutine), self._event_loop)

    def close(self) -> None:
        """End the lifespans, the event loop and the thread.

        Raises:
            BaseException: a lifespan raised it.
        """
        atexit.unregister(self.close)
        try:
            self._stack.close()
        finally:
            self._stop()


def _run_and_close(event_loop: asyncio.AbstractEventLoop) -> None:
    try:
        event_loop.run_forever()
        event_loop.run_until_complete(event_loop.shutdown_asyncgens())
    finally:
        event_loop.close()


def _stop(event_loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # It is closed already.
        event_loop.call_soon_threadsafe(event_loop.stop)
