"""Handlers, ready to be called, in pure Python: from a message to the handler's arguments.

`_route.pyx` is the compiled twin.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop._cache_py import Answers
from spop._headers_py import Headers
from spop.constants import DataType
from spop.errors import HandlerError, InvalidFrameError
from spop.frames import Ack, Message
from spop.parameters import (
    ACK,
    ARGUMENT,
    HEADERS,
    INLINE,
    KEY,
    MESSAGE,
    MISSING,
    TYPE_BITS,
    Parameter,
    missing,
    mistyped,
)

_STRING, _BINARY = TYPE_BITS[str], TYPE_BITS[bytes]
LONGEST_KEY = 1024
"""Bytes of a key above which an answer is not kept."""
MAX_CACHED = 64
"""Parameters of a handler whose answers may be kept."""


class Route:
    """A handler, ready to be called.

    Attributes:
        kind: `INLINE`, `ASYNC` or `LEFT`.
        on_error: the encoded actions that answer if the handler fails.
        limited: the time or the number of its calls is limited, so its calls need a `Deferred`.
        base: the index of its first cell in the row of its dispatcher.
        answers: those that are kept.
    """

    __slots__ = (
        "_slots", "answers", "base", "function", "keywords", "kind", "limited", "name", "on_error",
        "parameters",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        parameters: Iterable[Parameter] = (),
        kind: int = INLINE,
        on_error: bytes = b"",
        limited: bool = False,
    ) -> None:
        self.name: str = name
        self.function: Callable[..., Any] = function
        self.parameters: tuple[Parameter, ...] = tuple(
            sorted(parameters, key=lambda p: p.keyword_only)
        )
        self.keywords: tuple[str, ...] = tuple(p.name for p in self.parameters if p.keyword_only)
        self.kind: int = kind
        self.on_error: bytes = on_error
        self.limited: bool = limited
        self.base: int = 0
        self.answers: Answers | None = None
        self._slots = {p.name: slot for slot, p in enumerate(self.parameters) if p.kind == ARGUMENT}

    def _bind(self, message: Message) -> list[Any]:
        """The values for the parameters, in their order.

        Raises:
            HandlerError: an argument is missing or of a type that is not accepted.
        """
        values = [MISSING] * len(self.parameters)
        for name, value in zip(message.names, message.values, strict=True):
            slot = self._slot(name)
            if slot is not None and values[slot] is MISSING:
                values[slot] = self._accepted(self.parameters[slot], value)
        for slot, parameter in enumerate(self.parameters):
            if parameter.kind == MESSAGE:
                values[slot] = message
            elif parameter.kind == ACK:
                values[slot] = Ack(message.stream_id, message.frame_id)
            elif parameter.kind == KEY:
                values[slot] = self._key(message)
            elif values[slot] is MISSING:
                if parameter.default is MISSING:
                    raise missing(self.name, parameter, message.names)
                values[slot] = parameter.default
        return values

    def _slot(self, name: str) -> int | None:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots.get(name.replace("-", "_").replace(".", "_"))
        return slot

    def _accepted(self, parameter: Parameter, value: Any) -> Any:
        type_ = TYPE_BITS[type(value)]
        if parameter.accepts & type_:
            return value
        if type_ == _STRING and parameter.accepts & _BINARY:
            return value.encode("utf-8", "surrogateescape")
        if type_ & (_STRING | _BINARY) and parameter.accepts & HEADERS:
            return self._headers(parameter, value)
        if value is None:
            return MISSING
        raise mistyped(self.name, parameter, _type_name(type_))

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

    def _key(self, message: Message) -> bytes | None:
        """The key of a cached answer: the arguments that parameters take. None: it is too long."""
        parts = [b"\xff"] * len(self.parameters)
        for name, value in zip(message.names, message.values, strict=True):
            slot = self._slot(name)
            if slot is not None and parts[slot] == b"\xff":
                parts[slot] = _part_of_key(value)
        key = b"".join(parts)
        return key if len(key) <= LONGEST_KEY and len(parts) <= MAX_CACHED else None

    def __repr__(self) -> str:
        return f"<Route {self.name}>"


def _part_of_key(value: Any) -> bytes:
    """The part of a key that one parameter has: the type and value of its argument."""
    if value is None:
        return b"\x00"
    if isinstance(value, bool):
        return b"\x11" if value else b"\x01"
    if isinstance(value, int):
        # Handlers are given an int, whatever its type is. From 2 ** 63 on the same bits are two.
        return (
            b"\x05" + struct.pack("=Q", value)
            if value >> 63 > 0
            else b"\x02" + struct.pack("=q", value)
        )
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
    else:
        data = value.packed if isinstance(value, (IPv4Address, IPv6Address)) else value
    return struct.pack("=BQ", TYPE_BITS[type(value)].bit_length() - 1, len(data)) + data


def _type_name(types: int) -> str:
    return "an integer" if types == TYPE_BITS[int] else DataType(types.bit_length() - 1).name
