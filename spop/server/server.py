"""The server of one process: it puts listeners, loops and executor together."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from spop.address import Address, Addresses
from spop.agent import Agent
from spop.counters import OWN, ROUTES, Cell, Cells, Totals, new_row, row_size
from spop.forks import serve_in_this_thread
from spop.logs import RateLimitedLog, SafeLogger, fields, level_number
from spop.options import DEFAULT_BIND, Options, ServeOptions
from spop.parameters import described, is_async
from spop.server.accepting import Acceptor
from spop.server.admission import Admission
from spop.server.balance import SETTLE, Balance, is_uneven, surplus
from spop.server.connection_log import ConnectionLog
from spop.server.ending import STEP, Hurries, log_left_behind, wait_for_end
from spop.server.engines import Engines
from spop.server.executor import Executor
from spop.server.giving import GiveAway, Taken
from spop.server.health import READY_WITHIN, Health, health_of, oldest_round
from spop.server.life_log import log_start, log_stop
from spop.server.listeners import bound_address, close_all, listen_all, peer_host
from spop.server.loop import Loop
from spop.server.signals import GRACE, START_GRACE, Signals, alarm
from spop.server.slow import SlowLog
from spop.server.status import Status, summed
from spop.server.stuck import StuckLog
from spop.start_errors import users_part

if TYPE_CHECKING:
    import ssl

logger: SafeLogger = SafeLogger("spop.server")

STUCK = 1.0
"""Seconds after which the first loop is taken to be stuck, so that another thread closes what it
accepts from."""
YIELD = 0.005
"""Seconds for which a process leaves a new connection to one with fewer connections."""


class Server:
    """Serves an agent on some addresses, in this process.

    Args:
        agent: its handlers must be registered.
        bind: one address or several, each ``HOST:PORT`` (port 0: any free one) or
            ``unix:PATH``.
        options: all options; by default they are made of `bind` and `more_options`.
        listeners: sockets that listen already, instead of `bind`.
        ports: of each of them, the number of its port in a range of ports, or None. The server
            accepts from these when `accept_ports` says so.
        rows: where to count, a row for each loop and one for the executor.
        balance: knows the other processes that accept from the same sockets.
        tls: the context for TCP; by default it is made from the options.
        more_options: options by name, as in `Options`.

    Raises:
        ValueError: an option is out of range.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        agent: Agent,
        bind: Addresses = DEFAULT_BIND,
        *,
        listeners: list[socket.socket] | None = None,
        ports: list[int | None] | None = None,
        rows: list[Cells] | None = None,
        balance: Balance | None = None,
        tls: ssl.SSLContext | None = None,
        options: Options | None = None,
        **more_options: Unpack[ServeOptions],
    ) -> None:
        self.agent = agent
        self.options: Options = options or Options.of(bind, **more_options).alone()
        self.engines: Engines = Engines()
        self.admission: Admission = Admission(self.options, balance)
        self.tls: ssl.SSLContext | None = tls or tls_context(self.options)
        self._rows = _rows(rows, self.options.threads + 1, agent)
        self.executor: Executor = Executor(
            agent, self.options.pool_size, self.options.max_queue, self._rows[-1]
        )
        self.slow_log: SlowLog = SlowLog(self.options.slow_handler)
        self.connection_log: ConnectionLog = ConnectionLog(
            self.options.log_connections, self.options.log_health
        )
        agent.failure_level = level_number(self.options.log_handlers)
        self._owns_listeners = listeners is None
        self._listeners = listeners or []
        self._ports = dict(zip(self._listeners, ports or [], strict=False))
        self._acceptor: Acceptor
        self._counting = threading.Lock()
        self._level_ordered = False
        self._balance = balance
        self._yielded = False
        self._is_guest = False
        self._loops: list[Loop] = []
        self._lifespans = contextlib.ExitStack()
        self._started = 0.0
        self._refusals = RateLimitedLog(logger, per_second=1)
        self._admin: Any = None
        self._stuck_log: StuckLog | None = None
        self.draining: bool = False
        self.lame: bool = False  # It serves, but tells all who ask that it is not ready.
        self.failed: BaseException | None = None
        """The error that a thread died of. It ends the server."""
        self.ends_process = False
        """The death of a thread ends the process at once, with status 1."""
        self._wake: Callable[[], object] = lambda: None
        self._hurries: Hurries | None = None

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens, with the ports that it was given."""
        return [bound_address(listener) for listener in self._listeners]

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def admin_address(self) -> Address | None:
        """Where /metrics and the status page are, if the `admin` option asks for them."""
        return self._admin.address if self._admin else None

    def start(self) -> None:
        """Listen and serve, in threads.

        Raises:
            OSError: an address can't be listened on.
            BaseException: a lifespan of the agent raised it.
        """
        try:
            self._start_loops()
        except BaseException as error:
            error.__traceback__ = users_part(error.__traceback__) or error.__traceback__
            raise
        self._loops[0].call_soon(self._accept)
        self._tell_start()

    def _start_loops(self) -> None:
        self._open()
        for loop in self._loops:
            loop.start()
        try:
            for loop in self._loops:
                loop.began.result()
        except BaseException:
            self.stop()
            raise

    def _open(self) -> None:
        """Listen, and make the loops without running them."""
        self.agent.check_config()
        if self._owns_listeners:
            self._listeners = listen_all(self.options)
        self._started = time.time()
        try:
            self._start_admin()
            self._make_loops()
        except BaseException:
            self._close()
            self._close_listeners()
            raise

    def _make_loops(self) -> None:
        """Make the loops, and set up the lifespans of the worker."""
        if not self.agent.handlers:
            what = fields("no handlers", agent=self.agent.name)
            logger.warning("agent %r has no handlers", self.agent.name, extra=what)
        loops = [
            Loop(self, self._rows[number], f"spop-loop-{number}")
            for number in range(self.options.threads)
        ]
        resources = self.agent.resources
        if resources:
            from spop.loop_life import LoopLife

            state = self._lifespans.enter_context(resources.worker())
            for number, loop in enumerate(loops):
                loop.life = LoopLife(resources, state, is_first=number == 0)
        self._loops = loops
        self._acceptor = Acceptor(loops[0], self._take)

    def _accept(self) -> None:
        """Call this in the thread of the first loop."""
        for listener in self._listeners:
            if self._ports.get(listener) is None:
                self._acceptor.add(listener)

    def _tell_start(self) -> None:
        self.agent.metrics.seal()
        if self._owns_listeners:
            self._start_stuck_log()
            log_start(self.agent.name, self.addresses, self.options)

    def _start_admin(self) -> None:
        # In a worker process `admin` is the supervisor's.
        if self.options.admin and self._owns_listeners:
            from spop.server.admin import AdminServer

            self._admin = AdminServer(self.options.admin, self, self.options.admin_host)
            self._admin.start()

    def _start_stuck_log(self) -> None:
        # A supervisor replaces workers that are stuck.
        if self.options.stuck_timeout:
            threads = [loop.thread for loop in self._loops]
            self._stuck_log = StuckLog(threads, self._rows[:-1], self.options.stuck_timeout)
            self._stuck_log.start()

    # --- connections ---

    def _take(self, listener: socket.socket) -> bool:
        """Accept a connection and give it to a loop. False: other processes may accept it."""
        port = self._ports.get(listener)
        balance = self._balance if port is None else None
        if balance is not None and not self._yielded and balance.yields():
            self._yielded = True
            self._acceptor.pause(listener, YIELD)
            return False
        self._yielded = False
        sock, sockaddr = listener.accept()
        host = peer_host(sockaddr)
        refusal = self.admission.admit(host)
        if refusal is not None:
            self._refuse(sock, host, refusal)
            return True
        loop = self._loops[0]
        if len(self._loops) > 1:
            loop = min(self._running_loops(), key=lambda loop: loop.load)
        add = partial(self._add, loop.add, sock, sockaddr, port, host=host)
        if loop is self._loops[0]:
            loop.steps.add(add)
        else:
            loop.bring(add)
        return True

    def accept_ports(self, numbers: Iterable[int], give_away: GiveAway) -> None:
        """Accept from these ports of ranges alone. Give the connections of others away."""
        owned = frozenset(numbers)

        def accept() -> None:
            for listener, number in self._ports.items():
                if number in owned:
                    self._acceptor.add(listener)
                elif number is not None:
                    self._acceptor.remove(listener)

        self._loops[0].call_soon(accept)
        for loop in self._loops:
            loop.give_ports(owned, give_away)

    def adopt(self, sock: socket.socket, state: dict[str, Any], taken: Taken) -> None:
        """Go on serving a connection that another process gave away, if this is possible."""

        def count(adopted: bool) -> None:
            if adopted and self._balance is not None and state["port"] is None:
                with self._counting:
                    self._balance.adopted()
            taken(adopted)

        if self.draining:
            sock.close()
            taken(False)
        else:
            self._adopt(sock, state, count)

    def _adopt(self, sock: socket.socket, state: dict[str, Any], taken: Taken) -> None:
        host = state.get("host")
        self.admission.adopt(host)
        loop = min(self._running_loops(), key=lambda loop: loop.movable_load)
        loop.bring(partial(self._add, loop.adopt, sock, state, host=host, added=taken))

    def _add(
        self,
        add: Callable[..., object],
        sock: socket.socket,
        *more: Any,
        host: str | None,
        added: Taken | None = None,
    ) -> None:
        """Call `add` for an admitted connection. If that fails, close the connection."""
        try:
            add(sock, *more)
        except Exception as error:
            self.connection_log.failed(host or "a unix socket", error)
            self.admission.release(host)
            sock.close()
            if added is not None:
                added(False)
        else:
            if added is not None:
                added(True)  # Before anything is read.

    def _refuse(self, sock: socket.socket, host: str | None, why: Cell) -> None:
        self._rows[0][why] += 1
        sock.close()
        what = fields("connection refused", peer=host, reason=_REASONS[why])
        self._refusals.warning("refused a connection from %s: %s", host, _REASONS[why], extra=what)

    # --- moving connections ---

    def movable_changed(self) -> None:
        """A loop has more or fewer connections that can be moved. Loops call this."""
        with self._counting:
            counts = [loop.movable for loop in self._loops]
            if self._balance is not None:
                self._balance.tell_movable(sum(counts))
            if is_uneven(counts) and not self._level_ordered:
                self._level_ordered = True
                self._level_in(SETTLE)

    def _level_in(self, seconds: float) -> None:
        first = self._loops[0]
        first.call_soon(partial(first.call_later, seconds, self._level))

    def _level(self) -> None:
        """Have the loops with too many connections give some to the others."""
        running = self._running_loops()
        with self._counting:
            self._level_ordered = len(running) < len(self._loops)
            counts = [loop.movable for loop in running]
        for loop, count in zip(running, surplus(counts), strict=True):
            if count:
                loop.spare(count, self._give_to_loop, partial(self._has_too_many, loop))
        if self._level_ordered:
            self._level_in(READY_WITHIN)

    def _running_loops(self) -> list[Loop]:
        """The loops without those that a handler keeps; all, if it keeps all."""
        running = [
            loop
            for loop, row in zip(self._loops, self._rows, strict=False)
            if oldest_round([row]) <= READY_WITHIN
        ]
        return running or self._loops

    def _has_too_many(self, loop: Loop) -> bool:
        return loop.movable > 1 + min(each.movable_load for each in self._running_loops())

    def _give_to_loop(self, sock: socket.socket, state: dict[str, Any], taken: Taken) -> None:
        # It stays in this process, which closes it if it can't be served.
        self._adopt(socket.socket(fileno=sock.detach()), state, lambda _: taken(True))

    def spare(self, count: int, give_away: GiveAway, has_too_many: Callable[[], bool]) -> None:
        """Give so many connections to another process, each once it is at rest."""
        remaining = [loop.movable for loop in self._loops]
        given = [0] * len(remaining)
        for _ in range(min(count, sum(remaining))):
            highest = remaining.index(max(remaining))
            remaining[highest] -= 1
            given[highest] += 1
        for loop, share in zip(self._loops, given, strict=True):
            if share:
                loop.spare(share, give_away, has_too_many)

    # --- status ---

    def totals(self) -> Totals:
        """The sums of all rows."""
        totals = Totals()
        for row in self._rows:
            totals.add(row, self.agent.handlers, self.agent.metrics.descriptions())
        return totals

    def connections(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The connections, for people; up to `limit` of them."""
        found = itertools.chain.from_iterable(loop.describe() for loop in self._loops)
        return list(itertools.islice(found, limit))

    def wake_loops(self, done: Callable[[], object]) -> None:
        """Wake all loops. The last one to run a round calls `done`, in its thread."""
        waiting = set(self._loops)

        def came_round(loop: Loop) -> None:
            waiting.discard(loop)
            if not waiting:
                done()

        for loop in self._loops:
            loop.call_soon(partial(came_round, loop))

    def health(self) -> Health:
        """Whether it serves and takes connections, read from the cells that its loops write."""
        health = self._loops_health()
        ready = health.ready and bool(self._loops) and not (self.draining or self.lame)
        return Health(health.alive, ready)

    def is_ready(self) -> bool:
        """Whether no present round of a loop is older than a second. Any thread may ask.

        This answers a health check by HELLO. A server that drains is ready here: after a reload
        the other end has no other connection to ask on.
        """
        return not self.lame and self._loops_health().ready

    def _loops_health(self) -> Health:
        health = health_of(oldest_round(self._rows[:-1]), self.options.stuck_timeout)
        return health if self.failed is None else Health(False, False)

    def thread_died(self, error: BaseException) -> None:
        """A loop calls this in its thread when it can't go on.

        Without that loop the service would be half dead, so all of it ends.
        """
        try:
            name = threading.current_thread().name
            logger.failure(error, "%s died", name, extra=fields("thread died", thread=name))
            if self.failed is None:
                self.failed = error
            if self.ends_process:
                logging.shutdown()
        finally:  # Even if there is no memory to tell of it.
            if self.ends_process:
                os._exit(1)
        self.stop_accepting()
        for loop in self._loops:
            loop.drain(self.options.drain_timeout)
        self._wake()

    def status(self, *, connections: bool = True) -> Status:
        """Counts, health and, if they are wanted, the connections."""
        return Status.of(
            self.totals(),
            self.health(),
            agent=self.agent.name,
            started=self._started,
            draining=self.draining,
            without_handler=self.without_handler(),
            connections=self.connections() if connections else [],
        )

    def without_handler(self) -> dict[str, int]:
        """Number of messages that no handler is for, by name."""
        return summed(dict(loop.dispatcher.unknown) for loop in self._loops)

    # --- ending ---

    def stop_accepting(self) -> None:
        """Accept no further connections. Other processes accept those that wait."""
        if self._balance is not None:
            self._balance.leave()
        first, stopped, began = self._loops[0], threading.Event(), time.monotonic()

        def stop() -> None:
            self._forget_listeners()
            stopped.set()

        first.call_soon(stop)
        while not stopped.wait(STEP):
            if not first.alive or time.monotonic() - began > STUCK:
                self._close_listeners()
                return

    def _forget_listeners(self) -> None:
        """Call this in the thread of the first loop, which accepts."""
        for listener in self._listeners:
            self._acceptor.remove(listener)
        self._close_listeners()

    def hand_over(self, give_away: GiveAway, hurries: Hurries) -> None:
        """As `stop`, but give the connections to another process."""
        self._end(lambda loop, timeout: loop.hand_over(give_away, timeout), hurries)

    def stop(self, hurries: Hurries | None = None) -> None:
        """Stop listening, answer the frames in hand, say DISCONNECT, end the threads.

        What has not ended after the drain timeout is logged and left behind, in its thread.

        Args:
            hurries: as of `wait_for_end`.
        """
        self._end(lambda loop, timeout: loop.drain(timeout), hurries or self._hurries)

    def drain(self) -> None:
        """Give no more connections away. Any thread may call this during `hand_over`."""
        for loop in self._loops:
            loop.drain(self.options.drain_timeout)

    def _end(self, end: Any, hurries: Hurries | None) -> None:
        if not self._loops:
            return
        if self._is_guest:
            raise RuntimeError("a server on an event loop ends when its task is cancelled")
        self.draining = True
        interrupt: KeyboardInterrupt | None = None
        try:
            self.stop_accepting()
        except KeyboardInterrupt as error:  # As in `wait_for_end`.
            interrupt = error
        for loop in self._loops:
            end(loop, self.options.drain_timeout)
        try:
            wait_for_end(self._loops, self.options.drain_timeout, hurries)
            if interrupt is not None:
                raise interrupt
        finally:
            self._close_listeners()
            self._close()

    def _close(self) -> None:
        """End the threads that are left, after the loops have ended."""
        self.executor.stop()
        # A guest's loop has ended: its thread is the caller's, and goes on.
        log_left_behind([] if self._is_guest else self._loops, self.executor.running())
        self._loops = []
        try:
            self._lifespans.close()
        except Exception as error:
            logger.failure(error, "a lifespan failed", extra=fields("lifespan failed"))
        if self._stuck_log is not None:
            self._stuck_log.stop()
        if self._admin is not None:
            self._admin.stop()
            self._admin = None

    def _close_listeners(self) -> None:
        """Close them; the files of unix sockets are the supervisor's if it made them."""
        if self._owns_listeners:
            close_all(self._listeners)
        else:
            for listener in self._listeners:
                listener.close()
        self._listeners = []

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, in the main thread. SIGUSR1 logs the connections.

        The process is killed 5 s after the drain timeout, if an inline handler has not ended, and
        1 s after the signal, if it still starts.

        Raises:
            OSError: an address can't be listened on.
            BaseException: the error that a thread died of.
        """
        numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
        longest = self.options.lame_duck + self.options.drain_timeout + GRACE
        with Signals(*numbers, end_after=START_GRACE) as signals:
            self._wake, self._hurries = signals.wake, signals.hurry
            with self:
                signals.end_after(longest)
                self._say_where()
                while signals.wait() == signal.SIGUSR1:
                    self.status(connections=False).log(logger)
                    self.log_connections()
                alarm.order(longest)  # The signal may have come during the start.
                stopping = time.monotonic()
                logger.info("stopping", extra=fields("stopping"))
                self._be_lame(signals)
        log_stop(time.monotonic() - stopping, self.totals())

    def _say_where(self) -> None:
        """For a script that has configured no logging, and has a standard error."""
        if not logger.logger.hasHandlers() and sys.stderr is not None:
            where = ", ".join(map(str, self.addresses))
            print(f"agent {self.agent.name!r} serves on {where}", file=sys.stderr, flush=True)

    def be_lame(self) -> None:
        """Serve on, but tell all who ask that it is not ready.

        By half of the time HAProxy knows. Up to 3.0 it keeps using the connections that it has, so
        they are ended then.
        """
        self.lame = True
        for loop in self._loops:
            if self.options.lame_duck:
                loop.end_old(self.options.lame_duck / 2)

    def _be_lame(self, signals: Signals) -> None:
        """Serve on, but not ready, for as long as the option says."""
        end = time.monotonic() + self.options.lame_duck
        self.be_lame()
        while (left := end - time.monotonic()) > 0 and not signals.hurry(left):
            pass

    async def run_async(self, ready: Callable[[Self], object] | None = None) -> None:
        """Serve on the running event loop, until this task is cancelled.

        Then it answers the frames in hand, for up to `drain_timeout` seconds, and ends the
        connections with a DISCONNECT. Then it raises the CancelledError. `ready` is called with
        this server once it listens.

        Raises:
            OSError: an address can't be listened on.
            ValueError: an option asks for more than one loop, or for another event loop.
        """
        from spop.server.event_loop import serve_here

        self._check_one_loop()
        if ready is not None and is_async(ready):
            raise TypeError(f"ready: {described(ready)} is async def; a plain def is needed")
        self._open()
        self._is_guest = True
        (loop,) = self._loops
        loop.thread = threading.current_thread()
        serve_in_this_thread()
        try:
            await serve_here(
                loop, partial(self._begin_here, ready), partial(self._drain_here, loop)
            )
        finally:
            serve_in_this_thread(False)
            loop.close()
            self._close_listeners()
            self._close()

    def _check_one_loop(self) -> None:
        for each in dataclasses.fields(self.options):
            value = getattr(self.options, each.name)
            if each.name in ("threads", "event_loop") and value != each.default:
                raise ValueError(
                    f"{each.name} is {value!r}, but it runs on the event loop it is in"
                )

    def _begin_here(self, ready: Callable[[Self], object] | None) -> None:
        self._accept()
        self._tell_start()
        if ready is not None:
            ready(self)

    def _drain_here(self, loop: Loop) -> None:
        self.draining = True
        self._forget_listeners()
        loop.drain(self.options.drain_timeout)

    def log_connections(self) -> None:
        """Log a line for each connection, with its state."""
        connections = self.connections()
        count = len(connections)
        logger.info("%d connections", count, extra=fields("connections", count=count))
        for each in connections:
            text = " ".join(f"{key}={each[key]!r}" for key in each)
            # `peer` and `engine` are what other lines call them.
            peer = {"peer": each.pop("address"), "engine": each.pop("engine")}
            logger.info("connection %s", text, extra=fields("connection", **peer, **each))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.stop()
        # The death of a thread is the cause of most other errors; an interrupt is its own.
        if self.failed is not None and (error is None or isinstance(error, Exception)):
            raise self.failed


_REASONS = {
    Cell.REFUSED_CONNECTIONS: "max_connections is reached",
    Cell.REFUSED_PER_PEER: "max_connections_per_peer is reached",
    Cell.REFUSED_NOT_ALLOWED: "no network of allow has it",
}


def _rows(rows: list[Cells] | None, count: int, agent: Agent) -> list[Cells]:
    """The rows, or new ones. The agent's own metrics are in the last."""
    handlers = len(agent.handlers)
    rows = rows or [new_row(handlers) for _ in range(count)]
    if any(len(row) < row_size(handlers) for row in rows):
        raise ValueError(f"{handlers} handlers have no room for their counts")
    agent.metrics.use(rows[-1][OWN:ROUTES])
    return rows


def tls_context(options: Options) -> ssl.SSLContext | None:
    """The context for TLS, if the options ask for it. Raises what `server_context` raises."""
    if not options.tls_cert:
        return None
    from spop.server.tls import server_context  # ssl takes as much memory as all of the server.

    return server_context(options.tls_cert, options)
