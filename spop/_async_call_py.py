"""The coroutine of an ``async def`` handler, in pure Python.

`_async_call.pyx` is the compiled twin, `spop.dispatch` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any

from spop.forks import FORKED, end_child
from spop.logs import trace_of


class AsyncCall(Coroutine[Any, Any, None]):
    """The coroutine of an ``async def`` handler, as its task runs it.

    It keeps the handler's result or exception, and raises nothing into the event loop. It calls
    `finished` in the step in which the handler ends. A callback of the task would come in a
    later round.

    Args:
        name: the message's name.
        slow: called with the name and the nanoseconds of a step that took longer than
            `slow_after` nanoseconds; 0: never.

    Attributes:
        name: the message's name.
        task: the task that runs it.
        done: the handler has ended.
        value: what it returned.
        error: what it raised.
        finished: called with this object when the handler ends.
    """

    __slots__ = (
        "_coroutine", "_slow", "_slow_after", "done", "error", "finished", "name", "task", "value",
    )  # fmt: skip

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str,
        slow: Callable[[str, int], object] | None = None,
        slow_after: int = 0,
    ) -> None:
        self._coroutine = coroutine
        self.name: str = name
        self._slow = slow
        self._slow_after = slow_after
        self.task: Any = None
        self.done: bool = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished: Callable[[AsyncCall], object] | None = None

    def send(self, value: Any) -> Any:
        """Run the handler's next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """Run its next step with an exception, for example `asyncio.CancelledError`."""
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        """End it without a result."""
        self._coroutine.close()

    def __next__(self) -> Any:
        return self.send(None)

    def __iter__(self) -> AsyncCall:
        return self

    def __await__(self) -> AsyncCall:
        return self

    def __getattr__(self, name: str) -> Any:
        """``cr_frame`` and its like, for debuggers."""
        return getattr(self._coroutine, name)

    def _step(self, resume: Callable[..., Any], *args: Any) -> Any:
        began = monotonic_ns()
        try:
            return resume(*args)
        except StopIteration as stop:
            self.value = stop.value
        except BaseException as error:
            # Without this frame, which refers to `self`: that would be a reference cycle.
            # Not by the exception's own method, which may raise.
            trace = trace_of(error)
            self.error = BaseException.with_traceback(error, trace and trace.tb_next)
        finally:
            took = monotonic_ns() - began
            if 0 < self._slow_after < took and self._slow is not None:
                self._slow(self.name, took)
            if FORKED:
                end_child()
        self.done = True
        if self.finished is not None:
            self.finished(self)
        raise StopIteration
