"""Runs blocking handlers in a bounded pool of threads, and queues the calls of handlers with a
`concurrency` limit.

The queues are bounded. A message beyond the bound fails at once: HAProxy ignores an answer that
comes after its processing timeout.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from spop.agent import Agent
from spop.context import set_running
from spop.counters import Cell, Cells
from spop.dispatch import Call
from spop.errors import HandlerError
from spop.forks import serve_in_this_thread
from spop.lifespan import use_state
from spop.logs import SafeLogger
from spop.server.exchange import Exchange

logger = SafeLogger("spop.server")


class Job(NamedTuple):
    """A call that waits for a thread. `came` is in ns of `time.monotonic_ns`."""

    exchange: Exchange
    call: Call
    came: int


class _Line:
    """The calls of a handler with a limit: up to `limit` run, the others wait in line."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[tuple[Exchange, Call]] = deque()


class _Threads:
    """Threads that begin jobs in the order of arrival. They start as they are needed.

    To wake a thread costs more than most handlers. So a loop wakes once for all jobs that it
    submitted, and at most one thread is being woken. A thread wakes the next before each job, if
    there are more. So few threads run short jobs, and a job that blocks delays no other.
    """

    def __init__(self, size: int, run: Callable[[Job], object], cells: Cells) -> None:
        self._size = size
        self._run = run
        self._cells = cells
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._waking = False
        self._stopped = False
        self._idle: list[threading.Lock] = []  # Each is released to wake its thread.
        self._started = 0

    def submit(self, job: Job) -> None:
        """Have a job run after the next `wake`."""
        self._jobs.append(job)
        self._tell_oldest()

    def wake(self) -> None:
        if self._jobs and not self._waking:
            self._wake()

    def stop(self) -> None:
        """End each thread after its present job. Jobs that wait are dropped."""
        with self._lock:
            self._stopped = True
            self._jobs.clear()
            for wakeup in self._idle:
                wakeup.release()
            self._idle.clear()

    def _tell_oldest(self) -> None:
        try:
            self._cells[Cell.OLDEST_JOB] = self._jobs[0].came
        except IndexError:
            self._cells[Cell.OLDEST_JOB] = 0

    def _wake(self) -> None:
        with self._lock:
            if self._waking:
                return
            if self._idle:
                self._waking = True
                self._idle.pop().release()
            elif self._started < self._size and not self._stopped:
                self._started += 1
                self._waking = True
                name = f"spop-pool-{self._started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            # Else all threads are busy, and the first that is free takes the next job.

    def _work(self) -> None:
        serve_in_this_thread()
        wakeup = threading.Lock()
        wakeup.acquire()
        try:
            while not self._stopped:
                self._waking = False
                self._run_all()
                with self._lock:
                    if self._jobs or self._stopped:
                        continue
                    self._idle.append(wakeup)
                wakeup.acquire()
        except BaseException as error:  # Not a handler's: the executor's `_run` takes those.
            logger.failure(error, "a thread of the pool died and is replaced")
            with self._lock:
                self._started -= 1
                self._waking = False
                if wakeup in self._idle:
                    self._idle.remove(wakeup)
            self.wake()

    def _run_all(self) -> None:
        while self._jobs:
            try:
                job = self._jobs.popleft()
            except IndexError:  # Another thread was faster.
                return
            self._tell_oldest()
            self.wake()
            try:
                self._run(job)
            except BaseException as error:
                job.exchange.host.job_done(job.exchange, job.call, None, error)
                raise


class Executor:
    """Runs the blocking calls of one agent. Its loops share it.

    Args:
        pool_size: number of threads for blocking handlers. They start as they are needed.
        max_queue: number of calls that may wait for a thread or in line.
        cells: the row in which it counts.
    """

    def __init__(self, agent: Agent, pool_size: int, max_queue: int, cells: Cells) -> None:
        self._handlers = agent.handlers
        self._threads = _Threads(pool_size, self._run, cells)
        self._max_queue = max_queue
        self._cells = cells
        self._lock = threading.Lock()
        self._lines = {
            handler.name: _Line(handler.concurrency)
            for handler in agent.handlers.values()
            if handler.concurrency is not None
        }
        self._queued = 0
        self.busy = 0
        """Blocking handlers that run now."""

    def submit(self, exchange: Exchange, call: Call) -> None:
        """Make a call after the next `wake`, as soon as a thread and the limit allow it.

        Raises:
            HandlerError: too many wait already.
        """
        name = call.route.name
        line = self._lines.get(name)
        with self._lock:
            if self._queued >= self._max_queue:
                self._cells[Cell.REJECTED] += 1
                raise HandlerError(f"message {name}: {self._max_queue} wait already")
            self._queued += 1
            self._count()
            if line is not None and line.running >= line.limit:
                line.waiting.append((exchange, call))
                return
            if line is not None:
                line.running += 1
        self._launch(exchange, call)

    def wake(self) -> None:
        """Have threads begin the submitted calls."""
        self._threads.wake()

    def stop(self) -> None:
        """End the threads."""
        self._threads.stop()

    def begins(self) -> None:
        """A submitted asynchronous call begins in its loop."""
        with self._lock:
            self._queued -= 1
            self._count()

    def ended(self, name: str) -> None:
        """A call has ended. If its handler has a limit, the first in line begins."""
        line = self._lines.get(name)
        if line is None:
            return
        with self._lock:
            following = line.waiting.popleft() if line.waiting else None
            line.running -= following is None
        if following is not None:
            self._launch(*following)
            self.wake()

    def _launch(self, exchange: Exchange, call: Call) -> None:
        if self._handlers[call.route.name].asynchronous:
            exchange.host.launch(exchange, call)
        else:
            self._threads.submit(Job(exchange, call, time.monotonic_ns()))

    def _run(self, job: Job) -> None:
        exchange, call, _ = job
        with self._lock:
            self._queued -= 1
            self.busy += 1
            self._count()
        returned, error = None, None
        if exchange.is_waiting_for(call):
            peer = exchange.connection.protocol.peer
            use_state(exchange.host.state)
            set_running((call.route.name, exchange.stream_id, exchange.frame_id, peer))
            try:
                returned = call.run()
            except BaseException as failure:  # Whatever it is, the NOTIFY is answered.
                error = failure
        with self._lock:
            self.busy -= 1
            self._count()
        self.ended(call.route.name)
        exchange.host.job_done(exchange, call, returned, error)  # Last: now the loop owns it.
        error = None  # Breaks a reference cycle: its traceback has this frame.

    def _count(self) -> None:
        self._cells[Cell.QUEUED] = self._queued
        self._cells[Cell.RUNNING] = self.busy
