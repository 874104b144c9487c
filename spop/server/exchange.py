"""A NOTIFY whose handlers run elsewhere: one call after the other, then its ACK.

All of an exchange's state belongs to its loop's thread. A call that takes longer than its
handler may is left behind: its result comes too late and is dropped.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING

from spop.counters import Cell, RouteCell, observe
from spop.dispatch import Call, Deferred, Running
from spop.errors import HandlerError, SpopTimeoutError
from spop.server.executor import Job, encode_results

if TYPE_CHECKING:
    from spop.agent import HandlerInfo
    from spop.server.loop import Connection, Loop, Timer


class Exchange:
    """Runs the calls of a `Deferred` in order and gives its loop the encoded actions."""

    __slots__ = (
        "_index", "_job", "_payload", "_since", "_timer", "connection", "deferred", "loop",
    )  # fmt: skip

    def __init__(self, loop: Loop, connection: Connection, deferred: Deferred) -> None:
        self.connection = connection
        self.deferred = deferred
        self.loop = loop
        self._payload = bytearray()
        self._index = 0
        self._job: Job | None = None
        self._timer: Timer | None = None
        self._since = 0

    def run(self) -> None:
        """Go on until a call has to be waited for, or to the end."""
        calls = self.deferred.calls
        while self._index < len(calls):
            call = calls[self._index]
            self._since = perf_counter_ns()
            if call.values is None:
                self._payload += call.route.on_error
            elif call.route.deferred:
                if self._submit(call):
                    return
            else:
                self._run_here(call)
            self._index += 1
        self.loop.answer(self, self._payload)

    def cancel(self) -> None:
        """Nobody is left to answer: end what runs, drop what comes of it."""
        if self._job is not None:
            self._job.cancel()
            self._forget_job()
            self.loop.cells[Cell.ACKS_DROPPED] += 1

    def _submit(self, call: Call) -> bool:
        handler = self.loop.agent.handlers[call.route.name]
        deferred = self.deferred
        peer = self.connection.protocol.peer
        running = partial(Running, handler.name, deferred.stream_id, deferred.frame_id, peer)
        job = Job(call, running, self._done)
        try:
            self.loop.submit(job)
        except HandlerError as error:
            self._fail(call, error)
            return False
        self._job = job
        if handler.timeout is not None:
            late = partial(self._timed_out, job, handler)
            self._timer = self.loop.call_later(handler.timeout, late)
        return True

    def _run_here(self, call: Call) -> None:
        try:
            encode_results(call, call.run(), self._payload)
        except BaseException as error:  # As in `Dispatcher`, of which this is the other half.
            self._fail(call, error)
        self._observe(call)

    def _done(self, job: Job, payload: bytearray, error: BaseException | None) -> None:
        """Called by the executor, in another thread."""
        self.loop.call_soon(partial(self._finished, job, payload, error))

    def _finished(self, job: Job, payload: bytearray, error: BaseException | None) -> None:
        if job is not self._job:
            return
        self._forget_job()
        self._observe(job.call)
        if error is None:
            self._payload += payload
        else:
            self._fail(job.call, error)
        self._go_on()

    def _timed_out(self, job: Job, handler: HandlerInfo) -> None:
        if job is not self._job:
            return
        job.cancel()
        self._forget_job()
        self.loop.cells[job.call.route.base + RouteCell.TIMEOUTS] += 1
        self._observe(job.call)
        error = SpopTimeoutError(f"no result in {handler.timeout:g} s")
        self.loop.agent.failed(handler.name, error)
        self._payload += handler.on_timeout
        self._go_on()

    def _go_on(self) -> None:
        self._index += 1
        self.run()

    def _fail(self, call: Call, error: BaseException) -> None:
        self.loop.cells[call.route.base + RouteCell.ERRORS] += 1
        self.loop.agent.failed(call.route.name, error)
        self._payload += call.route.on_error

    def _observe(self, call: Call) -> None:
        observe(self.loop.cells, call.route.base, perf_counter_ns() - self._since)

    def _forget_job(self) -> None:
        self._job = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
