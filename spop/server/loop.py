"""A selector loop: one thread that moves bytes between its sockets and their connections.

It does one recv, one pass through the protocol and one send for however many frames arrived. In
each round it waits for sockets and serves those that are ready. Rounds run in a thread of their
own, and inside of an event loop if lifespans or handlers need one. Only that thread touches the
loop's state; others use `call_soon`.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from spop.agent import Agent
from spop.agreement import Agreement
from spop.connection import AgentEvent, Disconnect, Hello, State
from spop.constants import LENGTH_SIZE, MAX_CONTROL_SIZE
from spop.context import set_running
from spop.counters import Cell, Cells
from spop.dispatch import AsyncCall, Call, Deferred, Dispatcher
from spop.errors import HandlerError, ProtocolError
from spop.forks import FORKED, end_child, serve_in_this_thread
from spop.frames import Frame
from spop.lifespan import LoopState
from spop.logs import SafeLogger, fields
from spop.options import MAX_PASS, Options
from spop.parameters import RUNNING, Running
from spop.poller import READ, WRITE, Poller, new_poller
from spop.port import FastPaths
from spop.server import opening
from spop.server.admission import Admission
from spop.server.calls import Calls
from spop.server.connection_log import ConnectionLog
from spop.server.exchange import Connection, Exchange
from spop.server.executor import Executor
from spop.server.giving import GiveAway
from spop.server.leaving import Leaving
from spop.server.opening import Opening
from spop.server.slow import SlowLog
from spop.server.steps import Steps
from spop.server.timers import Timer, Timers

if TYPE_CHECKING:
    from spop.loop_life import LoopLife

logger: SafeLogger = SafeLogger("spop.server")

RECV_SIZE = 256 * 1024

Result = tuple[Call, Any, BaseException | None]


class Shared(opening.Shared, Protocol):
    """What the loops of a process have in common."""

    agent: Agent
    options: Options
    executor: Executor
    admission: Admission
    slow_log: SlowLog
    connection_log: ConnectionLog

    def thread_died(self, error: BaseException) -> None: ...


class Loop:
    """Serves the connections that are given to it.

    Args:
        cells: the row in which it counts.
        name: the name of its thread.

    Attributes:
        connections: those that it serves.
        timeouts: seconds that a call of a handler may take, by message name.
        thread: runs the rounds.
        context: the context of the rounds. Handlers of exchanges get copies of it.
        life: its lifespans, if the agent has any; set before `start`.
        state: what they have yielded.
        began: done when it is ready for connections; has the error if a lifespan failed.
    """

    def __init__(self, shared: Shared, cells: Cells, name: str) -> None:
        self.agent: Agent = shared.agent
        self.options: Options = shared.options
        options = self.options
        self.cells = cells
        self.poller: Poller = new_poller(cells, options.busy_poll)
        self.timers: Timers = Timers(self._call)
        self.connections: set[Connection] = set()
        self._arrivals: deque[Callable[[], object]] = deque()
        handlers = shared.agent.handlers.values()
        self.timeouts: dict[str, float] = {
            each.name: each.timeout for each in handlers if each.timeout is not None
        }
        self._executor = shared.executor
        self._engines = shared.engines
        self.admission: Admission = shared.admission
        self._died = shared.thread_died
        self._buffer = bytearray(RECV_SIZE)
        # A peer has to wait for our HELLO. What it sends behind its own is not copied yet.
        self._for_hello = memoryview(self._buffer)[: LENGTH_SIZE + MAX_CONTROL_SIZE]
        self.calls: Calls = Calls(
            options, cells, self._fail_afterwards, lambda size: self._leaving.memory.take(size)
        )
        self.dispatcher: Dispatcher = self._new_dispatcher(shared.slow_log)
        self._fast_paths = FastPaths(
            self.dispatcher, self._buffer, self.see_to, self._go_on, self._flush_acks, self._greeted
        )
        self._leaving = Leaving(self, shared.engines, shared.connection_log)
        self._opening = Opening(self, shared, self._fast_paths, self._leaving)
        self._calls: deque[Callable[[], object]] = deque()
        self.steps: Steps = Steps(self._call)
        self._resumes: Steps = Steps(self._call)
        self._results: deque[Result] = deque()
        self._woken = False
        self._tasks: dict[AsyncCall, str] = {}
        self._limited = frozenset(each.name for each in handlers if each.concurrency is not None)
        self._running = True
        self.life: LoopLife | None = None
        self.state: LoopState = {}
        self.began: Future[None] = Future()
        self.use_context(Context())
        self.thread: threading.Thread = threading.Thread(
            target=self.context.run, args=[self._run], name=name, daemon=True
        )

    def _new_dispatcher(self, slow_log: SlowLog) -> Dispatcher:
        options = self.options
        dispatcher = self.agent.dispatcher(
            self.calls.route,
            cells=self.cells,
            max_answer_size=options.max_unsent,
            max_messages=options.max_messages,
            max_arguments=options.max_arguments,
            max_tasks=options.max_queue,
            deferred=Exchange,
            max_pass=MAX_PASS,
        )
        dispatcher.slow, dispatcher.slow_after = slow_log, slow_log.after
        return dispatcher

    # --- from any thread ---

    @property
    def load(self) -> int:
        """Number of connections that it has or gets soon. Some of them may be closing."""
        return len(self.connections) + len(self._arrivals) + len(self.steps)

    @property
    def movable_load(self) -> int:
        """How many of them can be moved, as far as that is known."""
        return self.movable + len(self._arrivals)

    @property
    def alive(self) -> bool:
        """It has not ended: it serves, or is not started yet."""
        return self._running

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` in the loop's thread, in its next round."""
        self._calls.append(call)
        self.wake()

    def bring(self, add: Callable[[], object]) -> None:
        """Run `add`, which adds a connection, in the loop's thread."""
        self._arrivals.append(add)
        self.call_soon(lambda: self._arrivals.popleft()())

    def job_done(self, call: Call, returned: Any, error: BaseException | None) -> None:
        """A call that the executor made has ended. Call `wake` after the last of several."""
        self._results.append((call, returned, error))

    def launch(self, call: Call) -> None:
        """Begin an asynchronous call that waited in line."""
        self.call_soon(partial(self._launch, call))

    def start(self) -> None:
        self.thread.start()

    def drain(self, timeout: float) -> None:
        """End: answer the frames in hand, say DISCONNECT, and leave after `timeout` at most."""
        self.call_soon(lambda: self.steps.add(partial(self._leaving.drain, timeout)))

    def hand_over(self, give_away: GiveAway, timeout: float) -> None:
        """End: give each connection away once it is at rest, and leave as `drain` does."""
        self.call_soon(lambda: self.steps.add(partial(self._leaving.hand_over, give_away, timeout)))

    def end_old(self, delay: float) -> None:
        """From `delay` seconds on, end each connection when no frame can be lost."""
        end = partial(self._leaving.ages.end_all, self.connections)
        self.call_soon(lambda: self.call_later(delay, end))

    def spare(self, count: int, give_away: GiveAway, has_too_many: Callable[[], bool]) -> None:
        """Give so many connections away, and go on."""
        self.call_soon(partial(self._leaving.giving.spare, count, give_away, has_too_many))

    def give_ports(self, owned: frozenset[int], give_away: GiveAway) -> None:
        """Give the connections of other ports of ranges away, and go on."""
        self.call_soon(partial(self._leaving.giving.give_ports, owned, give_away))

    def describe(self, timeout: float = 1.0) -> list[dict[str, Any]]:
        """Its connections, for people; none if the loop does not answer in `timeout` seconds."""
        found: list[dict[str, Any]] = []
        answered = threading.Event()

        def describe() -> None:
            found.extend(connection.describe() for connection in self.connections)
            answered.set()

        if threading.current_thread() is self.thread:
            describe()
        else:
            self.call_soon(describe)
        return found if answered.wait(timeout) else []

    def wake(self) -> None:
        """Have the loop take results and run calls."""
        if not self._woken:
            self._woken = True
            self.poller.wake()

    # --- rounds ---

    def use_context(self, context: Context) -> None:
        """Run the rounds in `context`. Call this before the first round."""
        context.run(set_running, self.running_message)
        self.context = context

    def _run(self) -> None:
        serve_in_this_thread()
        try:
            if self.life or any(each.needs_event_loop for each in self.agent.handlers.values()):
                from spop.server import event_loop

                event_loop.serve(self, self.options.event_loop)
            else:
                self.has_begun({})
                while self._running:
                    self.round(None)
        except BaseException as error:
            self._running = False
            if self.began.done():
                self._died(error)
            else:
                self.began.set_exception(error)
        finally:
            self.close()

    def has_begun(self, state: LoopState) -> None:
        """The lifespans are set up. Handlers see what they have yielded."""
        self.state = state
        self.began.set_result(None)

    def _fail_afterwards(self, name: str, error: BaseException) -> None:
        self.dispatcher.fail((self.dispatcher.routes or {})[name], error)

    def running_message(self) -> Running | None:
        """The message whose inline handler runs now."""
        return self.dispatcher.running

    def round(self, timeout: float | None) -> None:
        """Send the ACKs, wait up to `timeout` seconds for sockets, and serve those ready."""
        if FORKED:
            end_child()
        if self.dispatcher.settled:
            self.send_acks()
        self._submit_all()
        steps, resumes = len(self.steps), len(self._resumes)
        self.poller.run(self.longest_wait(timeout))
        if steps:
            self.steps.take()
        if resumes:
            self._resumes.take()
        if self._woken or self._results:
            self._woken = False
            self._take_results()
            self._run_calls()
        self.timers.run_due()

    def _submit_all(self) -> None:
        """Submit the calls of this round, and wake the pool once for all of them."""
        left = self.dispatcher.left
        if left:
            calls = left.copy()
            left.clear()
            for call, error in self._executor.submit(self, calls):
                self._take_result(call, None, error)
        elif self._executor.patience:
            self._executor.wake()

    def longest_wait(self, timeout: float | None = None) -> float | None:
        """Seconds that it may wait for sockets, `timeout` at most; None: without a limit."""
        more = self.steps or self._resumes or self._woken or self._results
        if more or self.dispatcher.settled or self.dispatcher.left:
            return 0.0
        waits = timeout, self.timers.wait(), self._executor.patience
        return min([wait for wait in waits if wait is not None], default=None)

    def end(self) -> None:
        """Run no further round."""
        self._running = False

    def close(self) -> None:
        """Close the connections and the poller, after the last round."""
        self.send_acks()
        self._leaving.end_all(self.connections)
        self.poller.close()

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        """Run `call` in `delay` seconds."""
        return self.timers.call_later(delay, call)

    def _take_results(self) -> None:
        for _ in range(len(self._results)):
            self._take_result(*self._results.popleft())

    def _take_result(self, call: Call, returned: Any, error: BaseException | None) -> None:
        exchange = call.exchange
        if exchange is None:
            self.dispatcher.settle(call, returned, error)
        else:
            self.guarded(exchange.connection, exchange.take_result, call, returned, error)

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):
            self._call(self._calls.popleft())

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            logger.failure(error, "call in the loop failed", extra=fields("call failed"))

    def guarded(self, connection: Connection, call: Callable[..., object], *args: object) -> None:
        """Run `call`. An error in it ends its connection and no other."""
        try:
            call(*args)
        except Exception as error:
            self._leaving.fail(connection, error)

    def fail(self, connection: Connection, error: Exception) -> None:
        """End a connection after an unexpected error."""
        self._leaving.fail(connection, error)

    # --- new connections ---

    @property
    def movable(self) -> int:
        """How many of its connections can be moved to another loop or process."""
        return self._opening.movable

    def add(self, sock: socket.socket, sockaddr: Any, port: int | None = None) -> None:
        """Begin to serve an accepted and admitted connection."""
        self._opening.add(sock, sockaddr, port)

    def adopt(self, sock: socket.socket, state: dict[str, Any], new: bool = True) -> Connection:
        """Serve an admitted connection that another process gave away, or (not `new`) refused."""
        return self._opening.adopt(sock, state, new)

    def forget(self, connection: Connection) -> None:
        """Serve a connection no longer. Its socket stays open."""
        self.connections.remove(connection)
        self.admission.release(connection.host)
        self._opening.set_movable(connection, False)
        self.cells[Cell.CONNECTIONS_CLOSED] += 1
        if connection.fast_path.events:
            self.poller.unregister(connection.sock.fileno())
        self.take_back(connection)
        connection.fast_path.close()  # Breaks a reference cycle that may hold MBs.
        self._orphan_exchanges(connection)

    # --- bytes in and out ---

    def see_to(self, connection: Connection, events: int) -> None:
        """Do what the socket is ready for."""
        self.guarded(connection, self._see_to, connection, events)

    def _see_to(self, connection: Connection, events: int) -> None:
        if events & WRITE:
            self._flush(connection)
        if events & READ and connection.fast_path.events & READ:
            if self._holds_back(connection):
                self._watch(connection)
            else:
                self._read(connection)

    def _go_on(
        self,
        connection: Connection,
        frames: list[Frame | Deferred],
        unsent: bytes,
        error: Exception | None,
    ) -> None:
        """Go on where a connection's fast path stopped."""
        if isinstance(error, EOFError):
            self.guarded(connection, self._end_of_file, connection)
        elif error is not None and not isinstance(error, ProtocolError):
            self._leaving.fail(connection, error)
        else:
            connection.keep_unsent(unsent)
            self.guarded(connection, self._frames, connection, frames, error)

    def _greeted(self, connection: Connection, agreement: Agreement, unsent: bytes) -> None:
        """The fast path has answered a HELLO."""
        try:
            self._opening.greeted(connection, agreement)
            if unsent or self._leaving.giving or self._leaving.ages:
                connection.keep_unsent(unsent)
                self._received(connection, [])
        except Exception as error:
            self._leaving.fail(connection, error)

    def _frames(
        self, connection: Connection, frames: list[Frame | Deferred], error: ProtocolError | None
    ) -> None:
        # A shortcut for the usual case: only exchanges, and no bytes to send. It is enough to
        # look at the last frame, as the dispatcher stops behind any that is no NOTIFY.
        if (
            frames
            and type(frames[-1]) is Exchange
            and not connection.unsent
            and not connection.protocol.intake.unread
        ):
            self._start_exchanges(connection, frames)
            return
        self._received(connection, connection.protocol.go_on(frames, b"", error))

    def _read(self, connection: Connection) -> None:
        try:
            unknown = connection.protocol.state is State.HELLO
            size = connection.sock.recv_into(self._for_hello if unknown else self._buffer)
        except (BlockingIOError, InterruptedError):
            if connection.fast_path.events & WRITE or connection.wants_write:
                self._watch(connection)
            return
        if size == 0:
            self._end_of_file(connection)
            return
        self.cells[Cell.BYTES_RECEIVED] += size
        self._leaving.look_for_crossed(connection, memoryview(self._buffer)[:size])
        self.dispatcher.new_pass()
        self._received(connection, connection.protocol.receive_data(self._buffer, size))

    def _end_of_file(self, connection: Connection) -> None:
        self._handle(connection, connection.protocol.receive_eof())
        self._leaving.close(connection)

    def _received(self, connection: Connection, events: list[AgentEvent]) -> None:
        if events:
            self._handle(connection, events)
        if self._leaving.begun or self._leaving.ages:
            self._leaving.after_answers(connection)
        self._flush(connection)
        self._look_again(connection)

    def _look_again(self, connection: Connection) -> None:
        """Read bytes that TLS holds already: the socket does not become ready for them."""
        if connection.fast_path.events & READ and connection.has_pending:
            self.call_soon(partial(self.see_to, connection, READ))

    def _flush(self, connection: Connection) -> None:
        """Send, answer the frames that were held back, and decide what to wait for."""
        self._send(connection)
        protocol = connection.protocol
        if protocol.stalled and not connection.unsent and not connection.resumes:
            connection.resumes = True
            self._resumes.add(partial(self.guarded, connection, self._resume, connection))
        if (
            connection.unsent
            or connection.fast_path.events != READ
            or connection.wants_write
            or (protocol.paused and protocol.intake.unread and not protocol.stalled)
        ):
            self._watch(connection)
        if connection.unsent:
            return
        if protocol.should_close:
            self._leaving.linger(connection)
        elif self._leaving.giving and protocol.at_rest:
            self._leaving.giving.at_rest(connection)

    def _resume(self, connection: Connection) -> None:
        """Answer frames that the last pass left, so that other connections had their turn."""
        connection.resumes = False
        protocol = connection.protocol
        if protocol.stalled and not connection.unsent and connection in self.connections:
            self.dispatcher.new_pass()
            self._received(connection, protocol.resume())

    def _send(self, connection: Connection) -> None:
        data = connection.protocol.data_to_send()
        if connection.unsent:
            data = connection.unsent + data
        if not data:
            return
        try:
            sent = connection.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent:
            connection.fast_path.active = True
            self.cells[Cell.BYTES_SENT] += sent
        if sent < len(data):
            connection.keep_unsent(data[sent:])
        else:
            connection.unsent = b""

    def _holds_back(self, connection: Connection) -> bool:
        """Earlier frames have to be answered before more is read."""
        protocol = connection.protocol
        return protocol.paused or (self._leaving.giving.gives_all and protocol.in_flight > 0)

    def _watch(self, connection: Connection) -> None:
        """Stop reading while earlier frames wait for handlers or for a slow peer."""
        # Not before more bytes have come, as a change of what epoll waits for is a system call.
        if connection.unsent:
            events = WRITE
        elif self._holds_back(connection):
            events = 0
        else:
            events = READ
        if connection.wants_write:
            events |= WRITE
        if events:
            connection.full = False
        elif not connection.protocol.stalled and not connection.full:
            # A pass that ended early may have stopped the reading already, which does not count.
            connection.full = True
            self.cells[Cell.PAUSED_IN_FLIGHT] += 1
        if events == connection.fast_path.events:
            return
        if connection.unsent:
            self.cells[Cell.PAUSED_UNSENT] += 1
        fd = connection.sock.fileno()
        if not events:
            self.poller.unregister(fd)
        elif not connection.fast_path.events:
            self.poller.register(fd, events, connection.fast_path)
        else:
            self.poller.modify(fd, events)
        connection.fast_path.events = events
        self._look_again(connection)

    def _handle(self, connection: Connection, events: Sequence[AgentEvent]) -> None:
        for event in events:
            if isinstance(event, Exchange):
                connection.exchanges.add(event)
                event.start(self, connection)
            elif isinstance(event, Hello):
                self._opening.said_hello(connection, event.peer)
            elif isinstance(event, Disconnect):
                self._leaving.report(connection, event)
            else:
                raise AssertionError("the dispatcher answers every NOTIFY, or makes it an Exchange")

    # --- exchanges ---

    def submit(self, call: Call) -> None:
        """Make a call of an exchange at the end of the round, in the executor.

        Raises:
            HandlerError: the loop has ended.
        """
        if not self._running:
            raise HandlerError(f"message {call.route.name}: the agent stops")
        self.dispatcher.left.append(call)

    def set_start(
        self,
        start: Callable[[AsyncCall], Any] | None,
        ended: Callable[[], object] | None = None,
    ) -> None:
        """Use `start` to make tasks for asynchronous handlers; None: none can be made. `ended` is
        called when such a task has ended, which may be outside of a round."""
        self.dispatcher.start, self.dispatcher.ended = start, ended

    @property
    def tasks(self) -> list[Any]:
        """The tasks of handlers that have not ended."""
        intakes = (connection.protocol.intake for connection in self.connections)
        kept = (call.begun for intake in intakes for call in intake.calls)
        return [begun.task for begun in (*filter(None, kept), *self._tasks)]

    def begin(self, exchange: Exchange, call: Call) -> AsyncCall:
        """Make a call of an asynchronous handler, in a task.

        Raises:
            HandlerError: too many run already, or the loop has ended.
        """
        name, dispatcher, start = call.route.name, self.dispatcher, self.dispatcher.start
        if start is None or not dispatcher.takes_tasks:
            self.cells[Cell.REJECTED] += self._running
            why = f"{self.options.max_queue} wait already" if self._running else "the agent stops"
            raise HandlerError(f"message {name}: {why}")
        begun = AsyncCall(call.run(), name, dispatcher.slow, dispatcher.slow_after)
        peer = exchange.connection.protocol.peer
        token = RUNNING.set((name, exchange.stream_id, exchange.frame_id, peer))
        try:
            task = start(begun)
        finally:
            RUNNING.reset(token)
        if not begun.done:
            begun.task = task
        return begun

    def waits(self, begun: AsyncCall, name: str) -> None:
        """A task of the handler of message `name` has not ended in its first step."""
        self._tasks[begun] = name
        self.dispatcher.count_task(1)

    def task_ended(self, begun: AsyncCall) -> None:
        """Such a task has ended, even if its result is no longer wanted."""
        begun.task = None  # Breaks a reference cycle.
        name = self._tasks.pop(begun)
        if name in self._limited:
            self._executor.ended(name)
        self.dispatcher.count_task(-1)

    def _launch(self, call: Call) -> None:
        self._executor.begins()
        if not (call.wanted and call.exchange.launch(call)):
            self._executor.ended(call.route.name)

    def take_back(self, connection: Connection) -> None:
        """The connection ends: have exchanges wait for the calls that the dispatcher keeps."""
        intake = connection.protocol.intake
        if intake.calls:
            self._start_exchanges(connection, self.dispatcher.take_back(intake))

    def _start_exchanges(self, connection: Connection, deferred: Sequence[object]) -> None:
        for exchange in cast("Sequence[Exchange]", deferred):
            connection.exchanges.add(exchange)
            exchange.start(self, connection)

    def answer(self, exchange: Exchange) -> None:
        """Send an exchange's ACK on its connection, or another of its engine (section 3.2.1)."""
        connection = exchange.connection
        connection.exchanges.discard(exchange)
        if connection.protocol.state is State.OPEN and connection in self.connections:
            self._acknowledge(connection, exchange)
        else:
            self._answer_elsewhere(exchange)

    def _acknowledge(self, connection: Connection, exchange: Exchange) -> None:
        intake = connection.protocol.intake
        self.dispatcher.acknowledge(intake, exchange, connection.fast_path)
        if connection is exchange.connection:
            intake.in_flight -= 1
        else:
            self.cells[Cell.ACKS_ELSEWHERE] += 1

    def send_acks(self) -> None:
        """Send the ACKs of this round, with one send for each connection."""
        self._fast_paths.send_acks()

    def _flush_acks(self, connection: Connection) -> None:
        self.guarded(connection, self._send_ack, connection)

    def _send_ack(self, connection: Connection) -> None:
        if connection.protocol.intake.unread or self._leaving.begun or self._leaving.ages:
            self.dispatcher.new_pass()
            self._received(connection, connection.protocol.resume())
        else:
            self._flush(connection)

    def _answer_elsewhere(self, exchange: Exchange) -> None:
        peer = exchange.connection.protocol.peer
        other = None
        if peer is not None and peer.async_engine_id:
            other = self._engines.another(peer.async_engine_id, exchange)
        if other is None:
            self.cells[Cell.ACKS_DROPPED] += 1
            return
        host, connection = other
        host.call_soon(partial(host.answer_for_another, connection, exchange))

    def answer_for_another(self, connection: Connection, exchange: Exchange) -> None:
        """Send the ACK of an exchange whose own connection is closed (section 3.2.1)."""
        if connection in self.connections and connection.protocol.state is State.OPEN:
            self._acknowledge(connection, exchange)
        else:
            self._answer_elsewhere(exchange)

    def _orphan_exchanges(self, connection: Connection) -> None:
        """Cancel the exchanges of a lost connection, if no other can carry their ACKs."""
        peer = connection.protocol.peer
        exchanges, connection.exchanges = connection.exchanges, set()
        if peer is not None and peer.async_engine_id:
            exchanges = self._engines.remove(peer.async_engine_id, connection, exchanges)
        for exchange in exchanges:
            exchange.host.call_soon(exchange.cancel)
