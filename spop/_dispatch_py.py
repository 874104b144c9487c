"""From the bytes of NOTIFY frames to the bytes of their ACKs, in pure Python.

A `Route` is a handler whose signature was analysed once. A `Dispatcher` has all routes of an
agent, finds each message's, calls it with the arguments where its parameters want them, and
encodes what it returns. Handlers that may not run here are left to the caller as `Deferred`.

`_dispatch.pyx` is the compiled twin, `spop.dispatch` chooses. One thread uses a dispatcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from spop import _codec_py as codec
from spop._headers_py import Headers
from spop.constants import MAX_ANSWER_SIZE, MAX_ARGUMENTS, MAX_MESSAGES, DataType
from spop.counters import Cell, Cells, RouteCell, new_row, observe, row_size
from spop.errors import (
    FragmentationError,
    FrameTooBigError,
    HandlerError,
    InterlacedFramesError,
    InvalidFrameError,
    ProtocolError,
)
from spop.frames import Ack, Frame, Message, Notify, RawFrame
from spop.values import Buffer

_UNSET, _NOTIFY = 0, 3
_FIN, _ABORT = 1, 2

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


class Route:
    """A handler, ready to be called.

    Attributes:
        base: where its cells begin in the row of its dispatcher.
    """

    __slots__ = (
        "_slots", "base", "deferred", "function", "keywords", "name", "on_error", "parameters",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        parameters: Iterable[Parameter] = (),
        deferred: bool = False,
        on_error: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.parameters = tuple(sorted(parameters, key=lambda p: p.keyword_only))
        self.keywords = tuple(p.name for p in self.parameters if p.keyword_only)
        self.deferred = deferred
        self.on_error = dict(on_error or {})
        self.base = 0
        self._slots = {p.name: slot for slot, p in enumerate(self.parameters) if p.kind == ARGUMENT}

    def bind(self, message: Message) -> list[Any]:
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


class Call(NamedTuple):
    """One message of a `Deferred`: its handler and the values for the handler's parameters."""

    route: Route
    values: list[Any]

    def results(self, returned: Any) -> list[Any]:
        """What to encode for the handler: its `Ack`, if it took one, and what it returned."""
        filled = [value.actions for value in self.values if type(value) is Ack]
        return filled if returned is None else [*filled, returned]


class Deferred(NamedTuple):
    """A NOTIFY with a handler that may not run in the loop. The caller runs and answers it."""

    stream_id: int
    frame_id: int
    calls: list[Call]


Failed = Callable[[str, Exception | SystemExit], None]
"""Told of a message's name and what went wrong with it."""


class Running(NamedTuple):
    """The message whose handler runs now."""

    name: str
    stream_id: int
    frame_id: int
    connection: Any


class Fragments:
    """A payload that comes in fragments, on one connection (section 3.2).

    Args:
        max_size: bytes that it may have; of one that is larger the rest is ignored.

    Attributes:
        begun: a payload is on its way.
        idle: neither that, nor is the rest of one being ignored.
    """

    __slots__ = ("_data", "_ids", "begun", "max_size")

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.begun = False
        self._data = bytearray()
        self._ids: tuple[int, int] | None = None

    @property
    def idle(self) -> bool:
        return self._ids is None

    def take(self, frame: RawFrame) -> bytes | None:
        """Add a fragment. Returns the payload where it is whole.

        Raises:
            InterlacedFramesError: it is none of the payload that was begun.
            FrameTooBigError: the payload has become too large.
        """
        ids = frame.stream_id, frame.frame_id
        final = frame.flags & _FIN
        if frame.type == _NOTIFY:
            if self.begun:
                raise InterlacedFramesError
            self._ids, self.begun = ids, True
        elif self._ids != ids:
            raise InterlacedFramesError(f"fragment of {ids} where none or another was begun")
        elif not self.begun or frame.flags & _ABORT:
            if final:
                self.end()
            return None
        self._data += frame.payload
        if len(self._data) > self.max_size:
            self.end()
            self._ids = None if final else ids
            raise FrameTooBigError
        return bytes(self._data) if final else None

    def take_back(self, frame: RawFrame) -> None:
        """Remove the last fragment, to take it once more later."""
        del self._data[len(self._data) - len(frame.payload) :]

    def end(self) -> None:
        """Be ready for another payload."""
        self._data.clear()
        self._ids, self.begun = None, False


