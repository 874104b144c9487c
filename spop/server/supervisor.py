"""Worker processes: started, restarted when they die, replaced on request, stopped.

The supervisor has the listening sockets, which its workers inherit, and never imports the
agent: each generation of workers does so afresh. It is one thread without any of the service's
work, so that nothing the agent does can stop it. A worker that is replaced gives its
connections, each at a moment when nothing is in flight on it, to the new ones.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import mmap
import os
import resource
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from spop import codec
from spop.counters import Totals, row_size
from spop.errors import SpopError, reason
from spop.server import systemd
from spop.server.balance import Balance
from spop.server.channel import Channel
from spop.server.listeners import bound_address, close_all, listen_all
from spop.server.options import Options
from spop.server.privileges import check_privileges
from spop.server.server import log_start, totals_status
from spop.server.signals import Signals
from spop.server.worker import Load, child, run_worker
from spop.version import __version__

logger = logging.getLogger("spop.server")

CELLS_SIZE = 8 * 1024 * 1024
"""Bytes of memory for a worker's counts; what is not used takes none."""
STEADY = 10.0
"""Seconds after which a worker that dies is restarted at once, as it was well before."""
MAX_BACK_OFF = 30.0
GRACE = 5.0
"""Seconds that a worker has beyond the drain timeout before it is killed."""
WATCH_INTERVAL = 0.5
ANSWER_TIMEOUT = 1.0
MAX_CONNECTIONS_SHOWN = 1000
PLACES = 8
"""Times the workers there are to be: so many may exist, old ones that leave included."""


class StartError(SpopError):
    """The service could not start. The message says why."""


@dataclass(eq=False)
class _Process:
    """A child process, as its parent sees it."""

    pid: int
    channel: Channel
    generation: int
    place: int
    memory: mmap.mmap
    started: float = field(default_factory=time.time)
    ready: bool = False
    leaving: bool = False
    handlers: list[str] = field(default_factory=list)
    error: str = ""

    def totals(self, threads: int) -> Totals:
        totals = Totals()
        size = row_size(len(self.handlers))
        with memoryview(self.memory) as view, view.cast("q") as cells:
            for number in range(threads + 1):
                with cells[number * size : (number + 1) * size] as row:
                    totals.add(row, self.handlers)
        return totals


class _Question:
    """Something that all workers are asked; answered when all have, or time is up."""

    def __init__(self, asked: set[_Process], done: Callable[[list[dict[str, Any]]], None]) -> None:
        self.asked = asked
        self.answers: list[dict[str, Any]] = []
        self.done = done


