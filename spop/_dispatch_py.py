"""From the bytes of NOTIFY frames to the bytes of their ACKs, in pure Python.

A `Route` is a handler whose signature was analysed once. A `Dispatcher` has all routes of an
agent. It finds the route of each message, calls it with the message's arguments, and encodes
what it returns. Handlers that have to be waited for it leaves to the caller, as a `Deferred`.

`_dispatch.pyx` is the compiled twin, `spop.dispatch` chooses. One thread uses a dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from time import monotonic_ns
from typing import Any, cast

from spop import _codec_py as codec
from spop._async_call_py import AsyncCall
from spop._intake_py import Intake
from spop._route_py import Route
from spop.constants import (
    BYTES_PER_LOOK,
    CONTROL_TYPES,
    LENGTH_SIZE,
    MAX_ANSWER_SIZE,
    MAX_ARGUMENTS,
    MAX_CONTROL_SIZE,
    MAX_MESSAGES,
    MAX_TASKS,
    MAX_TEXT_SIZE,
    MOST_UNKNOWN,
    NO_LIMIT,
    VALUE_SIZE,
    FrameFlag,
    FrameType,
)
from spop.counters import Cell, Cells, RouteCell, new_row, observe, row_size
from spop.errors import (
    FrameTooBigError,
    InterlacedFramesError,
    ProtocolError,
    TooManyMessagesError,
)
from spop.forks import FORKED, end_child
from spop.frames import Ack, Frame, Message, Notify, RawFrame
from spop.parameters import ASYNC, INLINE, LEFT, RUNNING, Running, check_answer
from spop.values import Buffer

# Members of an enum take several times as long to look up.
_UNSET, _NOTIFY, _ACK = int(FrameType.UNSET), int(FrameType.NOTIFY), int(FrameType.ACK)
_FIN, _ABORT = int(FrameFlag.FIN), int(FrameFlag.ABORT)
_TOO_BIG = "answer of {} bytes where the ACK has room for {}"


def _results(call: Call, returned: Any) -> list[Any]:
    """What to encode for a handler: its `Ack`, if it has one, and what it returned."""
    if returned is not None and type(returned) is not dict:
        check_answer(call.route.function, returned)
    filled = [value.actions for value in call.values or [] if type(value) is Ack]
    return filled if returned is None else [*filled, returned]


def _keepable(call: Call) -> bool:
    """Nothing but the call's end can end the wait for it, unless the connection ends."""
    return not call.route.limited and (call.begun is not None or call.route.kind == LEFT)


class Call:
    """One message that has to be waited for: its handler and the values for its parameters.

    A `Deferred` has it, or it is the only one of its NOTIFY and the dispatcher writes the ACK.

    Attributes:
        values: None: the handler is not called. `kept` answers, or `on_error`, as it has failed.
        kept: the answer that its cache had, encoded.
        begun: the `AsyncCall` of an asynchronous call that has begun.
        wanted: somebody waits for the result. Any thread may ask.
        running: the fields of a `Running`, of a call that a thread of a pool runs.
        exchange: what waits for that thread's result, if it is not the dispatcher.
        size: bytes of memory that its NOTIFY takes, if the dispatcher keeps it.
    """

    __slots__ = (
        "_actions", "_began", "_dispatcher", "_ids", "_intake", "_path", "_room", "begun",
        "exchange", "kept", "route", "running", "size", "values", "wanted",
    )  # fmt: skip
    _actions: bytes
    _began: int
    _dispatcher: Dispatcher
    _ids: tuple[int, int]
    _intake: Intake | None
    _path: Any
    _room: int

    def __init__(
        self,
        route: Route,
        values: list[Any] | None,
        begun: AsyncCall | None = None,
        kept: bytes | None = None,
    ) -> None:
        self.route: Route = route
        self.kept: bytes | None = kept
        self.values: list[Any] | None = values
        self.begun: AsyncCall | None = begun
        self.wanted: bool = True
        self.running: tuple[str, int, int, Any] | None = None
        self.exchange: Any = None
        self.size: int = 0

    def __call__(self, begun: AsyncCall) -> None:
        """Its task has ended, in a NOTIFY that the dispatcher answers."""
        begun.task = begun.finished = None  # Breaks reference cycles.
        self._dispatcher.count_task(-1)
        self._dispatcher.settle(self, begun.value, begun.error)

    def run(self) -> Any:
        """Call the handler and return what it returns."""
        try:
            return self.route.call(self.values or [])
        finally:
            if FORKED:
                end_child()


