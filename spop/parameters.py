"""Parameters and kinds of handlers, and the message that is handled, as data for both twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple

from spop.constants import DataType

MISSING: Final[Any] = object()
"""The default of a `Parameter` without one."""

ARGUMENT, MESSAGE, ACK = range(3)
"""What a parameter is given: an argument of the message, the message itself, an `Ack`."""

TYPE_BITS: Final[Mapping[type, int]] = {
    type(None): 1 << DataType.NULL,
    bool: 1 << DataType.BOOL,
    int: 1 << DataType.INT32 | 1 << DataType.UINT32 | 1 << DataType.INT64 | 1 << DataType.UINT64,
    IPv4Address: 1 << DataType.IPV4,
    IPv6Address: 1 << DataType.IPV6,
    str: 1 << DataType.STRING,
    bytes: 1 << DataType.BINARY,
}
"""The bits of `Parameter.accepts` for the values of each class."""

HEADERS: Final = 1 << 16
"""In `Parameter.accepts`: STRING and BINARY are passed as `Headers`, unless they are accepted
as they are."""


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
