"""A handler whose signature was analysed once, in pure Python. The compiled one is in `_dispatch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spop._headers_py import Headers
from spop.constants import DataType
from spop.errors import HandlerError, InvalidFrameError
from spop.frames import Ack, Message
from spop.parameters import (
    ACK,
    ARGUMENT,
    HEADERS,
    INLINE,
    MESSAGE,
    MISSING,
    TYPE_BITS,
    Parameter,
    missing,
    mistyped,
)

_STRING, _BINARY = TYPE_BITS[str], TYPE_BITS[bytes]


class Route:
    """A handler, ready to be called.

    Attributes:
        kind: `INLINE`, `ASYNC` or `LEFT`.
        on_error: the encoded actions that answer if the handler fails.
        limited: the time or the number of its calls is limited, so its calls need a `Deferred`.
        base: the index of its first cell in the row of its dispatcher.
    """

    __slots__ = (
        "_slots", "base", "function", "keywords", "kind", "limited", "name", "on_error", "parameters",
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
        self.name = name
        self.function = function
        self.parameters = tuple(sorted(parameters, key=lambda p: p.keyword_only))
        self.keywords = tuple(p.name for p in self.parameters if p.keyword_only)
        self.kind = kind
        self.on_error = on_error
        self.limited = limited
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
                    raise missing(self.name, parameter, message.names)
                values[slot] = parameter.default
        return values

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

    def __repr__(self) -> str:
        return f"<Route {self.name}>"


def _type_name(types: int) -> str:
    return "an integer" if types == TYPE_BITS[int] else DataType(types.bit_length() - 1).name
