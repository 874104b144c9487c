"""Plain handlers in threads, as ``asyncio.to_thread`` runs them, on the pool of `spop.server`.

The pool wakes one thread for many short calls, and the event loop once for their results. A
handler that blocks delays the others by 2 ms at most.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from spop.agent import Agent
from spop.counters import new_row
from spop.dispatch import Route
from spop.outcome import Outcome, result_of
from spop.server.executor import Executor

SIZE = min(32, (os.cpu_count() or 1) + 4)
"""Number of threads, as in asyncio's own pool."""


Done = Callable[[Any, BaseException | None], object]
"""Called with what a function returned and with what it raised, on the event loop."""


class ThreadCall:
    """One call of a function, as the pool knows calls.

    Attributes:
        wanted: somebody waits for the result.
    """

    __slots__ = ("_context", "_function", "done", "route", "running", "wanted")

    def __init__(self, function: Callable[[], Any], done: Done, route: Route) -> None:
        self._function = function
        self._context: Context = copy_context()
        self.done: Done = done
        self.route: Route = route
        self.running: tuple[str, int, int, None] = ("", 0, 0, None)
        self.wanted: bool = True

    def run(self) -> Any:
        """Call the function, in a thread."""
        return self._context.run(self._function)


class Threads:
    """Calls functions in threads, for the running event loop."""

    def __init__(self) -> None:
        self._executor = Executor(Agent(), SIZE, sys.maxsize, new_row(0))
        self._loop = asyncio.get_running_loop()
        self._route = Route("", lambda: None)
        self._calls: list[Any] = []
        self._results: deque[tuple[ThreadCall, Any, BaseException | None]] = deque()
        self._woken = False
        self._watching = False
        self.state: dict[str, Any] = {}
        self.poller: Threads = self

    def submit(self, function: Callable[[], Any], done: Done) -> ThreadCall:
        """Call `function` in a thread, and then `done`, if the call is still wanted."""
        call = ThreadCall(function, done, self._route)
        if not self._calls:
            self._loop.call_soon(self._submit)
        self._calls.append(call)
        return call

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread. What it returns or raises is this function's."""
        ended: asyncio.Future[Outcome] = self._loop.create_future()
        call = self.submit(function, lambda *result: ended.set_result(result))
        try:
            ran = await ended
        except asyncio.CancelledError:
            call.wanted = False
            raise
        return result_of(ran)

    def stop(self) -> None:
        """End the threads, each after its present call."""
        self._executor.stop()

    def _submit(self) -> None:
        """Have the pool make the calls of this turn of the event loop."""
        calls, self._calls = self._calls, []
        self._executor.submit(self, calls)  # type: ignore[arg-type]
        self._watch()

    def _watch(self) -> None:
        """Calls behind one that was expected to be short must not wait for long."""
        patience = self._executor.patience
        if patience is not None and not self._watching:
            self._watching = True
            self._loop.call_later(patience, self._look)

    def _look(self) -> None:
        self._watching = False
        self._executor.wake()
        self._watch()

    # --- what the pool calls ---

    def wake_in_wait(self, sleeper: Any) -> None:
        """Wake a thread."""
        sleeper.wake()

    def job_done(self, call: ThreadCall, returned: Any, error: BaseException | None) -> None:
        """A call has ended, in a thread."""
        self._results.append((call, returned, error))

    def wake(self) -> None:
        """Have the event loop take the results."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._woken = False
        results = self._results
        while results:
            call, returned, error = results.popleft()
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise error
            if call.wanted:
                call.done(returned, error)
