"""Runs the handlers that may not run in a loop: blocking ones in a bounded pool of threads,
``async def`` ones on one asyncio loop in a thread of its own.

The messages of a NOTIFY are handled in order, whatever kinds their handlers are of.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spop.agent import Agent
from spop.codec import encode_actions
from spop.dispatch import Call, Deferred

Done = Callable[[bytearray], None]
"""Takes the encoded actions of an exchange, on any thread."""


class Executor:
    """Runs `Deferred` exchanges of one agent.

    Args:
        pool_size: threads for blocking handlers; they start as they are needed.
    """

    def __init__(self, agent: Agent, pool_size: int) -> None:
        self._agent = agent
        self._pool = ThreadPoolExecutor(pool_size, thread_name_prefix="spop-pool")
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._asyncio_thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._busy_lock = threading.Lock()

    @property
    def busy(self) -> int:
        """Threads of the pool that are inside of a handler now."""
        return self._busy

    def start(self) -> None:
        """Start the asyncio loop, if any handler wants one."""
        if any(handler.asynchronous for handler in self._agent.handlers.values()):
            self._asyncio = asyncio.new_event_loop()
            self._asyncio_thread = threading.Thread(
                target=self._asyncio.run_forever, name="spop-asyncio", daemon=True
            )
            self._asyncio_thread.start()

    def submit(self, deferred: Deferred, done: Done) -> None:
        """Run an exchange and give its actions to `done`, in another thread."""
        loop = self._asyncio
        if loop is not None and any(self._is_async(call) for call in deferred.calls):
            loop.call_soon_threadsafe(self._start_task, deferred, done)
        else:
            self._pool.submit(self._count_busy, self._run, deferred, done)

    def stop(self) -> None:
        """Cancel what still runs and end the threads."""
        loop, thread = self._asyncio, self._asyncio_thread
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._cancel_tasks(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            self._asyncio = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, deferred: Deferred, done: Done) -> None:
        payload = bytearray()
        for call in deferred.calls:
            try:
                _encode(call, call.route.call(call.values), payload)
            except (Exception, SystemExit) as error:
                self._failed(call, error, payload)
        done(payload)

    def _start_task(self, deferred: Deferred, done: Done) -> None:
        task = asyncio.get_running_loop().create_task(self._run_async(deferred, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_async(self, deferred: Deferred, done: Done) -> None:
        payload = bytearray()
        try:
            for call in deferred.calls:
                try:
                    _encode(call, await self._call_async(call), payload)
                except (Exception, SystemExit) as error:
                    self._failed(call, error, payload)
        finally:
            done(payload)

    async def _call_async(self, call: Call) -> Any:
        if self._is_async(call):
            return await call.route.call(call.values)
        if call.route.deferred:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._pool, self._count_busy, call.route.call, call.values
            )
        return call.route.call(call.values)

    def _count_busy(self, function: Callable[..., Any], *args: Any) -> Any:
        with self._busy_lock:
            self._busy += 1
        try:
            return function(*args)
        finally:
            with self._busy_lock:
                self._busy -= 1

    def _is_async(self, call: Call) -> bool:
        handler = self._agent.handlers.get(call.route.name)
        return handler is not None and handler.asynchronous and call.route.deferred

    def _failed(self, call: Call, error: Exception | SystemExit, payload: bytearray) -> None:
        self._agent.failed(call.route.name, error)
        encode_actions(call.route.on_error, payload)

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _encode(call: Call, returned: Any, payload: bytearray) -> None:
    """Append a handler's actions, or raise what is wrong with them and append none."""
    start = len(payload)
    try:
        for result in call.results(returned):
            encode_actions(result, payload)
    except BaseException:
        del payload[start:]
        raise
