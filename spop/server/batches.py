"""Batches: one call of a handler for many messages, in a thread, a process or on the event loop."""

from __future__ import annotations

import asyncio
import functools
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NamedTuple

from spop.agent import Agent
from spop.batch import Batch
from spop.context import forget_running
from spop.errors import HandlerError, reason
from spop.frames import Message
from spop.lifespan import use_state
from spop.logs import class_name, text_of, trace_of, traceback_of
from spop.loop_life import LoopThread
from spop.outcome import Outcome, outcome, outcome_of, result_of
from spop.parameters import described, is_async
from spop.server.orphans import end_with_parent

GRACE = 3.0
"""Seconds that processes have to end."""


class _Waiting(NamedTuple):
    message: Message
    outcome: asyncio.Future[Outcome]


class Batcher:
    """Collects the messages of one handler in one loop, and answers each.

    Args:
        function: is called with a list of messages and returns a list of answers. An answer that
            is an exception fails its message alone.

    Raises:
        TypeError: the function can't be found by a process.
    """

    def __init__(self, function: Callable[..., Any], batch: Batch) -> None:
        self._function = function
        self._batch = batch
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._call: Callable[[list[Message]], Any] | None = self._begin()

    def _begin(self) -> Callable[[list[Message]], Any]:
        """Make the executor, and the function that makes a call in it."""
        self._executor: Executor | None = None
        if is_async(self._function):
            return self._function
        in_process = self._batch.executor == "process"
        if in_process:
            self._executor = _processes(self._function, self._batch.workers)
        else:
            self._executor = ThreadPoolExecutor(self._batch.workers, "spop-batch")

        async def in_executor(messages: list[Message]) -> Any:
            if in_process:
                made = functools.partial(_call, messages)
            else:  # The context has the state of this loop.
                made = functools.partial(copy_context().run, self._function, messages)
            loop = asyncio.get_running_loop()
            try:
                ended = loop.run_in_executor(self._executor, outcome, made)
            except (OSError, RuntimeError) as error:
                # The system has no thread or process for it. The executor keeps the call.
                raise NotBegunError(f"{described(self._function)}: {reason(error)}") from None
            return result_of(await ended)

        return in_executor

    async def ready(self) -> None:
        """Wait until processes have imported the handler.

        Raises:
            NotBegunError: a process could not.
        """
        if isinstance(self._executor, ProcessPoolExecutor):
            await asyncio.get_running_loop().run_in_executor(self._executor, _check)

    def close(self) -> None:
        """End the threads or processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def end(self) -> None:
        """End them, and wait `GRACE` for processes: else their semaphores are left to the system."""
        if isinstance(self._executor, ProcessPoolExecutor):
            ended = asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
            await asyncio.wait([asyncio.create_task(ended)], timeout=GRACE)
        else:
            self.close()

    async def answer(self, message: Message) -> Any:
        """The handler's answer to one message.

        Raises:
            BaseException: the answer is one, or the call raised it.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(message, loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) == self._batch.size:
            self._flush()
        elif len(self._waiting) == 1:
            self._timer = loop.call_later(self._batch.wait, self._flush)
        return result_of(await waiting.outcome)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        context = copy_context()  # That of one of the messages.
        context.run(forget_running)
        call = asyncio.get_running_loop().create_task(self._handle(batch), context=context)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _handle(self, batch: list[_Waiting]) -> None:
        batch = [each for each in batch if not each.outcome.done()]  # Some have timed out.
        if not batch:
            return
        executor = self._executor
        answers: Sequence[Any] | None = None
        error: BaseException | None
        try:
            answers, error = await outcome_of(self._answers([each.message for each in batch]))
        except asyncio.CancelledError as cancelled:  # By the handler, or at the end.
            error = cancelled
        ended = issubclass(type(error), (BrokenExecutor, NotBegunError))
        if ended and executor is self._executor:
            self.close()  # A process has died, and with it its pool, or it could not begin.
            self._call = None
        for each, answer in zip(batch, answers or [error] * len(batch), strict=True):
            if not each.outcome.done():
                failed = issubclass(type(answer), BaseException)
                each.outcome.set_result((None, answer) if failed else (answer, None))

    async def _answers(self, messages: list[Message]) -> Sequence[Any]:
        if self._call is None:
            self._call = self._begin()
        return self._checked(await self._call(messages), len(messages))

    def _checked(self, answers: Any, count: int) -> Sequence[Any]:
        if not isinstance(answers, (list, tuple)):
            kind = type(answers).__name__
            raise HandlerError(
                f"{described(self._function)} returned {kind}; a list of answers is needed"
            )
        found: list[Any] = list(answers)  # A class of its own may count otherwise than it iterates.
        if len(found) != count:
            raise HandlerError(
                f"{described(self._function)} returned {len(found)} answers to {count} messages"
            )
        return found


