"""From the bytes of NOTIFY frames to the bytes of their ACKs, in pure Python.

A `Route` is a handler whose signature was analysed once. A `Dispatcher` has all routes of an
agent, finds each message's, calls it with the arguments where its parameters want them, and
encodes what it returns. Handlers that may not run here are left to the caller as `Deferred`.

`_dispatch.pyx` is the compiled twin, `spop.dispatch` chooses. One thread uses a dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address
from time import monotonic_ns, perf_counter_ns
from typing import Any, Final, NamedTuple

from spop import _codec_py as codec
from spop._headers_py import Headers
from spop._intake_py import Intake
from spop.constants import (
    CONTROL_TYPES,
    FLAGS_END,
    LENGTH_SIZE,
    MAX_ANSWER_SIZE,
    MAX_ARGUMENTS,
    MAX_CONTROL_SIZE,
    MAX_MESSAGES,
    DataType,
    FrameFlag,
    FrameType,
)
from spop.counters import Cell, Cells, RouteCell, new_row, observe, row_size
from spop.errors import (
    FrameTooBigError,
    HandlerError,
    InterlacedFramesError,
    InvalidFrameError,
    ProtocolError,
)
from spop.frames import Ack, Frame, Message, Notify, RawFrame
from spop.values import Buffer

# Members of an enum take several times as long to look up.
_UNSET, _NOTIFY, _ACK = int(FrameType.UNSET), int(FrameType.NOTIFY), int(FrameType.ACK)
_FIN, _ABORT = int(FrameFlag.FIN), int(FrameFlag.ABORT)

MISSING: Final[Any] = object()
"""As the default of a `Parameter`: there is none."""

ARGUMENT, MESSAGE, ACK = range(3)
"""What a parameter is given: an argument of the message, the message itself, an `Ack`."""

HEADERS: Final = 1 << 16
"""In `Parameter.accepts`: STRING and BINARY are passed as `Headers`, unless they are accepted
as they are."""


class Parameter(NamedTuple):
    """One parameter of a handler.

    Attributes:
        accepts: bit N is set where a value of data type N may be passed.
        default: passed where the argument is missing, or NULL and that is not accepted.
    """

    name: str
    kind: int = ARGUMENT
    accepts: int = -1
    default: Any = MISSING
    keyword_only: bool = False


INLINE, ASYNC, LEFT = range(3)
"""How a handler is called: here; here, as the coroutine of a task; or by the dispatcher's caller."""

RUNNING: ContextVar[Callable[[], Running | None] | tuple[str, int, int, Any] | None] = ContextVar(
    "spop_running"
)
"""The message that is handled in this context: the fields of a `Running`, or who knows it."""


class TooManyError(FrameTooBigError):
    """A NOTIFY with more messages or arguments than the limits allow."""


class Running(NamedTuple):
    """The message whose handler runs now."""

    name: str
    stream_id: int
    frame_id: int
    connection: Any


class Route:
    """A handler, ready to be called.

    Attributes:
        kind: `INLINE`, `ASYNC` or `LEFT`.
        on_error: the encoded actions that answer a message that it fails to handle.
        base: where its cells begin in the row of its dispatcher.
    """

    __slots__ = (
        "_slots", "base", "function", "keywords", "kind", "name", "on_error", "parameters",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        parameters: Iterable[Parameter] = (),
        kind: int = INLINE,
        on_error: bytes = b"",
    ) -> None:
        self.name = name
        self.function = function
        self.parameters = tuple(sorted(parameters, key=lambda p: p.keyword_only))
        self.keywords = tuple(p.name for p in self.parameters if p.keyword_only)
        self.kind = kind
        self.on_error = on_error
        self.base = 0
        self._slots = {p.name: slot for slot, p in enumerate(self.parameters) if p.kind == ARGUMENT}

    def _bind(self, message: Message) -> list[Any]:
        """The values for the parameters, in their order.

        Raises:
            HandlerError: an argument is missing or of a type that is not accepted.
        """
        values = [MISSING] * len(self.parameters)
        for name, value in zip(message.names, message.values, strict=True):
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots.get(name.replace("-", "_").replace(".", "_"))
            if slot is not None and values[slot] is MISSING:
                values[slot] = self._accepted(self.parameters[slot], value)
        for slot, parameter in enumerate(self.parameters):
            if parameter.kind == MESSAGE:
                values[slot] = message
            elif parameter.kind == ACK:
                values[slot] = Ack(message.stream_id, message.frame_id)
            elif values[slot] is MISSING:
                if parameter.default is MISSING:
                    raise HandlerError(f"message {self.name}: no argument {parameter.name}")
                values[slot] = parameter.default
        return values

    def _accepted(self, parameter: Parameter, value: Any) -> Any:
        type_ = _TYPES[type(value)]
        if parameter.accepts & type_:
            return value
        if type_ == _STRING and parameter.accepts & _BINARY:
            return value.encode("utf-8", "surrogateescape")
        if type_ & (_STRING | _BINARY) and parameter.accepts & HEADERS:
            return self._headers(parameter, value)
        if value is None:
            return MISSING
        raise HandlerError(
            f"message {self.name}: argument {parameter.name} may not be {_type_name(type_)}"
        )

    def _headers(self, parameter: Parameter, value: str | bytes) -> Headers:
        try:
            return Headers(value)
        except InvalidFrameError as error:
            raise HandlerError(
                f"message {self.name}: argument {parameter.name} is no list of headers: {error}"
            ) from None

    def call(self, values: list[Any]) -> Any:
        """Call the handler with bound values and return what it returns."""
        positional = len(values) - len(self.keywords)
        if not self.keywords:
            return self.function(*values)
        return self.function(
            *values[:positional], **dict(zip(self.keywords, values[positional:], strict=True))
        )

    def __repr__(self) -> str:
        return f"<Route {self.name}>"


