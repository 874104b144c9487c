"""Worker processes: started, restarted when they die, replaced on request, stopped.

The supervisor has the listening sockets, and its workers inherit them. It never imports the
agent: each generation of workers imports it anew. It has one thread and handles no frame, so
that no handler can stop it. A worker that is replaced gives its connections to the new ones,
each when nothing is in flight on it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from spop.address import Address
from spop.counters import Cell
from spop.errors import reason
from spop.logs import SafeLogger, fields
from spop.metrics import Description
from spop.options import Options
from spop.poller import LONGEST_WAIT
from spop.server import systemd
from spop.server.admin_process import AdminProcess
from spop.server.balance import Balance
from spop.server.board import PLACES, Board
from spop.server.channel import Channel, Received
from spop.server.children import WorkerProcess, Workers, child
from spop.server.health import Health, service_health
from spop.server.life_log import log_start, log_stop
from spop.server.listeners import bound_address, close_all, listen, listen_all
from spop.server.messages import check_message
from spop.server.moves import Moves
from spop.server.orphans import end_with_parent
from spop.server.privileges import check_privileges, drop_privileges
from spop.server.questions import Answers, Questions
from spop.server.reload_log import ReloadLog
from spop.server.sharing import Sharing
from spop.server.signals import GRACE, Hurry, Signals
from spop.server.status import Status, summed
from spop.server.stuck import STEPS, StuckWorkers
from spop.server.timers import Timer, Timers
from spop.server.worker import Load, run_worker
from spop.server.worker_life import WorkerLife
from spop.start_errors import StartError

logger: SafeLogger = SafeLogger("spop.server")

STEADY = 10.0
"""Seconds that a worker must have lived to be restarted at once."""
MAX_BACK_OFF = 30.0
WATCH_INTERVAL = 0.5
HURRY_GRACE = 1.0
"""Seconds that workers have to end after a second signal, before they are killed."""
MAX_CONNECTIONS_SHOWN = 1000


class Supervisor:
    """Serves an agent in worker processes.

    Args:
        load: imports the agent. Each worker calls it.
        options: the server's.
        watch: replace the workers when a source file of the agent has changed.

    Raises:
        ValueError: the options' user or group can't be used.
        OSError: the system has no memory or file descriptors left.
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
        self._timers = Timers()
        self._listeners: list[socket.socket] = []
        self._ports: list[int | None] = []
        self._inherited = False
        self._board = Board(options.processes, options.threads)
        self._workers = Workers(self._board)
        self._sharing = Sharing(
            self._workers, self._board, self._timers, options, self._generation_is_new
        )
        self._reload_log = ReloadLog(self._workers)
        self._questions = Questions(self._timers)
        self._moves = Moves(self._sharing, self._timers)
        self._stuck = StuckWorkers(self._workers, self._timers, options.stuck_timeout)
        self._worker_life = WorkerLife(
            self._workers, options, self._timers, self._replace_if_possible
        )
        self._restart_reasons: Counter[str] = Counter()
        self._admin: AdminProcess | None = None
        self._generation = 0
        self._back_off = 0.0
        self._running = True
        self._announced = False
        self._wanted = ""
        self._hurry = Hurry()
        self._restarts = 0
        self._stopping = 0.0
        self._lame_until: Timer | None = None
        self._agent_name = ""
        self._files: dict[str, float] = {}
        self._started = time.time()

    # --- the whole ---

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. SIGHUP replaces the workers, SIGUSR1 logs.

        Raises:
            StartError: an address can't be listened on, no process can be started, or the agent
                can't be loaded.
        """
        _raise_file_limit()
        try:
            self._listen()
            with self._signals:
                self._serve()
        except OSError as error:
            if self._announced:
                raise
            raise StartError(f"cannot start: {reason(error)}") from None
        finally:
            self._close()

    def _listen(self) -> None:
        self._listeners = systemd.inherited_listeners()
        self._inherited = bool(self._listeners)
        try:
            if not self._inherited:
                self._listeners = listen_all(self._options)
                self._ports = self._options.port_numbers
            if self._options.admin:
                listener = listen(Address.parse(self._options.admin))
                self._admin = AdminProcess(
                    listener, self._board, self._options, self._selector, self._timers,
                    self._fork_admin, self._ask_status,
                )  # fmt: skip
        except (OSError, ValueError) as error:
            raise StartError(reason(error)) from None

    def _serve(self) -> None:
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)
        if self._admin is not None:
            self._admin.start()
            self._admin.log_start()
        self._spawn()
        if interval := systemd.watchdog_interval():
            self._feed_watchdog(interval / 3)
        self._worker_life.start()
        if self._watch:
            self._timers.call_later(WATCH_INTERVAL, self._look_for_changes)
        if self._options.stuck_timeout and not (self._watch and _has_terminal()):
            self._stuck.start()
        while self._running:
            self._run_round()
        log_stop(time.monotonic() - self._stopping, self._workers.totals())

    def _run_round(self) -> None:
        wait, row = self._timers.run_due(), self._board.supervisor
        row[Cell.ROUND_BEGAN] = 0
        found = self._selector.select(None if wait is None else min(wait, LONGEST_WAIT))
        row[Cell.ROUND_BEGAN] = time.monotonic_ns()
        for key, _ in found:
            key.data()

    def _close(self) -> None:
        for worker in self._workers:
            worker.kill(signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        if self._admin is not None:
            self._admin.close()
        self._selector.close()
        self._close_listeners()

    def _signalled(self) -> None:
        for number in self._signals.received():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._replace("SIGHUP")
            elif number == signal.SIGUSR1:
                self._log_status()
            else:
                self._stop(number)

    # --- processes ---

    def _spawn(self) -> bool:
        """Start a worker of this generation. False: the system does not allow it."""
        place, parent = self._board.take(), os.getpid()

        def run(channel: Channel) -> int:
            rows = self._board.rows(place)
            balance = Balance(self._board, place, partial(channel.send, {"type": "uneven"}))
            return run_worker(
                self._options, self._load, self._listeners, self._ports, channel, rows, balance,
                parent,
            )  # fmt: skip

        try:
            pid, channel = self._fork(run, [self._admin.listener] if self._admin else [])
        except OSError as error:
            self._board.free(place)
            self._cannot_start(f"cannot start a worker: {reason(error)}")
            return False
        number = self._workers.free_number(self._generation)
        worker = WorkerProcess(pid, channel, self._generation, place, number)
        self._workers.add(worker)
        try:
            self._selector.register(channel, selectors.EVENT_READ, partial(self._receive, worker))
        except OSError as error:
            worker.end(signal.SIGKILL, f"cannot hear it: {reason(error)}")
        if self._options.start_timeout:
            self._watch_start(worker, STEPS)
        return True

    def _cannot_start(self, why: str) -> None:
        if not self._announced:
            raise StartError(why)
        logger.error("%s", why, extra=fields("worker not started", reason=why))
        self._lost(why, ready=False, lived=0.0)

    def _watch_start(self, worker: WorkerProcess, steps: int) -> None:
        """End a worker that is not ready in time.

        Time does not pass while the supervisor or, by a signal, the worker is stopped.
        """
        if worker not in self._workers or worker.ready or worker.leaving:
            return
        if steps:
            left = steps - (not worker.stopped)
            delay = self._options.start_timeout / STEPS
            self._timers.call_later(delay, partial(self._watch_start, worker, left))
        else:
            why = f"it did not start in {self._options.start_timeout:g} s"
            what = fields("worker not started", worker=worker.pid, reason=why)
            logger.error("worker %d: %s", worker.pid, why, extra=what)
            worker.error = StartError(why)
            self._stuck.end(worker)

    def _fork_admin(self, run: Callable[[Channel], int]) -> tuple[int, Channel]:
        parent = os.getpid()

        def run_as_user(channel: Channel) -> int:
            # Before the user changes, who may not be allowed to read Python's files.
            importlib.import_module("spop.server.admin")
            importlib.import_module("concurrent.futures.thread")  # asyncio's threads need it.
            drop_privileges(self._options)
            end_with_parent(parent, signal.SIGKILL)
            return run(channel)

        return self._fork(run_as_user, self._listeners)

    def _fork(
        self, run: Callable[[Channel], int], foreign: list[socket.socket]
    ) -> tuple[int, Channel]:
        """Start a child with one end of a channel. It closes the `foreign` listeners."""
        ours, theirs = Channel.pair()

        def run_alone() -> int:
            self._forget_parent()
            ours.close()
            for listener in foreign:
                listener.close()
            return run(theirs)

        try:
            return child(run_alone), ours
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def _forget_parent(self) -> None:
        """In a child: close what belongs to the supervisor alone.

        Each process has to notice the supervisor's end. No child, which may run as another
        user, may send it signals through the pipe.
        """
        self._signals.close()
        for worker in self._workers:
            worker.channel.close()
        if self._admin is not None:
            self._admin.close_channel()
        self._selector.close()

    def _receive(self, worker: WorkerProcess) -> bool:
        """Take the messages that have come from a worker. Returns whether there were any."""
        if worker not in self._workers:  # It ended earlier in this round.
            return False
        received: list[Received] | None = None
        try:
            received = worker.channel.receive()
            for message, fds in received or []:
                check_message(message, fds)
        except Exception as error:
            what = fields("malformed message", worker=worker.pid, error=reason(error))
            line = "worker %d sends what is no message: %s"
            logger.error(line, worker.pid, reason(error), extra=what)
            worker.end(signal.SIGKILL, "its messages are malformed")
            for fd in itertools.chain.from_iterable(fds for _, fds in received or []):
                os.close(fd)
            received = None
        if received is None:
            self._selector.unregister(worker.channel)
        for message, fds in received or []:
            self._take(worker, message, fds)
        return bool(received)

    def _take(self, worker: WorkerProcess, message: dict[str, Any], fds: list[int]) -> None:
        if message["type"] == "ready":
            self._is_ready(worker, message)
        elif message["type"] == "failed":
            worker.error = StartError(message["error"], message["traceback"], message["exit_code"])
        elif message["type"] == "connection":
            self._moves.offer(worker, message, fds)
        elif message["type"] == "moved":
            self._moves.answered(message)
        elif message["type"] == "uneven":
            self._sharing.level_soon()
        elif message["type"] == "answer":
            self._questions.answered(worker, message)
        elif message["type"] == "awake":
            self._stuck.answered(worker)

    def _is_ready(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        metrics = [Description.from_json(each) for each in message["metrics"]]
        self._workers.is_ready(worker, message["handlers"], metrics)
        self._agent_name = message["agent"]
        self._files = {path: _modified(path) for path in message["files"]}
        self._fill_up()
        self._sharing.workers_changed()
        current = self._workers.of(self._generation)
        if sum(each.ready for each in current) == self._options.processes:
            self._generation_is_ready()

    def _generation_is_ready(self) -> None:
        if not self._announced:
            self._announced = True
            addresses = [bound_address(listener) for listener in self._listeners]
            log_start(self._agent_name, addresses, self._options)
        systemd.notify("READY=1", f"STATUS={self._options.processes} workers")
        for worker in self._workers:
            if worker.generation != self._generation and not worker.leaving:
                self._workers.leaves(worker)
                worker.channel.send({"type": "hand-over"})
                self._kill_later(worker)
        self._reload_log.ready()
        self._reload_log.look()
        self._sharing.workers_changed()
        self._replace_again()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = next((worker for worker in self._workers if worker.pid == pid), None)
            over = os.WIFEXITED(status) or os.WIFSIGNALED(status)
            if worker is not None and over:
                self._ended(worker, os.waitstatus_to_exitcode(status))
            elif worker is not None:
                self._workers.is_stopped(worker, os.WIFSTOPPED(status))
                self._sharing.workers_changed()
            elif over and self._admin is not None and pid == self._admin.pid:
                self._admin.ended()

    def _ended(self, worker: WorkerProcess, exit_code: int) -> None:
        self._drain_channel(worker)
        lost = self._workers.remove(worker)
        self._sharing.workers_changed()
        self._questions.ended(worker)
        self._moves.ended(worker)
        self._reload_log.look()
        if self._board.draining or worker.leaving:
            self._running = not (self._board.draining and not self._workers)
            self._replace_again()
            return
        if not self._announced:
            raise worker.error or StartError(f"cannot start: a worker ended: {_why(exit_code)}")
        error = worker.error or StartError(_why(exit_code))
        what = fields("worker died", worker=worker.pid, reason=str(error), frames_lost=lost)
        line = "worker %d died: %s; %d frames lost"
        logger.failure_elsewhere(error.traceback, line, worker.pid, error, lost, extra=what)
        self._restarts += 1
        self._restart_reasons[str(error)] += 1
        if worker.generation == self._generation:
            self._lost(str(error), worker.ready, worker.lived)

    def _lost(self, why: str, ready: bool, lived: float) -> None:
        """A worker of this generation is missing. Was it ready, and how long has it lived?"""
        if not ready and self._generation_is_new():
            self._give_up_generation(why)
            return
        self._back_off = _next_back_off(self._back_off, lived)
        self._timers.call_later(self._back_off, self._fill_up)

    def _drain_channel(self, worker: WorkerProcess) -> None:
        """Take a worker's last messages. A child of it may hold the channel open, so don't wait."""
        while worker.channel in self._selector.get_map():
            if not self._receive(worker) and worker.channel in self._selector.get_map():
                self._selector.unregister(worker.channel)
        worker.channel.close()

    def _fill_up(self) -> None:
        missing = self._options.processes - len(self._workers.of(self._generation))
        while missing > 0 and not self._board.draining and self._spawn():
            missing -= 1

    # --- replacing ---

    def _replace(self, why: str) -> None:
        if self._board.draining:
            return
        if not self._may_replace():
            what = fields("reload later", reason=why)
            logger.info("%s: the workers are replaced once more after this", why, extra=what)
            self._wanted = why
            return
        systemd.notify(systemd.reloading())
        self._wanted = ""
        self._generation += 1
        self._reload_log.begun(why, self._generation)
        self._spawn()

    def _replace_if_possible(self, why: str) -> bool:
        possible = self._may_replace() and not self._board.draining
        if possible:
            self._restart_reasons[why.partition(": ")[2]] += 1
            self._replace(why)
        return possible

    def _may_replace(self) -> bool:
        """No start or replacement is under way, and there is a place for new workers."""
        crowded = len(self._workers) > (PLACES - 2) * self._options.processes
        return self._announced and not self._generation_is_new() and not crowded

    def _replace_again(self) -> None:
        """Replace the workers, if this was asked for while it was not possible."""
        if self._wanted and self._may_replace():
            self._replace(self._wanted)

    def _generation_is_new(self) -> bool:
        """Workers of the last generation still serve: this one has not replaced them yet."""
        return any(
            worker.generation != self._generation and not worker.leaving for worker in self._workers
        )

    def _give_up_generation(self, why: str) -> None:
        self._reload_log.failed(why)
        for worker in self._workers.of(self._generation):
            self._workers.leaves(worker)
            worker.kill(signal.SIGKILL)
        self._generation -= 1
        self._timers.call_later(0, self._fill_up)
        systemd.notify("READY=1")
        self._timers.call_later(0, self._replace_again)

    def _look_for_changes(self) -> None:
        changed = [path for path, modified in self._files.items() if _modified(path) != modified]
        if changed:
            self._files = {path: _modified(path) for path in self._files}
            self._replace(f"{changed[0]} changed")
        self._timers.call_later(WATCH_INTERVAL, self._look_for_changes)

    # --- stopping ---

    def _stop(self, number: signal.Signals) -> None:
        hurries = self._hurry.signalled()
        if self._board.draining:
            if hurries and self._lame_until is not None:
                self._lame_until.cancel()
                self._drain()
            elif hurries:
                self._stop_now(number)
            return
        self._stopping = time.monotonic()
        logger.info("stopping", extra=fields("stopping"))
        systemd.notify("STOPPING=1")
        self._board.draining = True
        self._be_lame()

    def _be_lame(self) -> None:
        """Serve on, but not ready, for as long as the option says. Then drain."""
        if self._options.lame_duck and any(worker.ready for worker in self._workers):
            for worker in self._workers:
                worker.channel.send({"type": "lame"})
            self._lame_until = self._timers.call_later(self._options.lame_duck, self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        self._lame_until = None
        self._stuck.stop()
        self._close_listeners()
        for worker in self._workers:
            if worker.ready:
                worker.channel.send({"type": "stop"})
                self._kill_later(worker)
            else:
                worker.kill(signal.SIGTERM)
                self._timers.call_later(HURRY_GRACE, partial(self._end_start, worker))
        self._running = bool(self._workers)

    def _end_start(self, worker: WorkerProcess) -> None:
        """Kill a worker that still starts: it has nothing in hand. It may be ready by now."""
        if worker.ready:
            self._kill_later(worker)
        else:
            worker.kill(signal.SIGKILL)

    def _stop_now(self, number: signal.Signals) -> None:
        what = fields("stopping now", signal=number.name)
        logger.warning("%s again: waiting for handlers no longer", number.name, extra=what)
        for worker in self._workers:
            worker.channel.send({"type": "hurry"})
            self._timers.call_later(HURRY_GRACE, partial(worker.kill, signal.SIGKILL))

    def _close_listeners(self) -> None:
        """Refuse connections from now on, unless systemd keeps the sockets open."""
        if not self._inherited:
            close_all(self._listeners)
            self._listeners = []

    def _kill_later(self, worker: WorkerProcess) -> None:
        def kill() -> None:
            if worker in self._workers:
                what = fields("worker killed", worker=worker.pid)
                logger.error("worker %d does not end: killing it", worker.pid, extra=what)
                worker.kill(signal.SIGKILL)

        self._timers.call_later(self._options.drain_timeout + GRACE, kill)

    # --- status ---

    def _health(self) -> Health:
        return service_health(self._board, self._options.stuck_timeout)

    def _feed_watchdog(self, interval: float) -> None:
        if self._health().alive:
            systemd.notify("WATCHDOG=1", timeout=0.0)
        self._timers.call_later(interval, partial(self._feed_watchdog, interval))

    def _log_status(self) -> None:
        """Log the service's status; each worker logs its connections."""
        self._status().log(logger)
        for worker in self._workers:
            if worker.ready:
                worker.channel.send({"type": "log"})

    def _ask_status(self, connections: bool, done: Callable[[Status], object]) -> None:
        """Call `done` with the status; with the workers' connections, if they are wanted."""
        asked = self._workers.serving() if connections else []
        self._questions.ask(
            asked,
            {"type": "status", "limit": MAX_CONNECTIONS_SHOWN},
            lambda answers: done(self._status(answers)),
        )

    def _status(self, answers: Answers = ()) -> Status:
        connections = [
            {**each, "worker": answer["worker"]}
            for answer in answers
            for each in answer["connections"]
        ]
        return Status.of(
            self._workers.totals(),
            self._health(),
            agent=self._agent_name,
            started=self._started,
            draining=self._board.draining,
            workers=self._workers.statuses(self._options.stuck_timeout),
            restarts=self._restarts,
            restart_reasons=dict(self._restart_reasons.most_common(20)),
            frames_lost=self._workers.frames_lost,
            without_handler=summed(each["without_handler"] for each in answers),
            connections=connections[:MAX_CONNECTIONS_SHOWN],
        )


def _why(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"


def _next_back_off(last: float, lived: float) -> float:
    """Seconds until a worker that died is restarted."""
    if lived >= STEADY:
        return 0.0
    return min(MAX_BACK_OFF, max(0.1, 2 * last))


def _has_terminal() -> bool:
    """Whether it runs on a terminal, where somebody may be debugging a handler."""
    return sys.stdin is not None and sys.stdin.isatty()


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
