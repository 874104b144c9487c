"""Runs blocking handlers in a bounded pool of threads, and queues the calls of handlers with a
`concurrency` limit.

The queues are bounded. A message beyond the bound fails at once: HAProxy ignores an answer that
comes after its processing timeout.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from spop.agent import Agent
from spop.context import set_running
from spop.counters import Cell, Cells
from spop.dispatch import Call
from spop.errors import HandlerError
from spop.forks import serve_in_this_thread
from spop.lifespan import use_state
from spop.logs import SafeLogger, fields
from spop.poller import Poller
from spop.port import Sleeper
from spop.server.exchange import Host

logger: SafeLogger = SafeLogger("spop.server")


class Job(NamedTuple):
    """A call that waits for a thread. `came` is in ns of `time.monotonic_ns`."""

    host: Host
    call: Call
    came: int


SHORT = 100_000
"""Nanoseconds below which a job is short."""

WARY = 100
"""Number of short jobs in a row after which the next one is expected to be short, too."""

PATIENCE = 0.002
"""Seconds that jobs wait behind one that was expected to be short, until a thread is woken."""


class _Line:
    """The calls of a handler with a limit: up to `limit` run, the others wait in line."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[Job] = deque()


class _Threads:
    """Threads that begin jobs in the order of arrival. They start as they are needed.

    To wake a thread costs more than most handlers. So a loop wakes once for all jobs that it
    submitted, and at most one thread is being woken. A thread wakes the next before each job, if
    there are more, and the loop after each. So a job that blocks delays no other.

    After `WARY` short jobs in a row one thread runs all jobs that wait, and wakes the loop behind
    the last. If one of them is not short after all, the loop finds out after `PATIENCE`.

    Attributes:
        in_line: number of calls that wait for others of their handler; they count as queued.
        busy: number of threads that run jobs.
        present: the job of each such thread, by the thread's number.
    """

    def __init__(self, size: int, ended: Callable[[str], object], cells: Cells) -> None:
        self._size = size
        self._ended = ended
        self._cells = cells
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._waking = False
        self._stopped = False
        self._idle: list[Sleeper] = []
        self._started = 0
        self._wary = WARY
        self.in_line = 0
        self.busy = 0
        self.present: dict[int, Job] = {}

    @property
    def queued(self) -> int:
        """Number of calls that wait for a thread or in line."""
        return len(self._jobs) + self.in_line

    def submit(self, jobs: Iterable[Job]) -> None:
        """Have jobs run after the next `wake`."""
        self._jobs.extend(jobs)
        self.count()

    @property
    def patience(self) -> float | None:
        """Seconds after which to call `wake` again; None: that is not needed."""
        return PATIENCE if self._jobs and not (self._wary and self._started) else None

    def wake(self, poller: Poller | None = None) -> None:
        """Have a thread run the jobs, if no other will soon: when `poller` waits, or now."""
        if self._jobs and not self._waking and (self._wary or self._needs_help()):
            self._wake(poller)

    def _needs_help(self) -> bool:
        try:
            came = self._jobs[0].came
        except IndexError:
            return False
        return not self.busy or time.monotonic_ns() - came > PATIENCE * 1e9

    def stop(self) -> None:
        """End each thread after its present job. Jobs that wait are dropped."""
        with self._lock:
            self._stopped = True
            self._jobs.clear()
            for sleeper in self._idle:
                sleeper.wake()
            self._idle.clear()

    def count(self) -> None:
        """Write the gauges of what waits."""
        try:
            self._cells[Cell.OLDEST_JOB] = self._jobs[0].came
        except IndexError:
            self._cells[Cell.OLDEST_JOB] = 0
        self._cells[Cell.QUEUED] = self.queued

    def _count_busy(self, change: int) -> None:
        with self._lock:
            self.busy += change
            self._cells[Cell.RUNNING] = self.busy

    def _wake(self, poller: Poller | None) -> None:
        with self._lock:
            if self._waking:
                return
            if self._idle:
                self._waking = True
                sleeper = self._idle.pop()
                sleeper.wake() if poller is None else poller.wake_in_wait(sleeper)
            elif self._started < self._size and not self._stopped:
                self._started += 1
                self._waking = True
                name = f"spop-pool-{self._started}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # The system has no thread for it. Jobs wait for another.
                    self._started -= 1
                    self._waking = False
            # Else all threads are busy, and the first that is free takes the next job.

    def _work(self) -> None:
        serve_in_this_thread()
        sleeper = Sleeper()
        try:
            while not self._stopped:
                self._waking = False
                self._run_all()
                with self._lock:
                    if self._jobs or self._stopped:
                        continue
                    self.count()  # What another thread wrote later may be older.
                    self._idle.append(sleeper)
                sleeper.sleep()
        except BaseException as error:  # Not a handler's: `_run` takes those.
            with self._lock:
                self._started -= 1
                self._waking = False
                if sleeper in self._idle:
                    self._idle.remove(sleeper)
            self.wake()
            what = fields("thread died", thread=threading.current_thread().name)
            logger.failure(error, "a thread of the pool died and is replaced", extra=what)

    def _run_all(self) -> None:
        busy = False
        host: Host | None = None  # It has results, and was not woken.
        ended = time.monotonic_ns()
        try:
            while self._jobs:
                try:
                    job = self._jobs.popleft()
                except IndexError:  # Another thread was faster.
                    break
                if not busy:
                    busy = True
                    self._count_busy(1)
                self.count()
                if self._wary:
                    self.wake()
                if host is not None and host is not job.host:
                    host.wake()
                host = job.host
                returned, error = None, None
                try:
                    returned, error = self._run(job)
                    if not self._jobs:  # Before the loop has the result, which may be its last.
                        busy = False
                        self._count_busy(-1)
                    self._ended(job.call.route.name)
                except BaseException as death:
                    error = death
                    raise
                finally:
                    host.job_done(job.call, returned, error)
                    error = None  # Breaks a reference cycle: its traceback has this frame.
                began, ended = ended, time.monotonic_ns()
                self._wary = WARY if ended - began > SHORT else max(0, self._wary - 1)
                if self._wary or not self._jobs:
                    host.wake()
                    host = None
        finally:
            if host is not None:
                host.wake()
            if busy:
                self._count_busy(-1)

    def _run(self, job: Job) -> tuple[Any, BaseException | None]:
        call = job.call
        if not call.wanted:
            return None, None
        assert call.running is not None
        thread = threading.get_ident()
        self.present[thread] = job
        use_state(job.host.state)
        set_running(call.running)
        try:
            return call.run(), None
        except BaseException as error:  # Whatever it is, the NOTIFY is answered.
            return None, error
        finally:  # Before the loop has the result: a call that has ended is not left behind.
            self.present.pop(thread, None)