# --- processes ---


def _processes(function: Callable[..., Any], workers: int) -> ProcessPoolExecutor:
    if function.__module__ == "__main__" or "<locals>" in function.__qualname__:
        raise TypeError(
            f'{described(function)}: executor="process" needs a function of a module that can '
            "be imported"
        )
    agents = [
        (*place, agent.config if agent.config_class else None)
        for place, agent in _agents_of(function).items()
    ]
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(function.__module__, function.__qualname__, agents, sys.path, os.getpid()),
    )


class NotBegunError(Exception):
    """A process could not import the handler, or begin the lifespans of its agent."""


_handler: Callable[[list[Message]], Any]
_failure = ""
"""Why this process could not begin."""


def _begin_process(
    module: str, name: str, agents: list[tuple[str, str, Any]], path: list[str], worker: int
) -> None:
    global _failure
    end_with_parent(worker, signal.SIGKILL)  # Otherwise it would wait for calls forever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all processes.
    sys.path[:] = path
    try:
        _begin(module, name, agents)
    except BaseException as error:  # The pool would say only that a process has ended.
        reason = f"{type(error).__name__}: {error}"
        _failure = f"the process of {module}.{name} could not begin: {reason}"


def _begin(module: str, name: str, agents: list[tuple[str, str, Any]]) -> None:
    """Import the handler, give its agents the settings, and set up the lifespans.

    Args:
        agents: the module, the name in it, and the settings of each.
    """
    global _handler
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    _handler = found
    for home, attribute, config in agents:
        agent = getattr(importlib.import_module(home), attribute)
        if config is not None:
            agent.config = config
        use_state(LoopThread(agent.resources._replace(periodic=())).state)


def _agents_of(function: Callable[..., Any]) -> dict[tuple[str, str], Agent]:
    """The agents that have the function as a handler, by module and name: those of its own module,
    or else of any."""
    others = [module for module in list(sys.modules) if module != "__main__"]
    return _agents_in([function.__module__], function) or _agents_in(others, function)


def _agents_in(modules: list[str], function: Callable[..., Any]) -> dict[tuple[str, str], Agent]:
    found: dict[tuple[str, str], Agent] = {}
    for module in modules:
        for name, value in list(getattr(sys.modules[module], "__dict__", {}).items()):
            if isinstance(value, Agent) and value not in found.values() and _has(value, function):
                found[module, name] = value
    return found


def _has(agent: Agent, function: Callable[..., Any]) -> bool:
    return any(info.function is function for info in agent.handlers.values())


def _call(messages: list[Message]) -> Any:
    _check()
    try:
        answers = _handler(messages)
    except BaseException as error:
        raise _portable(error) from None
    if not isinstance(answers, (list, tuple)):
        return answers
    return [_portable(each) if isinstance(each, BaseException) else each for each in answers]


def _portable(error: BaseException) -> BaseException:
    """The exception as one that another process can read. Its traceback is a note there."""
    name, trace = class_name(error), trace_of(error)
    told = HandlerError(f"{name}: {text_of(error)}")
    try:
        if trace is not None:
            told.add_note(traceback_of(error))
            error.add_note(traceback_of(error))  # A frozen dataclass takes none.
        pickle.loads(pickle.dumps(error))
    except BaseException:
        return told
    return error


def _check() -> None:
    if _failure:
        raise NotBegunError(_failure)
