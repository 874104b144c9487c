"""A connection, and an exchange: a NOTIFY with handlers that have to be waited for.

An exchange makes its calls one after the other and is answered with one ACK. Only the thread of
its loop touches its state. It knows its loop as a `Host`. A call that runs into its timeout is
left behind, and its result is dropped.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextvars import Context
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from spop.agent import Agent
from spop.connection import AgentConnection
from spop.counters import Cell, Cells, RouteCell, observe
from spop.dispatch import AsyncCall, Call, Deferred, Dispatcher
from spop.errors import HandlerError, SpopTimeoutError
from spop.frames import Peer
from spop.lifespan import LoopState
from spop.parameters import ASYNC, INLINE, RUNNING
from spop.poller import Poller
from spop.port import FastPath
from spop.server.timers import Timer

if TYPE_CHECKING:
    from spop.server.tls import TLSSocket


class Connection:
    """A socket, its protocol, and the bytes that are still to be sent.

    Attributes:
        sock: a plain socket, or a `TLSSocket`; `tls` is the latter or None.
        peer: what HELLO agreed on, until the end of the connection was reported.
        began: when it was opened, as `time.monotonic` gives it, in whatever process.
        port: the number of its port in a range of ports, if it came to one.
        movable: it can be moved to another loop or process while this one goes on.
        unsent: bytes that the socket did not take yet.
        quiet: number of sweeps for idle connections since something was sent.
        exchanges: those that wait for handlers.
        fast_path: answers NOTIFY frames while nothing else is to be done.
        resumes: frames that a pass has left are answered soon.
        full: it is not read from, as it has `max_in_flight` frames in flight.
    """

    __slots__ = (
        "began", "exchanges", "fast_path", "full", "host", "movable", "peer", "port", "protocol",
        "quiet", "resumes", "sock", "tls", "unsent",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket | TLSSocket, host: str | None, protocol: AgentConnection
    ) -> None:
        self.sock: socket.socket | TLSSocket = sock
        self.tls: TLSSocket | None = None if isinstance(sock, socket.socket) else sock
        self.host: str | None = host
        self.protocol: AgentConnection = protocol
        self.unsent: bytes | bytearray = b""
        self.peer: Peer | None = None
        self.port: int | None = None
        self.movable: bool = False
        self.began: float = time.monotonic()
        self.quiet: int = 0
        self.resumes: bool = False
        self.full: bool = False
        self.exchanges: set[Exchange] = set()
        self.fast_path: FastPath

    @property
    def opened(self) -> float:
        """When it was opened, in seconds since the epoch as the wall clock has them now."""
        return time.time() - time.monotonic() + self.began

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, roughly: received, unsent, waiting for handlers."""
        intake = self.protocol.intake
        waiting = sum(exchange.size for exchange in self.exchanges)
        waiting += sum(int(call.size) for call in intake.calls)
        return intake.allocated + len(self.unsent) + waiting

    def keep_unsent(self, data: bytes | bytearray) -> None:
        """The socket did not take `data`, which begins with what it did not take before."""
        self.protocol.intake.memory.take(len(data) - len(self.unsent))
        self.unsent = data

    @property
    def wants_write(self) -> bool:
        """TLS has to write before it can go on."""
        return self.tls is not None and self.tls.wants_write

    @property
    def has_pending(self) -> bool:
        """TLS holds bytes that the socket's readiness does not show."""
        return self.tls is not None and self.tls.pending() > 0

    def describe(self) -> dict[str, Any]:
        """Its state for people, in types of JSON."""
        protocol, peer = self.protocol, self.protocol.peer
        return {
            "address": protocol.address,
            "opened": round(self.opened, 3),
            "state": protocol.state.name,
            "version": peer.version if peer else None,
            "software": peer.software if peer else None,
            "capabilities": sorted(peer.capabilities) if peer else [],
            "max_frame_size": protocol.max_frame_size,
            "engine": peer.engine if peer else None,
            "in_flight": protocol.in_flight,
            "unsent": len(self.unsent),
            "tls": self.tls is not None,
        }


