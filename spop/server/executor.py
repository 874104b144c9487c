"""Runs the handlers that may not run in a loop: blocking ones in a bounded pool of threads,
``async def`` ones on one asyncio loop in a thread of its own.

What waits is bounded: a message for which there is no room fails at once, as an answer that
comes after HAProxy's processing timeout is worth nothing. A handler with a `concurrency` limit
has a line of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from spop.agent import Agent, HandlerInfo
from spop.codec import encode_answer
from spop.context import set_source
from spop.counters import Cell, Cells
from spop.dispatch import Call, Running
from spop.errors import HandlerError
from spop.logs import SafeLogger

logger = SafeLogger("spop.server")


Died = Callable[[BaseException], object]
"""Told by a thread of the server's why it can't go on."""


class Job:
    """A call of a handler in another thread.

    Args:
        running: makes what its logs say.
        done: takes the job, the encoded actions and what went wrong, in that thread.
    """

    __slots__ = ("_done", "_error", "_payload", "_running", "call", "cancel_task", "cancelled")

    def __init__(
        self,
        call: Call,
        running: Callable[[], Running],
        done: Callable[[Job, bytearray, BaseException | None], None],
    ) -> None:
        self.call = call
        self._running = running
        self.cancelled = False
        self._payload = bytearray()
        self._error: BaseException | None = None
        self._done = done
        self.cancel_task: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End it if it is asynchronous or has not begun; its result is not wanted."""
        self.cancelled = True
        if self.cancel_task is not None:
            self.cancel_task()

    def run(self) -> None:
        """Call a blocking handler, in this thread."""
        set_source(self._running)
        try:
            encode_results(self.call, self.call.run(), self._payload)
        except BaseException as error:  # Whatever it is, the thread goes on and the peer waits.
            self._error = error

    async def run_async(self) -> None:
        """Call an ``async def`` handler, in a task of its own."""
        set_source(self._running)
        try:
            encode_results(self.call, await self.call.run(), self._payload)
        except BaseException as error:  # The task ends here; asyncio would end its thread.
            self._error = error

    def tell(self) -> None:
        """Give what came of it to who waits for it, if anyone does."""
        error, self._error = self._error, None  # Its traceback has this job, and is not kept.
        if not self.cancelled:
            self._done(self, self._payload, error)


