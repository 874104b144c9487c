"""The event loops that an agent's async handlers may run on, for the tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest

from spop import Agent

EVENT_LOOPS = ["asyncio", "debug", "uvloop", "serve_async"]

Serve = Callable[..., AbstractContextManager[Any]]
"""Serves an agent, with options, inside of a ``with`` statement, which gives the server."""


def agent_of_each_kind() -> Agent:
    """An agent with a handler of each kind, whose message has the kind's name."""
    agent = Agent()
    agent.message("inline")(lambda n=0: {"txn.inline": n})
    agent.message("blocking", blocking=True)(lambda n=0: {"txn.blocking": n})

    @agent.message("async")
    async def asynchronous(n: int = 0) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"txn.async": n}

    return agent


def serve_on(event_loop: str, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves on one of `EVENT_LOOPS`."""
    if event_loop == "serve_async":
        return serve_on_runner
    if event_loop == "debug":
        monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
        event_loop = "asyncio"
    if event_loop == "uvloop":
        pytest.importorskip("uvloop")

    def serve(agent: Agent, **options: Any) -> AbstractContextManager[Any]:
        return agent.serve_in_background(event_loop=event_loop, **options)

    return serve


@contextlib.contextmanager
def serve_on_runner(agent: Agent, **options: Any) -> Iterator[Any]:
    """Serves with `Agent.serve_async` under `asyncio.Runner`; its task is cancelled at the end."""
    ready: Future[Any] = Future()
    started: Future[tuple[Any, Any]] = Future()

    async def main() -> None:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        try:
            await agent.serve_async("127.0.0.1:0", ready.set_result, **options)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    def run() -> None:
        with asyncio.Runner() as runner:
            runner.run(main())

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run)
        loop, task = started.result(30)
        server = ready.result(30)
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                ended.result(30)
