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
from spop.constants import MAX_ANSWER_SIZE, MAX_ARGUMENTS, MAX_MESSAGES, DataType
from spop.counters import Cell, Cells, RouteCell, new_row, observe, row_size
from spop.errors import FrameTooBigError, HandlerError, ProtocolError
from spop.frames import Ack, Frame, Message, Notify
from spop.values import Buffer

MISSING: Final[Any] = object()
"""As the default of a `Parameter`: there is none."""

ARGUMENT, MESSAGE, ACK = range(3)
"""What a parameter is given: an argument of the message, the message itself, an `Ack`."""


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
        if value is None:
            return MISSING
        raise HandlerError(
            f"message {self.name}: argument {parameter.name} may not be {_type_name(type_)}"
        )

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
    ) -> tuple[list[Frame | Deferred], int, bytes]:
        """Answer the NOTIFY frames at the front of a buffer.

        Stops at a partial frame, behind `room` deferred ones, behind `max_answer_size` bytes
        of ACKs, and behind any frame that is not a whole NOTIFY, as that may change what the
        next ones mean.

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
                frame = codec._frame(data, offset + 4, offset + 4 + length, little_endian)
                if isinstance(frame, Notify):
                    self._check_counts(frame)
            except ProtocolError:
                if offset == 0:
                    raise
                break
            offset += 4 + length
            if not isinstance(frame, Notify):
                left.append(frame)
                break
            self._notify(frame, left, out, max_ack_size, little_endian, connection)
        return left, start + offset, bytes(out)

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

Taken = Callable[[Any, int, list[Frame | Deferred], int, bytes, Exception | None], object]


class Port:
    """A socket whose NOTIFY frames are answered as they come: one recv, one pass, one send.

    While it is `open` a call does just that. What it can't do, it leaves to `taken`: the
    connection, the bytes received, then what `Dispatcher.answer_frames` returned, with the ACKs
    that are still to be sent, and what went wrong. While it is closed a call is passed to
    `ready`, with the connection.

    Attributes:
        open: nothing is half received, unsent or unanswered, and the state is open.
        active: something was sent since somebody set it to false.
    """

    __slots__ = (
        "_dispatcher", "_little_endian", "_max_frame_size", "_peer", "_ready", "_room", "_taken",
        "active", "connection", "fd", "open",
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
        self.open = False
        self.active = False

    def agree(self, max_frame_size: int, little_endian: bool, room: int, peer: Any) -> None:
        """What HELLO agreed on."""
        self._max_frame_size = max_frame_size
        self._little_endian = little_endian
        self._room = room
        self._peer = peer

    def __call__(self, events: int) -> None:
        """The socket is ready for something."""
        if self.open and events == READ:
            self._exchange()
        else:
            self._ready(self.connection, events)

    def _exchange(self) -> None:
        cells, buffer = self._dispatcher.cells, self._dispatcher.buffer
        assert buffer is not None
        try:
            size = os.readv(self.fd, [buffer])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._taken(self.connection, 0, [], 0, b"", error)
            return
        cells[Cell.BYTES_RECEIVED] += size
        try:
            left, consumed, acks = self._dispatcher.answer_frames(
                buffer,
                0,
                size,
                self._max_frame_size,
                self._max_frame_size,
                self._little_endian,
                self._room,
                self._peer,
            )
        except ProtocolError as error:
            self._taken(self.connection, size, [], 0, b"", error)
            return
        if size and consumed == size and not left:
            acks = acks[self._send(acks) :]
            if not acks:
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