_INTEGERS = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5
_STRING = 1 << 8
_BINARY = 1 << 9
_TYPES: dict[type, int] = {
    type(None): 1 << 0, bool: 1 << 1, int: _INTEGERS, IPv4Address: 1 << 6,
    IPv6Address: 1 << 7, str: _STRING, bytes: _BINARY,
}  # fmt: skip


def _type_name(types: int) -> str:
    return "an integer" if types == _INTEGERS else DataType(types.bit_length() - 1).name


class AsyncCall(Coroutine[Any, Any, None]):
    """The coroutine of an ``async def`` handler, as its task runs it.

    It never raises into the event loop, but keeps what came of the handler, and tells of it in
    the very step in which the handler ends. A callback of the task would come rounds later.

    Args:
        name: the message's.
        slow: called with the name and the nanoseconds of a step that took longer than
            `slow_after` of them; 0: never.

    Attributes:
        task: the task that runs it.
        done: the handler has ended.
        value: what it returned.
        error: what it raised.
        finished: called with this object when the handler ends, if it is set by then.
    """

    __slots__ = (
        "_coroutine", "_name", "_slow", "_slow_after", "done", "error", "finished", "task", "value",
    )  # fmt: skip

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str,
        slow: Callable[[str, int], object] | None = None,
        slow_after: int = 0,
    ) -> None:
        self._coroutine = coroutine
        self._name = name
        self._slow = slow
        self._slow_after = slow_after
        self.task: Any = None
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished: Callable[[AsyncCall], object] | None = None

    def send(self, value: Any) -> Any:
        """Run the handler's next step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """Run its next step with an exception, `asyncio.CancelledError` for one."""
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        """End it without a result."""
        self._coroutine.close()

    def __next__(self) -> Any:
        return self.send(None)

    def __iter__(self) -> AsyncCall:
        return self

    __await__ = __iter__

    def __getattr__(self, name: str) -> Any:
        """``cr_frame`` and its like, for those who look into a task."""
        return getattr(self._coroutine, name)

    def _step(self, resume: Callable[..., Any], *args: Any) -> Any:
        began = perf_counter_ns()
        try:
            return resume(*args)
        except StopIteration as stop:
            self.value = stop.value
        except BaseException as error:
            self.error = error
        finally:
            took = perf_counter_ns() - began
            if 0 < self._slow_after < took and self._slow is not None:
                self._slow(self._name, took)
        self.done = True
        if self.finished is not None:
            self.finished(self)
        raise StopIteration


class Call(NamedTuple):
    """One message of a `Deferred`: its handler and the values for the handler's parameters.

    Without values the message has failed already, and only its `on_error` is to be answered.
    An asynchronous call that has begun has its `AsyncCall`.
    """

    route: Route
    values: list[Any] | None
    begun: AsyncCall | None = None

    def run(self) -> Any:
        """Call the handler and return what it returns."""
        return self.route.call(self.values or [])

    def results(self, returned: Any) -> list[Any]:
        """What to encode for the handler: its `Ack`, if it took one, and what it returned."""
        filled = [value.actions for value in self.values or [] if type(value) is Ack]
        return filled if returned is None else [*filled, returned]


class Deferred:
    """A NOTIFY whose handlers have not all ended. The caller runs the others and answers it.

    Attributes:
        stream_id, frame_id: the NOTIFY's.
        actions: encoded, of the handlers that have ended.
        calls: those that have not, in order. The first may have begun.
    """

    __slots__ = ("actions", "calls", "frame_id", "stream_id")

    def __init__(self, stream_id: int, frame_id: int, actions: bytes, calls: list[Call]) -> None:
        self.stream_id = stream_id
        self.frame_id = frame_id
        self.actions = actions
        self.calls = calls


Failed = Callable[[str, BaseException], None]
"""Told of a message's name and what went wrong with it. It must not raise."""