class Host(Protocol):
    """What an exchange needs of its loop."""

    agent: Agent
    cells: Cells
    context: Context
    dispatcher: Dispatcher
    poller: Poller
    state: LoopState
    timeouts: dict[str, float]

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have `call` run in the loop's thread. Any thread may call this."""

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer: ...

    def submit(self, call: Call) -> None:
        """Make a call soon, in the executor. Raises a HandlerError if the loop has ended."""

    def job_done(self, call: Call, returned: Any, error: BaseException | None) -> None:
        """A submitted call has ended. Any thread may call this, and then `wake`."""

    def wake(self) -> None:
        """Have the loop take results and run calls. Any thread may call this."""

    def begin(self, exchange: Exchange, call: Call) -> AsyncCall:
        """Make a call of an asynchronous handler, in a task. Raises a HandlerError if too many
        run."""

    def launch(self, call: Call) -> None:
        """Begin an asynchronous call that waited in line. Any thread may call this."""

    def waits(self, begun: AsyncCall, name: str) -> None:
        """A task of the handler of message `name` has not ended in its first step."""

    def task_ended(self, begun: AsyncCall) -> None:
        """Such a task has ended, even if its result is no longer wanted."""

    def answer(self, exchange: Exchange) -> None:
        """Send the ACK."""

    def fail(self, connection: Connection, error: Exception) -> None:
        """End a connection after an unexpected error."""

    def answer_for_another(self, connection: Connection, exchange: Exchange) -> None:
        """Send the ACK of an exchange whose own connection is closed (section 3.2.1)."""


