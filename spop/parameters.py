"""Parameters and kinds of handlers, and the message that is handled, as data for both twins."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple

from spop.constants import DataType

MISSING: Final[Any] = object()
"""The default of a `Parameter` without one."""

ARGUMENT, MESSAGE, ACK = range(3)
"""What a parameter is given: an argument of the message, the message itself, an `Ack`."""

HEADERS: Final = 1 << 16
"""In `Parameter.accepts`: STRING and BINARY are passed as `Headers`, unless they are accepted
as they are."""


_INTEGERS = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5
TYPES: dict[type, int] = {
    type(None): 1 << 0, bool: 1 << 1, int: _INTEGERS, IPv4Address: 1 << 6,
    IPv6Address: 1 << 7, str: 1 << 8, bytes: 1 << 9,
}  # fmt: skip
"""The bits of `Parameter.accepts` that a value's type stands for."""


def type_name(types: int) -> str:
    """Names bits of `TYPES`, for an error."""
    return "an integer" if types == _INTEGERS else DataType(types.bit_length() - 1).name


class Parameter(NamedTuple):
    """One parameter of a handler.

    Attributes:
        accepts: bit N is set if a value of data type N may be passed.
        default: passed if the argument is missing, or is NULL and NULL is not accepted.
    """

    name: str
    kind: int = ARGUMENT
    accepts: int = -1
    default: Any = MISSING
    keyword_only: bool = False


INLINE, ASYNC, LEFT = range(3)
"""How a handler is called: by the dispatcher; by it, in a task; by the dispatcher's caller."""

RUNNING: ContextVar[Callable[[], Running | None] | tuple[str, int, int, Any] | None] = ContextVar(
    "spop_running"
)
"""The message that is handled in this context: the fields of a `Running`, or a call that gives
one. A tuple of fields costs less than a `Running`."""


class Running(NamedTuple):
    """The message whose handler runs now."""

    name: str
    stream_id: int
    frame_id: int
    connection: Any