class Dispatcher:
    """All routes of an agent, for use by one thread.

    Args:
        routes: None leaves every NOTIFY to the caller, as `Notify`.
        failed: told of each failure.
        cells: the row that it counts in; one of its own where None.
        max_answer_size: bytes of ACKs after which `receive` stops.
        max_messages: messages that a NOTIFY may have.
        max_arguments: arguments that the messages of a NOTIFY may have together.
        deferred: makes the `Deferred` of a NOTIFY.

    Attributes:
        routes: by message name.
        start: makes the task of an `AsyncCall`. Without it asynchronous handlers are left to
            the caller too.
        slow: told of the name and nanoseconds of a call that took more than `slow_after`; 0 is
            never.
        unknown: messages without a route, by name to a bounded number of names.
        running: the message whose handler is being called, else None.

    Raises:
        ValueError: the row has fewer cells than the routes need.
    """

    __slots__ = (
        "_busy", "_clock", "_deferred", "_failed", "_max_arguments", "_max_messages", "cells",
        "max_answer_size", "routes", "running", "slow", "slow_after", "start", "unknown",
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
        deferred: type[Deferred] = Deferred,
    ) -> None:
        self.routes = None if routes is None else {route.name: route for route in routes}
        self.cells = new_row(len(self.routes or ())) if cells is None else cells
        if len(self.cells) < row_size(len(self.routes or ())):
            raise ValueError("too few cells")
        for index, route in enumerate((self.routes or {}).values()):
            route.base = row_size(index)
        self._failed = failed
        self.max_answer_size = max_answer_size
        self._max_messages = max_messages
        self._max_arguments = max_arguments
        self._deferred = deferred
        self.start: Callable[[AsyncCall], object] | None = None
        self.slow: Callable[[str, int], object] | None = None
        self.slow_after = 0
        self._busy = False
        self._clock = 0
        self.unknown: dict[str, int] = {}
        self.running: Running | None = None

    def receive(
        self, intake: Intake, data: Buffer, end: int | None = None
    ) -> tuple[list[Frame | Deferred], bytes]:
        """Take in `data`, or its first `end` bytes, and answer the NOTIFY frames there are.

        It stops at a partial frame, when the intake is `paused`, behind `max_answer_size` bytes
        of ACKs, and behind any other frame, as that may change how the next ones are read. The
        intake keeps the rest. A further call without data goes on with it; that is worth while
        until one returns nothing.

        Returns:
            The frames that the caller has to see to, and the ACKs to send.

        Raises:
            ProtocolError: the first frame that was not dealt with is malformed. The call has
                answered nothing; the next one raises the same.
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
        self._clock = perf_counter_ns()
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
            # Only the first frame is completed there; those behind it are read where they are.
            if not intake.paused:
                used = intake._complete_frame(data)
            del unread[: self._answer(intake, bytes(unread), frames, out)]
        if not unread and not frames:
            used += self._answer(intake, bytes(data[used:]), frames, out)
        unread += data[used:]

    def _answer(
        self, intake: Intake, data: bytes, frames: list[Frame | Deferred], out: bytearray
    ) -> int:
        """Answer the frames at the front of `data`. Returns how many bytes they are."""
        offset = 0
        try:
            while not intake.paused and len(out) < self.max_answer_size:
                if not intake.is_open:
                    if len(data) - offset < FLAGS_END:
                        break  # How an error is answered depends on the flags of HELLO.
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
                return offset  # The next call begins with the error, when these were sent.
            if isinstance(error, TooManyError):
                self.cells[Cell.TOO_MANY_MESSAGES] += 1
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
        self._notify(intake, notify, frames, out)
        return True

    def _put_together(self, intake: Intake, frame: RawFrame, out: bytearray) -> Notify | None:
        """The NOTIFY that a fragment completes, else None."""
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
            intake._take_back(frame)  # It is taken once more, when it is the first frame.
            raise
        intake._end_payload()
        return notify

    def _messages(
        self, data: bytes, offset: int, end: int, stream_id: int, frame_id: int
    ) -> list[Message]:
        """Read the messages of a NOTIFY, up to the limits."""
        messages: list[Message] = []
        arguments = 0
        while offset < end:
            if len(messages) == self._max_messages:
                raise TooManyError(f"NOTIFY of more than {self._max_messages} messages")
            message, offset = codec.read_message(data, offset, end, stream_id, frame_id)
            arguments += len(message.names)
            if arguments > self._max_arguments:
                raise TooManyError(f"NOTIFY of more than {self._max_arguments} arguments")
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
        for index, message in enumerate(notify.messages):
            route = self.routes.get(message.name)
            if route is None:
                self._unknown(message.name)
                continue
            waiting = self._run(route, message, ack)
            if waiting is not None:
                calls = [waiting, *self._bound(notify.messages[index + 1 :])]
                intake.in_flight += 1
                frames.append(
                    self._deferred(notify.stream_id, notify.frame_id, bytes(ack[payload:]), calls)
                )
                return
        # HAProxy takes no fragments of an ACK (section 3.2.7).
        if len(ack) - 4 > intake.max_frame_size:
            self._too_big(notify.messages[0].name, len(ack) - 4, intake.max_frame_size)
            del ack[payload:]
        self.cells[Cell.ACKS] += 1
        out += codec.finish_frame(0, ack)

    def _run(self, route: Route, message: Message, ack: bytearray) -> Call | None:
        """Call a handler and write what it returns. Returns a call that has to be waited for."""
        start = len(ack)
        try:
            call = Call(route, route._bind(message))
            if route.kind == LEFT or (route.kind == ASYNC and self.start is None):
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
            for result in call.results(returned):
                codec.write_answer(result, ack)
        except BaseException as error:  # Whatever it is, the loop goes on and the peer waits.
            del ack[start:]
            self.fail(route, error)
            ack += route.on_error
        finally:
            self.running = None
        self._observe(route)
        return None

    def _begin(self, route: Route, coroutine: Coroutine[Any, Any, Any]) -> AsyncCall:
        """Start a task for a handler's coroutine, which may have ended when this returns."""
        assert self.start is not None
        begun = AsyncCall(coroutine, route.name, self.slow, self.slow_after)
        token = RUNNING.set(self.running)
        try:
            begun.task = self.start(begun)
        finally:
            RUNNING.reset(token)
        return begun

    def _observe(self, route: Route) -> None:
        """Count a run, from the end of the one before it, and how long it took."""
        now = perf_counter_ns()
        took = now - self._clock
        self._clock = now
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
                continue
            try:
                calls.append(Call(route, route._bind(message)))
            except HandlerError as error:
                self.fail(route, error)
                calls.append(Call(route, None))
        return calls

    def result(
        self, call: Call, returned: Any, error: BaseException | None, began: int
    ) -> bytes | bytearray:
        """The encoded actions of a call that had to be waited for, which is counted.

        Args:
            returned: what the handler returned, if there is no `error`.
            began: when it was called, in ns of `time.monotonic_ns`.
        """
        route = call.route
        actions = bytearray()
        try:
            if error is not None:
                raise error
            for result in call.results(returned):
                codec.encode_answer(result, actions)
        except BaseException as failure:
            self.fail(route, failure)
            actions = bytearray(route.on_error)
        observe(self.cells, route.base, monotonic_ns() - began)
        return actions

    def acknowledge(self, intake: Intake, deferred: Deferred) -> bytes | bytearray:
        """The ACK of a NOTIFY whose calls have all ended."""
        ids = deferred.stream_id, deferred.frame_id
        little_endian = intake.little_endian
        ack = codec.encode_raw_frame(
            _ACK, _FIN, *ids, deferred.actions, little_endian=little_endian
        )
        if len(ack) - 4 > intake.max_frame_size:
            self._too_big(deferred.calls[0].route.name, len(ack) - 4, intake.max_frame_size)
            ack = codec.encode_raw_frame(_ACK, _FIN, *ids, b"", little_endian=little_endian)
        self.cells[Cell.ACKS] += 1
        return ack

    def fail(self, route: Route, error: BaseException) -> None:
        """Count a failure of a route and tell of it."""
        self.cells[route.base + RouteCell.ERRORS] += 1
        if self._failed is not None:
            self._failed(route.name, error)

    def _too_big(self, name: str, size: int, limit: int) -> None:
        if self._failed is not None:
            self._failed(name, FrameTooBigError(f"ACK of {size} bytes, {limit} at most"))

    def _unknown(self, name: str) -> None:
        self.cells[Cell.UNKNOWN_MESSAGES] += 1
        if name in self.unknown or len(self.unknown) < 100:
            self.unknown[name] = self.unknown.get(name, 0) + 1