class Exchange(Deferred):
    """Makes the calls of a NOTIFY in order."""

    __slots__ = ("_began", "_handler", "_index", "_timer", "_waiting", "connection", "host")

    actions: bytes
    connection: Connection
    host: Host

    def start(self, host: Host, connection: Connection) -> None:
        """Begin, in the loop that received the NOTIFY."""
        self.host = host
        self.connection = connection
        self._index = 0
        self._timer: Timer | None = None
        self._waiting: Call | AsyncCall | None = None
        self._began = monotonic_ns()
        call = self.calls[0]
        if call.begun is not None:
            self._wait_for(call, call.begun)
        elif call.running is not None:  # The pool has it, for the dispatcher until now.
            self._waiting = call
            call.exchange = self
        else:
            self._go_on()

    def present(self) -> Call | None:
        """The call that runs or waits in a thread of the loop. Any thread may ask."""
        calls, index = self.calls, self._index
        return calls[index] if index < len(calls) and self._waiting is not calls[index] else None

    def cancel(self) -> None:
        """No connection is left for the ACK: cancel the call that runs, drop its result."""
        if self._waiting is not None:
            self._leave_behind()
            self.host.cells[Cell.ACKS_DROPPED] += 1
            self.calls.clear()

    def launch(self, call: Call) -> bool:
        """Begin an asynchronous call that waited in line. Returns whether its task goes on."""
        self._began = monotonic_ns()
        goes_on = self._begin(call)
        if not goes_on:
            self._go_on()
        return goes_on

    def take_result(self, call: Call, returned: Any, error: BaseException | None) -> None:
        """A call that was submitted has ended."""
        call.exchange = None  # Breaks a reference cycle.
        if self._waiting is call:
            self._ended(call, returned, error)
            self._go_on()

    def _go_on(self) -> None:
        """Make calls until one has to be waited for, or to the end."""
        calls = self.calls
        try:
            while self._index < len(calls):
                call = calls[self._index]
                self._began = monotonic_ns()
                if call.values is None:
                    self._add_without_call(call)
                elif call.route.kind == INLINE:
                    self._run_here(call)
                elif call.route.kind == ASYNC:
                    self._begin(call)
                else:
                    self._submit(call)
                if self._waiting is not None:
                    return
            self.host.answer(self)
        except Exception as error:  # Not a handler's: `_ended` takes those.
            self.host.cells[Cell.ACKS_DROPPED] += 1
            self.host.fail(self.connection, error)

    def _run_here(self, call: Call) -> None:
        peer = self.connection.protocol.peer
        token = RUNNING.set((call.route.name, self.stream_id, self.frame_id, peer))
        try:
            returned = call.run()
        except BaseException as error:  # Whatever it is, the NOTIFY is answered.
            self._ended(call, None, error)
        else:
            self._ended(call, returned, None)
        finally:
            RUNNING.reset(token)

    def _submit(self, call: Call) -> None:
        self._waiting = call
        peer = self.connection.protocol.peer
        call.running = (call.route.name, self.stream_id, self.frame_id, peer)
        call.exchange = self
        try:
            self.host.submit(call)
        except HandlerError as error:
            self._ended(call, None, error)
            return
        self._set_timer(call)

    def _begin(self, call: Call) -> bool:
        """Begin an asynchronous call. Returns whether its task goes on."""
        self._waiting = call
        try:
            begun = self.host.begin(self, call)
        except BaseException as error:
            self._ended(call, None, error)
            return False
        if begun.done:
            self._ended(call, begun.value, begun.error)
            return False
        self._wait_for(call, begun)
        return True

    def _wait_for(self, call: Call, begun: AsyncCall) -> None:
        self._waiting = begun
        begun.finished = self._finished
        self.host.waits(begun, call.route.name)
        if self._timer is None:
            self._set_timer(call)

    def _set_timer(self, call: Call) -> None:
        timeout = self.host.timeouts.get(call.route.name)
        if timeout is not None:
            self._timer = self.host.call_later(timeout, self._time_out)

    def _finished(self, begun: AsyncCall) -> None:
        """A task has ended. This is still its last step."""
        self.host.task_ended(begun)
        begun.finished = None  # Breaks a reference cycle.
        if begun is self._waiting:
            self._ended(self.calls[self._index], begun.value, begun.error)
            if self._index == len(self.calls):
                self._go_on()
            else:  # The context here is the ended handler's; the next one gets a fresh copy.
                self.host.context.copy().run(self._go_on)

    def _ended(self, call: Call, returned: Any, error: BaseException | None) -> None:
        """Add the handler's answer, and be ready for the next call."""
        self._stop_waiting()
        room = self.room - len(self.actions)
        self.actions += self.host.dispatcher.result(call, returned, error, self._began, room)
        call.values = None
        self._index += 1

    def _time_out(self) -> None:
        call = self.calls[self._index]
        handler = self.host.agent.handlers[call.route.name]
        self._timer = None
        self._leave_behind()
        self.host.cells[call.route.base + RouteCell.TIMEOUTS] += 1
        observe(self.host.cells, call.route.base, monotonic_ns() - self._began)
        self.host.agent.failed(
            handler.name, SpopTimeoutError(f"no result in {handler.timeout:g} s")
        )
        self._add_if_it_fits(handler.on_timeout)
        self._index += 1
        self._go_on()

    def _add_without_call(self, call: Call) -> None:
        if call.kept is None:
            self._add_if_it_fits(call.route.on_error)
        else:
            room = self.room - len(self.actions)
            self.actions += self.host.dispatcher.fitting(call.route, call.kept, room)
        self._index += 1

    def _add_if_it_fits(self, actions: bytes) -> None:
        if len(self.actions) + len(actions) <= self.room:
            self.actions += actions

    def _leave_behind(self) -> None:
        waiting = self._waiting
        self._stop_waiting()
        if isinstance(waiting, AsyncCall):
            waiting.task.cancel()
        elif waiting is not None:
            waiting.wanted = False
            waiting.values = None  # The call may stay in the queue for long.

    def _stop_waiting(self) -> None:
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
