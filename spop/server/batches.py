"""Batches: one call of a handler for many messages, in a thread, a process or on the event loop."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

from spop.agent import Agent
from spop.batch import Batch
from spop.errors import HandlerError
from spop.frames import Message
from spop.lifespan import use_state
from spop.loop_life import LoopThread
from spop.outcome import Outcome, outcome, outcome_of, result_of
from spop.parameters import described
from spop.server.orphans import end_with_parent


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
        self._call = self._begin()

    def _begin(self) -> Callable[[list[Message]], Any]:
        """Make the executor, and the function that makes a call in it."""
        self._executor: Executor | None = None
        if inspect.iscoroutinefunction(self._function):
            return self._function
        if self._batch.executor == "process":
            call: Callable[..., Any] = _call
            self._executor = _processes(self._function, self._batch.workers)
        else:
            call = self._function
            self._executor = ThreadPoolExecutor(self._batch.workers, "spop-batch")

        async def in_executor(messages: list[Message]) -> Any:
            made = functools.partial(call, messages)
            loop = asyncio.get_running_loop()
            return result_of(await loop.run_in_executor(self._executor, outcome, made))

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
        call = asyncio.get_running_loop().create_task(self._handle(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _handle(self, batch: list[_Waiting]) -> None:
        batch = [each for each in batch if not each.outcome.done()]  # Some have timed out.
        if not batch:
            return
        executor = self._executor
        answers, error = await outcome_of(self._answers([each.message for each in batch]))
        if isinstance(error, (BrokenExecutor, NotBegunError)) and executor is self._executor:
            self.close()  # A process has died, and with it its pool, or it could not begin.
            self._call = self._begin()
        for each, answer in zip(batch, answers or [error] * len(batch), strict=True):
            if not each.outcome.done():
                failed = isinstance(answer, BaseException)
                each.outcome.set_result((None, answer) if failed else (answer, None))

    async def _answers(self, messages: list[Message]) -> Sequence[Any]:
        return self._checked(await self._call(messages), len(messages))

    def _checked(self, answers: Any, count: int) -> Sequence[Any]:
        if not isinstance(answers, (list, tuple)):
            kind = type(answers).__name__
            raise HandlerError(
                f"{described(self._function)} returned {kind}; a list of answers is needed"
            )
        if len(answers) != count:
            raise HandlerError(
                f"{described(self._function)} returned {len(answers)} answers to {count} messages"
            )
        return answers


# --- processes ---


def _processes(function: Callable[..., Any], workers: int) -> ProcessPoolExecutor:
    if function.__module__ == "__main__" or "<locals>" in function.__qualname__:
        raise TypeError(
            f'{described(function)}: executor="process" needs a function of a module that can '
            "be imported"
        )
    agents = _agents_of(sys.modules[function.__module__], function)
    configs = [agent.config if agent.config_class else None for agent in agents]
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(function.__module__, function.__qualname__, configs, sys.path, os.getpid()),
    )


class NotBegunError(Exception):
    """A process could not import the handler, or begin the lifespans of its agent."""


_handler: Callable[[list[Message]], Any]
_failure = ""
"""Why this process could not begin."""


def _begin_process(
    module: str, name: str, configs: list[Any], path: list[str], worker: int
) -> None:
    global _failure
    end_with_parent(worker, signal.SIGKILL)  # Otherwise it would wait for calls forever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all processes.
    sys.path[:] = path
    try:
        _begin(module, name, configs)
    except BaseException as error:  # The pool would say only that a process has ended.
        reason = f"{type(error).__name__}: {error}"
        _failure = f"the process of {module}.{name} could not begin: {reason}"


def _begin(module: str, name: str, configs: list[Any]) -> None:
    """Import the handler, give its agent the settings, and set up the lifespans."""
    global _handler
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    _handler = found
    for agent, config in zip(_agents_of(sys.modules[module], found), configs, strict=True):
        if config is not None:
            agent.config = config
        use_state(LoopThread(agent.resources._replace(periodic=())).state)


def _agents_of(module: ModuleType, function: Callable[..., Any]) -> list[Agent]:
    """The agents of a module that have the function as a handler."""
    agents = [each for each in vars(module).values() if isinstance(each, Agent)]
    return [
        agent
        for agent in agents
        if any(info.function is function for info in agent.handlers.values())
    ]


def _call(messages: list[Message]) -> Any:
    _check()
    return _handler(messages)


def _check() -> None:
    if _failure:
        raise NotBegunError(_failure)