class Supervisor:
    """Serves an agent in worker processes.

    Args:
        load: gives the agent; called in each worker.
        options: those of the server.
        watch: replace the workers when a file of the agent's has changed.

    Raises:
        ValueError: the options' user or group can't be used.
    """

    def __init__(self, load: Load, options: Options, *, watch: bool = False) -> None:
        check_privileges(options)
        self._load = load
        self._options = options
        self._watch = watch
        self._signals = Signals(
            signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD
        )
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self._listeners: list[socket.socket] = []
        self._inherited = False
        self._workers: list[_Process] = []
        self._board = mmap.mmap(-1, 8 * PLACES * options.processes)
        self._generation = 0
        self._back_off = 0.0
        self._running = True
        self._stopping = False
        self._announced = False
        self._retired = Totals()
        self._restarts = 0
        self._frames_lost = 0
        self._agent_name = ""
        self._files: dict[str, float] = {}
        self._questions: dict[int, _Question] = {}
        self._started = time.time()
        self._admin_listener: socket.socket | None = None
        self._admin: tuple[int, Channel] | None = None

    # --- the whole ---

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. SIGHUP replaces the workers, SIGUSR1 logs.

        Raises:
            StartError: an address can't be listened on, or the agent can't be loaded.
        """
        _raise_file_limit()
        try:
            self._listen()
            with self._signals:
                self._serve()
        finally:
            self._close()

    def _listen(self) -> None:
        self._listeners = systemd.inherited_listeners()
        self._inherited = bool(self._listeners)
        try:
            if not self._inherited:
                self._listeners = listen_all(self._options)
            if self._options.admin:
                from spop.server.admin import admin_listener

                self._admin_listener = admin_listener(self._options.admin)
        except (OSError, ValueError) as error:
            raise StartError(reason(error)) from None

    def _serve(self) -> None:
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)
        self._start_admin()
        self._spawn()
        if interval := systemd.watchdog_interval():
            self._later(0, partial(self._ping, interval / 3))
        if self._watch:
            self._later(WATCH_INTERVAL, self._look_for_changes)
        while self._running:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._run_timers()

    def _close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        if self._admin is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._admin[0], signal.SIGKILL)
            os.waitpid(self._admin[0], 0)
        if self._admin_listener is not None:
            self._admin_listener.close()
        self._selector.close()
        self._close_listeners()

    def _signalled(self) -> None:
        for number in self._signals.received():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._replace("SIGHUP")
            elif number == signal.SIGUSR1:
                self._tell({"type": "log"})
            else:
                self._stop(number)

    # --- processes ---

    def _spawn(self) -> None:
        """Start a worker of this generation."""
        ours, theirs = Channel.pair()
        memory = mmap.mmap(-1, CELLS_SIZE)
        place = self._free_place()

        def run() -> int:
            self._forget_parent()
            ours.close()
            if self._admin_listener is not None:
                self._admin_listener.close()
            cells = memoryview(memory).cast("q")
            balance = Balance(memoryview(self._board).cast("q"), place)
            return run_worker(self._options, self._load, self._listeners, theirs, cells, balance)

        worker = _Process(child(run), ours, self._generation, place, memory)
        theirs.close()
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._receive, worker))

    def _free_place(self) -> int:
        taken = {worker.place for worker in self._workers}
        return next(place for place in itertools.count() if place not in taken)

    def _forget_parent(self) -> None:
        """In a child: close what is the supervisor's alone.

        All must see its end, and none may signal it: a child may run as another user.
        """
        self._signals.close()
        for worker in self._workers:
            worker.channel.close()
        if self._admin is not None:
            self._admin[1].close()
        self._selector.close()

    def _receive(self, worker: _Process) -> None:
        if worker not in self._workers:  # It ended in this very round.
            return
        received = worker.channel.receive()
        if received is None:
            self._selector.unregister(worker.channel)
            return
        message = received.message
        if message["type"] == "ready":
            self._is_ready(worker, message)
        elif message["type"] == "failed":
            worker.error = message["error"]
        elif message["type"] == "connection":
            self._pass_on(message, received.fds[0])
        elif message["type"] == "answer":
            self._answered(worker, message)

    def _is_ready(self, worker: _Process, message: dict[str, Any]) -> None:
        worker.ready = True
        worker.handlers = message["handlers"]
        self._agent_name = message["agent"]
        self._files = {path: _modified(path) for path in message["files"]}
        missing = self._options.processes - len(self._current())
        for _ in range(missing if not self._stopping else 0):
            self._spawn()
        if len(self._current(ready=True)) == self._options.processes:
            self._generation_is_ready()

    def _generation_is_ready(self) -> None:
        if not self._announced:
            self._announced = True
            addresses = [bound_address(listener) for listener in self._listeners]
            log_start(self._agent_name, addresses, self._options)
        systemd.notify("READY=1", f"STATUS={len(self._current())} workers")
        for worker in self._workers:
            if worker.generation != self._generation and not worker.leaving:
                worker.leaving = True
                worker.channel.send({"type": "hand-over"})
                self._kill_later(worker)

    def _current(self, *, ready: bool = False) -> list[_Process]:
        """The workers of this generation."""
        return [
            worker
            for worker in self._workers
            if worker.generation == self._generation and (worker.ready or not ready)
        ]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in self._workers:
                if worker.pid == pid:
                    self._ended(worker, os.waitstatus_to_exitcode(status))
                    break
            else:
                if self._admin is not None and pid == self._admin[0]:
                    self._admin_ended()

    def _ended(self, worker: _Process, exit_code: int) -> None:
        self._drain_channel(worker)
        self._workers.remove(worker)
        for question in list(self._questions.values()):
            question.asked.discard(worker)
        lost = self._retire(worker)
        if self._stopping or worker.leaving:
            self._running = not (self._stopping and not self._workers)
            return
        why = worker.error or _why(exit_code)
        if not self._announced:
            self._running = False
            raise StartError(why)
        if worker.generation != self._generation:
            return
        logger.error("worker %d died: %s; %d frames lost", worker.pid, why, lost)
        if not worker.ready and self._generation_is_new():
            self._give_up_generation()
            return
        self._restarts += 1
        self._back_off = _next_back_off(self._back_off, time.time() - worker.started)
        self._later(self._back_off, self._fill_up)

    def _drain_channel(self, worker: _Process) -> None:
        """Take what it said before it ended. Its end may still be open in a child of its own."""
        while worker.channel in self._selector.get_map():
            if not select.select([worker.channel], [], [], 0)[0]:
                self._selector.unregister(worker.channel)
                break
            self._receive(worker)
        worker.channel.close()

    def _retire(self, worker: _Process) -> int:
        """Keep what an ended worker had counted. Returns the frames that were in its hands."""
        totals = worker.totals(self._options.threads)
        with memoryview(self._board) as view, view.cast("q") as board:
            board[worker.place] = 0
        worker.memory.close()
        lost = totals.in_hand
        self._frames_lost += lost
        totals.end()
        self._retired.merge(totals)
        return lost

    def _fill_up(self) -> None:
        if not self._stopping:
            for _ in range(self._options.processes - len(self._current())):
                self._spawn()

    # --- replacing ---

    def _replace(self, why: str) -> None:
        if self._stopping or not self._announced:
            return
        crowded = len(self._workers) > (PLACES - 2) * self._options.processes
        if self._generation_is_new() or crowded:
            logger.warning("%s: the workers are being replaced already", why)
            return
        logger.info("%s: replacing the workers", why)
        systemd.notify(systemd.reloading())
        self._generation += 1
        self._spawn()

    def _generation_is_new(self) -> bool:
        """There are workers of the last generation, which this one has not replaced yet."""
        return any(
            worker.generation != self._generation and not worker.leaving for worker in self._workers
        )

    def _give_up_generation(self) -> None:
        logger.error("the workers are not replaced")
        for worker in self._current():
            worker.leaving = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        self._generation -= 1
        self._later(0, self._fill_up)
        systemd.notify("READY=1")

    def _pass_on(self, message: dict[str, Any], fd: int) -> None:
        """Give a connection of a worker that leaves to one that stays."""
        staying = [w for w in self._workers if w.ready and not w.leaving]
        with memoryview(self._board) as view, view.cast("q") as board:
            staying.sort(key=lambda worker: board[worker.place])
        for worker in staying:
            if worker.channel.send(message, [fd]):
                break
        os.close(fd)

    def _look_for_changes(self) -> None:
        changed = [path for path, modified in self._files.items() if _modified(path) != modified]
        if changed:
            self._files = {path: _modified(path) for path in self._files}
            self._replace(f"{changed[0]} changed")
        self._later(WATCH_INTERVAL, self._look_for_changes)

    # --- stopping ---

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping:
            logger.warning("%s again: killing the workers", number.name)
            for worker in self._workers:
                os.kill(worker.pid, signal.SIGKILL)
            return
        logger.info("stopping")
        systemd.notify("STOPPING=1")
        self._stopping = True
        self._close_listeners()
        for worker in self._workers:
            worker.channel.send({"type": "stop"})
            self._kill_later(worker)
        self._running = bool(self._workers)

    def _close_listeners(self) -> None:
        """Refuse connections from now on, unless systemd keeps them for the next one."""
        if not self._inherited:
            close_all(self._listeners)
            self._listeners = []

    def _kill_later(self, worker: _Process) -> None:
        def kill() -> None:
            if worker in self._workers:
                logger.error("worker %d does not end: killing it", worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

        self._later(self._options.drain_timeout + GRACE, kill)

    # --- asking the workers ---

    def _tell(self, message: dict[str, Any]) -> None:
        for worker in self._workers:
            if worker.ready:
                worker.channel.send(message)

    def _ask(self, message: dict[str, Any], done: Callable[[list[dict[str, Any]]], None]) -> None:
        """Ask all workers and call `done` with the answers that came in time."""
        number = next(self._ids)
        question = _Question({w for w in self._workers if w.ready and not w.leaving}, done)
        self._questions[number] = question
        for worker in question.asked:
            worker.channel.send({**message, "id": number})
        self._later(ANSWER_TIMEOUT if question.asked else 0, partial(self._close_question, number))

    def _answered(self, worker: _Process, message: dict[str, Any]) -> None:
        question = self._questions.get(message["id"])
        if question is None:
            return
        question.asked.discard(worker)
        question.answers.append({"worker": worker.pid, **message})
        if not question.asked:
            self._close_question(message["id"])

    def _close_question(self, number: int) -> None:
        question = self._questions.pop(number, None)
        if question is not None:
            question.done(question.answers)

    def _ping(self, interval: float) -> None:
        """Tell systemd that all is well, if all loops of all workers answer."""

        def answered(answers: list[dict[str, Any]]) -> None:
            if len(answers) == len([w for w in self._workers if w.ready and not w.leaving]):
                systemd.notify("WATCHDOG=1")

        self._ask({"type": "ping"}, answered)
        self._later(interval, partial(self._ping, interval))

    # --- the admin process ---

    def _start_admin(self) -> None:
        """A process of its own answers over HTTP: its threads and a fork don't go together."""
        listener = self._admin_listener
        if listener is None or self._stopping:
            return
        ours, theirs = Channel.pair()

        def run() -> int:
            from spop.server.admin import run_admin

            self._forget_parent()
            ours.close()
            for each in self._listeners:
                each.close()
            return run_admin(listener, theirs)

        self._admin = child(run), ours
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, self._admin_asks)
        if not self._announced:
            logger.info("admin on %s", bound_address(listener))

    def _admin_asks(self) -> None:
        if self._admin is None:
            return
        channel = self._admin[1]
        received = channel.receive()
        if received is None:
            self._selector.unregister(channel)
            return
        number = received.message["id"]

        def answer(answers: list[dict[str, Any]]) -> None:
            channel.send({"id": number, "status": self._status(answers)})

        if received.message["connections"]:
            self._ask({"type": "status", "limit": MAX_CONNECTIONS_SHOWN}, answer)
        else:
            answer([])

    def _admin_ended(self) -> None:
        assert self._admin is not None
        channel = self._admin[1]
        with contextlib.suppress(KeyError):
            self._selector.unregister(channel)
        channel.close()
        self._admin = None
        if not self._stopping:
            logger.error("the admin process died; it is started again")
            self._later(1.0, self._start_admin)

    def _status(self, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """All there is to see, as `Server.status` has it."""
        totals = Totals()
        totals.merge(self._retired)
        for worker in self._workers:
            if worker.ready:
                totals.merge(worker.totals(self._options.threads))
        connections = [
            {**each, "worker": answer["worker"]}
            for answer in answers
            for each in answer["connections"]
        ]
        return {
            "agent": self._agent_name,
            "version": __version__,
            "codec": codec.IMPLEMENTATION,
            "started": self._started,
            "alive": True,
            "ready": bool(self._current(ready=True)) and not self._stopping,
            "workers": [
                {
                    "pid": worker.pid,
                    "started": worker.started,
                    "ready": worker.ready,
                    "leaving": worker.leaving,
                    "connections": worker.totals(self._options.threads).connections,
                }
                for worker in self._workers
            ],
            "restarts": self._restarts,
            "frames_lost": self._frames_lost,
            **totals_status(totals),
            "connections": connections[:MAX_CONNECTIONS_SHOWN],
        }

    # --- timers ---

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._ids), call))

    def _timeout(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()


def _why(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"


def _next_back_off(last: float, lived: float) -> float:
    """Seconds until a worker is started again."""
    if lived >= STEADY:
        return 0.0
    return min(MAX_BACK_OFF, max(0.1, 2 * last))


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _raise_file_limit() -> None:
    """Each connection takes a file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