class _Line:
    """The jobs of a handler that has a limit: so many run, the others wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[Job] = deque()


class _Threads:
    """Threads that run jobs, each in the order of their coming; they start as they are needed.

    To wake a thread costs more than most handlers. So whoever submits jobs wakes once for all of
    them, and one thread at most is being woken; before it begins its first job it wakes the next,
    where there is more: short jobs are run by few threads, and one that blocks holds up no other.
    """

    def __init__(self, size: int, run: Callable[[Job], object], died: Died) -> None:
        self._size = size
        self._run = run
        self._died = died
        self._jobs: deque[Job] = deque()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waking = False
        self._stopped = False
        self._idle = 0
        self._started = 0

    def submit(self, job: Job) -> None:
        """Have a job run after the next `wake`."""
        self._jobs.append(job)

    def wake(self) -> None:
        if self._jobs and not self._waking:
            self._wake()

    def stop(self) -> None:
        """End the threads, each when its job has ended; what waits is dropped."""
        self._stopped = True
        self._jobs.clear()
        for _ in range(self._started):
            self._wakeups.put(None)

    def _wake(self) -> None:
        with self._lock:
            if self._waking:
                return
            if self._idle:
                self._idle -= 1
                self._waking = True
                self._wakeups.put(None)
            elif self._started < self._size and not self._stopped:
                self._started += 1
                self._waking = True
                name = f"spop-pool-{self._started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            # Else all are at work, and whoever is done first goes on with it.

    def _work(self) -> None:
        try:
            while not self._stopped:
                self._waking = False
                self._run_all()
                with self._lock:
                    if self._jobs:
                        continue
                    self._idle += 1
                self._wakeups.get()
        except BaseException as error:
            self._died(error)

    def _run_all(self) -> None:
        while self._jobs:
            try:
                job = self._jobs.popleft()
            except IndexError:  # Another thread was faster.
                return
            self.wake()
            self._run(job)


class Executor:
    """Runs the jobs of one agent.

    Args:
        pool_size: threads for blocking handlers; they start as they are needed.
        max_queue: jobs that may wait for a thread, and asynchronous ones that may run.
        cells: the row in which it counts.
        died: called by a thread that can't go on.
    """

    def __init__(
        self, agent: Agent, pool_size: int, max_queue: int, cells: Cells, died: Died
    ) -> None:
        self._handlers = agent.handlers
        self._died = died
        self._threads = _Threads(pool_size, self._run, died)
        self._max_queue = max_queue
        self._cells = cells
        self._lock = threading.Lock()
        self._lines = {
            handler.name: _Line(handler.concurrency)
            for handler in agent.handlers.values()
            if handler.concurrency is not None
        }
        self._queued = 0
        self._tasks = 0
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._asyncio_thread: threading.Thread | None = None
        self._starting: deque[Job] = deque()
        self._start_ordered = False
        self._stopped = False
        self._running_tasks: set[asyncio.Task[None]] = set()
        self.busy = 0
        """Blocking handlers that run now."""

    def start(self) -> None:
        """Start the asyncio loop, if any handler wants one."""
        if any(handler.asynchronous for handler in self._handlers.values()):
            self._asyncio = asyncio.new_event_loop()
            self._asyncio_thread = threading.Thread(
                target=self._run_asyncio, args=(self._asyncio,), name="spop-asyncio", daemon=True
            )
            self._asyncio_thread.start()

    def _run_asyncio(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop until `stop`, whatever handlers, and tasks they left behind, do to it."""
        while not self._stopped:
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as error:  # asyncio lets these two through.
                logger.failure(error, "a task of a handler failed")
            except BaseException as error:
                self._died(error)
                return

    def submit(self, job: Job) -> None:
        """Run a job after the next `start_jobs`, once there is room for it.

        Raises:
            HandlerError: too many wait already.
        """
        handler = self._handlers[job.call.route.name]
        line = self._lines.get(handler.name)
        with self._lock:
            if self._queued + self._tasks >= self._max_queue:
                self._cells[Cell.REJECTED] += 1
                raise HandlerError(f"message {handler.name}: {self._max_queue} wait already")
            self._queued += 1
            if line is not None:
                if line.running >= line.limit:
                    line.waiting.append(job)
                    self._count()
                    return
                line.running += 1
            self._count()
        self._launch(handler, job)

    def start_jobs(self) -> None:
        """Have the other threads begin what was submitted."""
        self._threads.wake()
        if self._starting and not self._start_ordered:
            assert self._asyncio is not None
            self._start_ordered = True
            self._asyncio.call_soon_threadsafe(self._start_tasks)

    def stop(self) -> None:
        """Cancel what still runs and end the threads."""
        loop, thread = self._asyncio, self._asyncio_thread
        if loop is not None and thread is not None:
            if thread.is_alive():
                asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            self._stopped = True
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            self._asyncio = None
        self._threads.stop()

    def _launch(self, handler: HandlerInfo, job: Job) -> None:
        if handler.asynchronous:
            self._starting.append(job)
        else:
            self._threads.submit(job)

    def _start_tasks(self) -> None:
        """In the asyncio thread: all jobs that have come since it was last here."""
        self._start_ordered = False
        loop = asyncio.get_running_loop()
        while self._starting:
            job = self._starting.popleft()
            task = loop.create_task(self._run_task(job))
            self._running_tasks.add(task)
            task.add_done_callback(self._running_tasks.discard)
            job.cancel_task = partial(loop.call_soon_threadsafe, task.cancel)

    def _run(self, job: Job) -> None:
        with self._lock:
            self._queued -= 1
            self.busy += 1
            self._count()
        if not job.cancelled:
            job.run()
        self._next(job, blocking=True)
        job.tell()  # Last, as its loop takes over.

    async def _run_task(self, job: Job) -> None:
        with self._lock:
            self._queued -= 1
            self._tasks += 1
            self._count()
        try:
            if not job.cancelled:
                await job.run_async()
        finally:
            self._next(job, blocking=False)
            job.tell()

    def _next(self, job: Job, blocking: bool) -> None:
        """A job has ended: the first in its line may run."""
        handler = self._handlers[job.call.route.name]
        line = self._lines.get(handler.name)
        following = None
        with self._lock:
            self.busy -= blocking
            self._tasks -= not blocking
            if line is not None:
                following = line.waiting.popleft() if line.waiting else None
                line.running -= following is None
            self._count()
        if following is not None:
            self._launch(handler, following)
            self.start_jobs()

    def _count(self) -> None:
        self._cells[Cell.QUEUED] = self._queued
        self._cells[Cell.RUNNING] = self.busy + self._tasks


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def encode_results(call: Call, returned: Any, payload: bytearray) -> None:
    """Append a handler's actions, or raise what is wrong with them and append none."""
    start = len(payload)
    try:
        for result in call.results(returned):
            encode_answer(result, payload)
    except BaseException:
        del payload[start:]
        raise