class Dispatcher:
    """All routes of an agent, for use by one thread.

    Args:
        routes: None leaves every NOTIFY to the caller, as `Notify`.
        failed: told of each failure.
        cells: the row that it counts in; one of its own where None.
        max_answer_size: bytes of ACKs after which `answer_frames` stops.
        max_messages: messages that a NOTIFY may have.
        max_arguments: arguments that the messages of a NOTIFY may have together.
        buffer: what each `Port` receives into.

    Attributes:
        routes: by message name.
        unknown: messages without a route, by name to a bounded number of names.
        running: the message whose handler is being called, else None.
    """

    __slots__ = (
        "_clock", "_failed", "_max_arguments", "_max_messages", "buffer", "cells",
        "max_answer_size", "routes", "running", "unknown",
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
        buffer: bytearray | None = None,
    ) -> None:
        self.buffer = buffer
        self.routes = None if routes is None else {route.name: route for route in routes}
        self.cells = new_row(len(self.routes or ())) if cells is None else cells
        for index, route in enumerate((self.routes or {}).values()):
            route.base = row_size(index)
        self._failed = failed
        self.max_answer_size = max_answer_size
        self._max_messages = max_messages
        self._max_arguments = max_arguments
        self._clock = 0
        self.unknown: dict[str, int] = {}
        self.running: Running | None = None

    def answer_frames(
        self,
        buffer: Buffer,
        start: int,
        end: int,
        max_frame_size: int,
        max_ack_size: int,
        little_endian: bool,
        room: int,
        connection: Any,
        fragments: Fragments | None = None,
    ) -> tuple[list[Frame | Deferred], int, bytes]:
        """Answer the NOTIFY frames at the front of a buffer.

        Fragments are put together in `fragments`, where the connection takes any. Stops at a
        partial frame, behind `room` deferred ones, behind `max_answer_size` bytes of ACKs, and
        behind any frame that is no NOTIFY, as that may change what the next ones mean.

        Returns:
            What the caller has to see to, how far it came, and the ACKs to send.

        Raises:
            ProtocolError: the first frame is no good, as in `decode_frames`.
        """
        data = bytes(memoryview(buffer)[start:end])
        self._clock = perf_counter_ns()
        left: list[Frame | Deferred] = []
        out = bytearray()
        offset = 0
        while len(left) < room and len(out) < self.max_answer_size:
            try:
                length = codec._whole_frame(data, offset, max_frame_size)
                if length < 0:
                    break
                frame: Frame | None = codec._frame(
                    data, offset + 4, offset + 4 + length, little_endian
                )
                if isinstance(frame, RawFrame) and frame.type in (_NOTIFY, _UNSET):
                    frame = self._put_together(frame, fragments, out, little_endian)
                elif isinstance(frame, Notify):
                    if fragments is not None and fragments.begun:
                        raise InterlacedFramesError
                    self._check_counts(frame)
            except ProtocolError:
                if offset == 0:
                    raise
                break
            offset += 4 + length
            if isinstance(frame, Notify):
                self._notify(frame, left, out, max_ack_size, little_endian, connection)
            elif frame is not None:
                left.append(frame)
                break
        return left, start + offset, bytes(out)

    def _put_together(
        self, frame: RawFrame, fragments: Fragments | None, out: bytearray, little_endian: bool
    ) -> Notify | None:
        """The NOTIFY that a fragment is the last of, else None."""
        if fragments is None:
            raise FragmentationError
        ids = frame.stream_id, frame.frame_id
        try:
            payload = fragments.take(frame)
        except FrameTooBigError:
            self.cells[Cell.PAYLOADS_TOO_BIG] += 1
            codec.encode_ack(*ids, (), out, abort=True, little_endian=little_endian)
            return None
        if payload is None:
            return None
        try:
            notify = Notify(*ids, codec._messages(payload, 0, len(payload), *ids))
            self._check_counts(notify)
        except ProtocolError:
            fragments.take_back(frame)
            raise
        fragments.end()
        return notify

    def _check_counts(self, notify: Notify) -> None:
        if len(notify.messages) > self._max_messages:
            self._too_many(f"{len(notify.messages)} messages", self._max_messages)
        arguments = sum(len(message.names) for message in notify.messages)
        if arguments > self._max_arguments:
            self._too_many(f"{arguments} arguments", self._max_arguments)

    def _too_many(self, what: str, limit: int) -> None:
        self.cells[Cell.TOO_MANY_MESSAGES] += 1
        raise FrameTooBigError(f"NOTIFY of {what}, {limit} at most")

    def _notify(
        self,
        notify: Notify,
        left: list[Frame | Deferred],
        out: bytearray,
        max_ack_size: int,
        little_endian: bool,
        connection: Any,
    ) -> None:
        self.cells[Cell.NOTIFIES] += 1
        for message in notify.messages:
            message.connection = connection
        if self.routes is None:
            left.append(notify)
            return
        routes = [self.routes.get(message.name) for message in notify.messages]
        if any(route is not None and route.deferred for route in routes):
            left.append(self._deferred(notify, routes))
            return
        ack = codec.encode_ack(notify.stream_id, notify.frame_id, little_endian=little_endian)
        empty = bytes(ack)
        for message, route in zip(notify.messages, routes, strict=True):
            if route is None:
                self._unknown(message.name)
            else:
                self._run(route, message, ack)
        if len(ack) - 4 > max_ack_size:
            self._too_big(notify.messages[0].name, len(ack) - 4, max_ack_size)
            ack = bytearray(empty)
        self.cells[Cell.ACKS] += 1
        out += codec._finish(0, ack)

    def _run(self, route: Route, message: Message, ack: bytearray) -> None:
        start = len(ack)
        try:
            call = Call(route, route.bind(message))
            self.running = Running(
                message.name, message.stream_id, message.frame_id, message.connection
            )
            for result in call.results(route.call(call.values)):
                codec.encode_actions(result, ack)
        except (Exception, SystemExit) as error:
            del ack[start:]
            self.fail(route, error)
            codec.encode_actions(route.on_error, ack)
        finally:
            self.running = None
        now = perf_counter_ns()
        observe(self.cells, route.base, now - self._clock)
        self._clock = now

    def _deferred(self, notify: Notify, routes: list[Route | None]) -> Deferred:
        calls = []
        for message, route in zip(notify.messages, routes, strict=True):
            if route is None:
                self._unknown(message.name)
                continue
            try:
                calls.append(Call(route, route.bind(message)))
            except HandlerError as error:
                self.fail(route, error)
                calls.append(Call(_constant(route), []))
        return Deferred(notify.stream_id, notify.frame_id, calls)

    def fail(self, route: Route, error: Exception | SystemExit) -> None:
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