class Executor:
    """Runs the blocking calls of one agent. Its loops share it.

    Args:
        pool_size: number of threads for blocking handlers. They start as they are needed.
        max_queue: number of calls that may wait for a thread or in line.
        cells: the row in which it counts.
    """

    def __init__(self, agent: Agent, pool_size: int, max_queue: int, cells: Cells) -> None:
        self._handlers = agent.handlers
        self._threads = _Threads(pool_size, self.ended, cells)
        self._max_queue = max_queue
        self._cells = cells
        self._lock = threading.Lock()
        self._lines = {
            handler.name: _Line(handler.concurrency)
            for handler in agent.handlers.values()
            if handler.concurrency is not None
        }

    @property
    def busy(self) -> int:
        """Number of threads that run blocking handlers now."""
        return self._threads.busy

    def running(self) -> list[Job]:
        """The calls of blocking handlers that run now."""
        return list(self._threads.present.values())

    def submit(self, host: Host, calls: list[Call]) -> list[tuple[Call, HandlerError]]:
        """Make calls as soon as threads and limits allow it.

        Returns:
            Those that can't be made, as too many wait already, each with its error.
        """
        came = time.monotonic_ns()
        with self._lock:
            room = max(0, self._max_queue - self._threads.queued)
            jobs: Iterable[Job] = [Job(host, call, came) for call in calls[:room]]
            self._threads.submit(self._pass_lines(jobs) if self._lines else jobs)
        self._threads.wake(host.poller)
        refused = calls[room:]
        self._cells[Cell.REJECTED] += len(refused)
        return [(call, self._refusal(call)) for call in refused]

    @property
    def patience(self) -> float | None:
        """Seconds after which to call `wake`; None: that is not needed."""
        return self._threads.patience

    def wake(self) -> None:
        """Have a thread begin calls that wait for too long."""
        self._threads.wake()

    def stop(self) -> None:
        """End the threads."""
        self._threads.stop()

    def begins(self) -> None:
        """A submitted asynchronous call begins in its loop."""
        with self._lock:
            self._threads.in_line -= 1
            self._threads.count()

    def ended(self, name: str) -> None:
        """A call has ended. If its handler has a limit, the first in line begins."""
        line = self._lines.get(name)
        if line is None:
            return
        with self._lock:
            line.running -= 1
            self._threads.submit(self._first_in(line))
        self._threads.wake()

    def _pass_lines(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Those for the pool, now. Others wait in line, or begin in their loop."""
        for job in jobs:
            line = self._lines.get(job.call.route.name)
            if line is None:
                yield job
            else:
                self._threads.in_line += 1
                line.waiting.append(job)
                yield from self._first_in(line)

    def _first_in(self, line: _Line) -> Iterator[Job]:
        if line.waiting and line.running < line.limit:
            job = line.waiting.popleft()
            line.running += 1
            if self._handlers[job.call.route.name].asynchronous:
                job.host.launch(job.call)
            else:
                self._threads.in_line -= 1
                yield job

    def _refusal(self, call: Call) -> HandlerError:
        return HandlerError(f"message {call.route.name}: {self._max_queue} wait already")