class Deferred:
    """A NOTIFY whose handlers have not all ended. The caller runs the others and answers it.

    Attributes:
        stream_id, frame_id: the NOTIFY's.
        actions: the encoded actions of the handlers that have ended.
        calls: the calls of the other handlers, in order. The first may have begun.
        room: the most bytes that `actions` may have, as the ACK must fit one frame.
        size: bytes of memory that its messages take, roughly.
    """

    __slots__ = ("actions", "calls", "frame_id", "room", "size", "stream_id")

    def __init__(
        self, stream_id: int, frame_id: int, actions: bytes, calls: list[Call], room: int
    ) -> None:
        self.stream_id: int = stream_id
        self.frame_id: int = frame_id
        self.actions: bytes = actions
        self.calls: list[Call] = calls
        self.room: int = room
        self.size: int = 0


Failed = Callable[[str, BaseException], None]
"""Called with the name and the exception of a failed message. It must not raise."""


class Dispatcher:
    """All routes of an agent, for use by one thread.

    Args:
        routes: None leaves every NOTIFY to the caller, as a `Notify`.
        failed: called for each failure.
        cells: the row that it counts in; by default one of its own.
        max_answer_size: bytes of ACKs after which `receive` stops.
        max_messages: the most messages of a NOTIFY.
        max_arguments: the most arguments of all messages of a NOTIFY.
        max_tasks: the most tasks of asynchronous handlers that may wait at a time.
        deferred: makes the `Deferred` of a NOTIFY.
        on_unknown: the encoded actions that answer a message without a route.
        without_route: called with the name of such a message, once for each name.
        max_pass: nanoseconds after which `receive` suspends an intake, between two frames. A pass
            begins with the first `receive` behind `new_pass`.

    Attributes:
        routes: by message name.
        start: makes the task of an `AsyncCall`. Without it asynchronous handlers are left to
            the caller, too.
        ended: called when a task that had to be waited for has ended.
        tasks: number of the tasks that are waited for.
        path: the fast path that receives now. With it the dispatcher keeps a NOTIFY whose last
            message alone has to be waited for, and writes its ACK with `settle`.
        left: calls that the dispatcher keeps and the caller has to make, in a pool.
        settled: the fast paths of connections that have ACKs to be sent.
        slow: called with the name and the nanoseconds of a call that took longer than
            `slow_after` nanoseconds; 0: never.
        unknown: number of messages without a route, by name, for up to `MOST_UNKNOWN` names.
        running: the message whose handler is being called, else None.

    Raises:
        ValueError: the row has fewer cells than the routes need.
    """

    __slots__ = (
        "_busy", "_clock", "_deferred", "_failed", "_max_arguments", "_max_messages", "_max_pass",
        "_max_tasks", "_no_route", "_read_size", "_until", "_without_route", "cells", "ended",
        "left", "max_answer_size", "path", "routes", "running", "settled", "slow", "slow_after",
        "start", "tasks", "unknown",
    )  # fmt: skip

    def __init__(
        self,
        routes: Iterable[Route] | None = None,
        failed: Failed | None = None,
        *,
        cells: Cells | None = None,
        max_answer_size: int = MAX_ANSWER_SIZE,
        max_messages: int = MAX_MESSAGES,
        max_arguments: int = MAX_ARGUMENTS,
        max_tasks: int = MAX_TASKS,
        deferred: type[Deferred] = Deferred,
        on_unknown: bytes = b"",
        without_route: Callable[[str], None] | None = None,
        max_pass: int = NO_LIMIT,
    ) -> None:
        self.routes: dict[str, Route] | None = (
            None if routes is None else {route.name: route for route in routes}
        )
        self.cells: Cells = new_row(len(self.routes or ())) if cells is None else cells
        if len(self.cells) < row_size(len(self.routes or ())):
            raise ValueError("too few cells")
        for index, route in enumerate((self.routes or {}).values()):
            route.base = row_size(index)
        self._failed = failed
        self.max_answer_size: int = max_answer_size
        self._max_messages = max_messages
        self._max_arguments = max_arguments
        self._max_tasks = max_tasks
        self._deferred = deferred
        self._no_route = Route("", lambda: None, on_error=on_unknown)
        self._without_route = without_route
        self.start: Callable[[AsyncCall], object] | None = None
        self.ended: Callable[[], object] | None = None
        self.tasks: int = 0
        self.path: Any = None
        self.left: list[Call] = []
        self.settled: list[Any] = []
        self.slow: Callable[[str, int], object] | None = None
        self.slow_after: int = 0
        self._busy = False
        self._clock = 0
        self._read_size = 0
        self._max_pass = max_pass
        self._until = 0
        self.unknown: dict[str, int] = {}
        self.running: Running | None = None

    @property
    def takes_tasks(self) -> bool:
        """A further asynchronous handler may begin."""
        return self.start is not None and self.tasks < self._max_tasks

    def new_pass(self) -> None:
        """What is received next begins a pass."""
        self._until = 0

    def receive(
        self, intake: Intake, data: Buffer, end: int | None = None
    ) -> tuple[list[Frame | Deferred], bytes]:
        """Take in `data`, or its first `end` bytes, and answer the NOTIFY frames there are.

        It stops at a partial frame, when the intake is `paused`, behind `max_answer_size` bytes
        of ACKs, and behind a frame that is no NOTIFY, as that may change how the next ones are
        read. The intake keeps the other bytes. Call it again without data to go on, until it
        returns nothing.

        Returns:
            The frames that the caller has to process, and the ACKs to send.

        Raises:
            ProtocolError: the first unread frame is malformed. This call has answered nothing,
                and the next one raises the same error.
            RuntimeError: a handler that this dispatcher runs has called it.
            ValueError: `end` is not in the buffer.
        """
        if end is None:
            end = len(data)
        if not 0 <= end <= len(data):
            raise ValueError(f"end is {end}, outside a buffer of {len(data)} bytes")
        if self._busy:
            raise RuntimeError("a dispatcher can't be used inside of a handler it called")
        frames: list[Frame | Deferred] = []
        out = bytearray()
        self._busy = True
        self._clock = monotonic_ns()
        self._until = self._until or self._clock + self._max_pass
        try:
            with memoryview(data)[:end] as view:
                self._take(intake, view, frames, out)
        finally:
            self._busy = False
        return frames, bytes(out)

    def _take(
        self, intake: Intake, data: memoryview, frames: list[Frame | Deferred], out: bytearray
    ) -> None:
        unread, used = intake._unread, 0
        if unread:
            # Only the first frame is copied there. Those behind it are read in `data`.
            if not intake.paused:
                used = intake._complete_frame(data)
            del unread[: self._answer(intake, bytes(unread), frames, out)]
        if not unread and not frames:
            used += self._answer(intake, bytes(data[used:]), frames, out)
        intake._keep(unread, data[used:])

    def _answer(
        self, intake: Intake, data: bytes, frames: list[Frame | Deferred], out: bytearray
    ) -> int:
        """Answer the frames at the front of `data`. Returns how many bytes they are."""
        offset = looked = 0
        try:
            while not intake.paused and len(out) < self.max_answer_size:
                if offset - looked >= BYTES_PER_LOOK:
                    looked = offset
                    self._clock = monotonic_ns()
                if self._clock >= self._until and offset < len(data):
                    intake.suspended = True
                    break
                if not intake.is_open:
                    intake._see_flags(data, offset + LENGTH_SIZE)
                length = codec.frame_length(data, offset, intake._frame_limit)
                if length < 0:
                    break
                more = self._answer_frame(intake, data, offset + LENGTH_SIZE, length, frames, out)
                offset += LENGTH_SIZE + length
                if not more:
                    break
        except ProtocolError as error:
            if frames or out:
                return offset  # The next call raises it, after these are sent.
            if isinstance(error, TooManyMessagesError):
                self.cells[Cell.TOO_MANY_MESSAGES] += 1
            raise
        except BaseException:  # Our own, or there is no memory: the connection ends.
            self.cells[Cell.ACKS_DROPPED] += len(frames)
            raise
        return offset

    def _answer_frame(
        self,
        intake: Intake,
        data: bytes,
        offset: int,
        length: int,
        frames: list[Frame | Deferred],
        out: bytearray,
    ) -> bool:
        """Answer one frame, or add it to `frames`. False: it is no NOTIFY."""
        end = offset + length
        type_, flags, stream_id, frame_id, offset = codec.read_header(
            data, offset, end, intake.little_endian, intake.whole
        )
        if not intake.is_open or (type_ != _NOTIFY and type_ != _UNSET):
            if type_ in CONTROL_TYPES and length > MAX_CONTROL_SIZE:
                raise FrameTooBigError(f"frame of {length} bytes, {MAX_CONTROL_SIZE} at most")
            frames.append(codec.read_frame(type_, flags, stream_id, frame_id, data, offset, end))
            return False
        if type_ == _NOTIFY and flags & _FIN:
            if intake.begun:
                raise InterlacedFramesError
            notify = Notify(stream_id, frame_id, ())
            notify.messages = self._messages(data, offset, end, stream_id, frame_id)
        else:
            fragment = RawFrame(type_, flags, stream_id, frame_id, data[offset:end])
            whole = self._put_together(intake, fragment, out)
            if whole is None:
                return True
            notify = whole
        try:
            self._notify(intake, notify, frames, out)
        except BaseException:
            self.cells[Cell.ACKS_DROPPED] += 1
            raise
        return True

    def _put_together(self, intake: Intake, frame: RawFrame, out: bytearray) -> Notify | None:
        """The NOTIFY that a fragment completes, else None (section 3.2)."""
        ids = frame.stream_id, frame.frame_id
        try:
            payload = intake._take_fragment(frame)
        except FrameTooBigError:
            self.cells[Cell.PAYLOADS_TOO_BIG] += 1
            codec.encode_ack(*ids, (), out, abort=True, little_endian=intake.little_endian)
            return None
        if payload is None:
            return None
        notify = Notify(*ids, ())
        try:
            notify.messages = self._messages(payload, 0, len(payload), *ids)
        except ProtocolError:
            intake._take_back(frame)  # The next call reads it once more.
            raise
        intake._end_payload()
        return notify

    def _messages(
        self, data: bytes, offset: int, end: int, stream_id: int, frame_id: int
    ) -> list[Message]:
        """Read the messages of a NOTIFY, up to the limits."""
        messages: list[Message] = []
        arguments = 0
        self._read_size = end - offset
        while offset < end:
            if len(messages) == self._max_messages:
                raise TooManyMessagesError(f"NOTIFY of more than {self._max_messages} messages")
            message, offset = codec.read_message(data, offset, end, stream_id, frame_id)
            arguments += len(message.names)
            if arguments > self._max_arguments:
                raise TooManyMessagesError(f"NOTIFY of more than {self._max_arguments} arguments")
            messages.append(message)
        return messages

    def _notify(
        self, intake: Intake, notify: Notify, frames: list[Frame | Deferred], out: bytearray
    ) -> None:
        self.cells[Cell.NOTIFIES] += 1
        for message in notify.messages:
            message.connection = intake.peer
        if self.routes is None:
            intake.in_flight += 1
            frames.append(notify)
            return
        ack = bytearray()
        codec.begin_frame(
            (_ACK, _FIN, notify.stream_id, notify.frame_id, intake.little_endian), ack
        )
        payload = len(ack)
        # HAProxy takes no fragments of an ACK (section 3.2.7).
        room = intake.max_frame_size + LENGTH_SIZE - payload
        for index, message in enumerate(notify.messages):
            route = self.routes.get(message.name)
            if route is None:
                self._unknown(message.name)
                if len(ack) + len(self._no_route.on_error) <= payload + room:
                    ack += self._no_route.on_error
                continue
            kept = self._find_kept(route, message)
            if kept is not None:
                ack += self.fitting(route, kept, payload + room - len(ack))
                continue
            waiting = self._run(route, message, ack, payload + room)
            if waiting is not None:
                actions = bytes(ack[payload:])
                last = index + 1 == len(notify.messages)
                if self.path is not None and last and _keepable(waiting):
                    self._keep(waiting, actions, notify, intake, room)
                    return
                calls = [waiting, *self._bound(notify.messages[index + 1 :])]
                frames.append(self._defer(intake, notify, actions, calls, room))
                return
        self.cells[Cell.ACKS] += 1
        out += codec.finish_frame(0, ack)
        self._clock = monotonic_ns()

    def _defer(
        self, intake: Intake, notify: Notify, actions: bytes, calls: list[Call], room: int
    ) -> Deferred:
        deferred = self._deferred(notify.stream_id, notify.frame_id, actions, calls, room)
        self._clock = monotonic_ns()
        deferred.size = self._taken(intake, notify)
        return deferred

    def _taken(self, intake: Intake, notify: Notify) -> int:
        """Count a NOTIFY that waits. Returns the bytes of memory that it takes."""
        values = sum(len(message.names) for message in notify.messages)
        size = self._read_size + VALUE_SIZE * values
        intake.in_flight += 1
        intake.memory.take(size)
        return size

    def _find_kept(self, route: Route, message: Message) -> bytes | None:
        """The answer that is kept, if one is."""
        answers, key = route.answers, None if route.answers is None else route._key(message)
        if answers is None or key is None:
            return None
        answer = answers.find(key, self._clock)
        found = RouteCell.MISSES if answer is None else RouteCell.HITS
        self.cells[route.base + found] += 1
        return answer

    def fitting(self, route: Route, answer: bytes, room: int) -> bytes:
        """An answer that is kept. If it does not fit, the message fails."""
        if len(answer) <= room:
            return answer
        self.fail(route, FrameTooBigError(_TOO_BIG.format(len(answer), room)))
        return route.on_error if len(route.on_error) <= room else b""

    def _run(self, route: Route, message: Message, ack: bytearray, most: int) -> Call | None:
        """Call a handler and add its answer, if it fits `most`. Returns a call to be waited for."""
        start = len(ack)
        try:
            call = Call(route, route._bind(message))
            if route.kind == LEFT or (route.kind == ASYNC and not self.takes_tasks):
                return call
            self.running = Running(
                message.name, message.stream_id, message.frame_id, message.connection
            )
            returned = call.run()
            if route.kind == ASYNC:
                begun = self._begin(route, returned)
                if not begun.done:
                    return Call(route, call.values, begun)
                if begun.error is not None:
                    raise begun.error
                returned = begun.value
            for result in _results(call, returned):
                codec.write_answer(result, ack)
            if len(ack) > most:
                raise FrameTooBigError(_TOO_BIG.format(len(ack) - start, most - start))
        except BaseException as error:  # Whatever it is, the loop goes on and the peer waits.
            del ack[start:]
            self.fail(route, error)
            if start + len(route.on_error) <= most:
                ack += route.on_error
        finally:
            self.running = None
        self._observe(route)
        return None

    def _begin(self, route: Route, coroutine: Coroutine[Any, Any, Any]) -> AsyncCall:
        """Start a task for a handler's coroutine. It may have ended when this returns."""
        assert self.start is not None
        begun = AsyncCall(coroutine, route.name, self.slow, self.slow_after)
        token = RUNNING.set(self.running)
        try:
            begun.task = self.start(begun)
        finally:
            RUNNING.reset(token)
        return begun

    def _keep(self, call: Call, actions: bytes, notify: Notify, intake: Intake, room: int) -> None:
        """Answer a NOTIFY when its only call ends, without a `Deferred`."""
        call._dispatcher = self
        call._intake = intake
        call._path = self.path
        call._ids = notify.stream_id, notify.frame_id
        call._actions = actions
        call._room = room
        call.size = self._taken(intake, notify)
        call._began = self._clock
        self._clock = monotonic_ns()
        intake.calls[call] = None
        if call.begun is None:
            call.running = (call.route.name, *call._ids, intake.peer)
            self.left.append(call)
        else:
            call.begun.finished = call
            self.count_task(1)

    def count_task(self, change: int) -> None:  # 1: has begun to wait, -1: has ended
        self.tasks += change
        self.cells[Cell.RUNNING] = self.tasks
        if change < 0 and self.ended is not None:
            self.ended()

    def settle(self, call: Call, returned: Any, error: BaseException | None) -> None:
        """Write the ACK of a call that the dispatcher keeps and that has ended."""
        intake = call._intake
        if intake is None:  # It is settled already.
            return
        call._intake = None
        del intake.calls[call]
        intake.in_flight -= 1
        ack = bytearray()
        try:
            codec.begin_frame((_ACK, _FIN, *call._ids, intake.little_endian), ack)
            ack += call._actions
            room = LENGTH_SIZE + intake.max_frame_size - len(ack)
            ack += self.result(call, returned, error, call._began, room)
            self._send_later(intake, codec.finish_frame(0, ack), call._path)
        except Exception as unexpected:  # Not a handler's: `result` takes those.
            self.cells[Cell.ACKS_DROPPED] += 1
            call._path.fail(unexpected)

    def _send_later(self, intake: Intake, ack: bytes | bytearray, path: Any) -> None:
        if not intake._acks:
            self.settled.append(path)
        self.cells[Cell.ACKS] += 1
        intake._keep(intake._acks, ack)

    def take_back(self, intake: Intake) -> list[Deferred]:
        """The NOTIFYs of a connection that the dispatcher keeps. It keeps them no longer."""
        found, calls = [], cast("list[Call]", list(intake.calls))
        for call in calls:
            call._intake = None
            if call.begun is not None:
                self.count_task(-1)
            deferred = self._deferred(*call._ids, call._actions, [call], call._room)
            deferred.size = call.size
            found.append(deferred)
        intake.calls.clear()
        return found

    def _observe(self, route: Route) -> None:
        """Count a call. Its time begins at the end of the last one: that saves a clock read."""
        now = monotonic_ns()
        took = now - self._clock
        self._clock = now
        self._count_call(route, took)

    def _count_call(self, route: Route, took: int) -> None:
        observe(self.cells, route.base, took)
        if 0 < self.slow_after < took and route.kind == INLINE and self.slow is not None:
            self.slow(route.name, took)

    def _bound(self, messages: list[Message]) -> list[Call]:
        """Calls of the messages behind one that has to be waited for."""
        assert self.routes is not None
        calls = []
        for message in messages:
            route = self.routes.get(message.name)
            if route is None:
                self._unknown(message.name)
                if self._no_route.on_error:
                    calls.append(Call(self._no_route, None))
                continue
            try:
                kept = self._find_kept(route, message)
                values = route._bind(message) if kept is None else None
                calls.append(Call(route, values, kept=kept))
            except BaseException as error:
                self.fail(route, error)
                calls.append(Call(route, None))
        return calls

    def result(
        self, call: Call, returned: Any, error: BaseException | None, began: int, room: int
    ) -> bytes | bytearray:
        """Count a call that had to be waited for, and encode its actions.

        Args:
            returned: what the handler returned, if there is no `error`.
            began: when it was called, in ns of `time.monotonic_ns`.
            room: the most bytes that the actions may have.
        """
        route = call.route
        actions = bytearray()
        if error is None:
            try:
                for result in _results(call, returned):
                    codec.encode_answer(result, actions)
                if len(actions) > room:
                    raise FrameTooBigError(_TOO_BIG.format(len(actions), room))
            except BaseException as failure:
                error = failure
        if error is not None:
            self.fail(route, error)
            error = None  # Breaks a reference cycle: its traceback may have this frame.
            actions[:] = route.on_error if len(route.on_error) <= room else b""
        self._count_call(route, monotonic_ns() - began)
        return actions

    def acknowledge(self, intake: Intake, deferred: Deferred, path: Any) -> None:
        """Write the ACK of a NOTIFY whose calls have all ended (section 3.2.7).

        Args:
            intake: of the connection that it leaves on.
            path: the fast path of that connection, for `settled`.
        """
        actions, ack = deferred.actions, bytearray()
        head = _ACK, _FIN, deferred.stream_id, deferred.frame_id, intake.little_endian
        codec.begin_frame(head, ack)
        room = LENGTH_SIZE + intake.max_frame_size - len(ack)
        if len(actions) > room:  # Another connection may have a lower limit.
            error = FrameTooBigError(_TOO_BIG.format(len(actions), room))
            self.fail(deferred.calls[0].route, error)
            actions = b""
        ack += actions
        self._send_later(intake, codec.finish_frame(0, ack), path)

    def fail(self, route: Route, error: BaseException) -> None:
        """Count a failure of a route and call `failed`."""
        self.cells[route.base + RouteCell.ERRORS] += 1
        if self._failed is not None:
            self._failed(route.name, error)

    def _unknown(self, name: str) -> None:
        self.cells[Cell.UNKNOWN_MESSAGES] += 1
        name = name[:MAX_TEXT_SIZE]
        if name in self.unknown:
            self.unknown[name] += 1
        elif len(self.unknown) < MOST_UNKNOWN:
            self.unknown[name] = 1
            if self._without_route is not None:
                self._without_route(name)