def _constant(route: Route) -> Route:
    """A route that answers what `route` answers when it fails."""
    return Route(route.name, lambda: route.on_error)


READ = 1
MOST_HELD = 32 * 1024
"""Bytes of a partial frame that a `Port` keeps."""

Taken = Callable[[Any, int, list[Frame | Deferred], int, bytes, Exception | None], object]


class Port:
    """A socket whose NOTIFY frames are answered as they come: one recv, one pass, one send.

    While it is `open` a call does just that, and keeps a partial frame for the next. What it
    can't do, it leaves to `taken`: the connection, the bytes received, then what
    `Dispatcher.answer_frames` returned, with the ACKs that are still to be sent, and what went
    wrong. While it is closed a call is passed to `ready`, with the connection.

    Attributes:
        open: nothing is unsent or unanswered, and the state is open.
        active: something was sent since somebody set it to false.
    """

    __slots__ = (
        "_dispatcher", "_fragments", "_held", "_little_endian", "_max_frame_size", "_peer",
        "_ready", "_room", "_taken", "active", "connection", "fd", "open",
    )  # fmt: skip

    def __init__(
        self,
        dispatcher: Dispatcher,
        fd: int,
        connection: Any,
        ready: Callable[[Any, int], object],
        taken: Taken,
    ) -> None:
        self._dispatcher = dispatcher
        self.fd = fd
        self.connection = connection
        self._ready = ready
        self._taken = taken
        self._held = b""
        self.open = False
        self.active = False

    def agree(
        self,
        max_frame_size: int,
        little_endian: bool,
        room: int,
        peer: Any,
        fragments: Fragments | None,
    ) -> None:
        """What HELLO agreed on."""
        self._max_frame_size = max_frame_size
        self._little_endian = little_endian
        self._room = room
        self._peer = peer
        self._fragments = fragments

    def close(self) -> bytes:
        """Leave the socket to `ready`. Returns the partial frame, for who reads it now."""
        self.open = False
        held, self._held = self._held, b""
        return held

    def __call__(self, events: int) -> None:
        """The socket is ready for something."""
        if self.open and events == READ:
            self._exchange()
        else:
            self._ready(self.connection, events)

    def _exchange(self) -> None:
        dispatcher, held = self._dispatcher, len(self._held)
        cells, buffer = dispatcher.cells, dispatcher.buffer
        assert buffer is not None
        try:
            with memoryview(buffer) as view:
                received = os.readv(self.fd, [view[held:]])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._taken(self.connection, 0, [], 0, b"", error)
            return
        if not received:
            self._taken(self.connection, 0, [], 0, b"", None)
            return
        cells[Cell.BYTES_RECEIVED] += received
        size = held + received
        buffer[:held] = self._held
        self._held = b""
        try:
            left, consumed, acks = dispatcher.answer_frames(
                buffer,
                0,
                size,
                self._max_frame_size,
                self._max_frame_size,
                self._little_endian,
                self._room,
                self._peer,
                self._fragments,
            )
        except ProtocolError as error:
            self._taken(self.connection, size, [], 0, b"", error)
            return
        partial = size - consumed <= MOST_HELD and len(acks) < dispatcher.max_answer_size
        if (consumed == size or partial) and not left:
            acks = acks[self._send(acks) :]
            if not acks:
                self._held = bytes(buffer[consumed:size])
                return
        self._taken(self.connection, size, left, consumed, acks, None)

    def _send(self, acks: bytes) -> int:
        try:
            sent = os.write(self.fd, acks) if acks else 0
        except OSError:  # Whoever sends the rest finds out what it is.
            return 0
        self._dispatcher.cells[Cell.BYTES_SENT] += sent
        self.active = True
        return sent
