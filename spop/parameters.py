"""Parameters and kinds of handlers, and the message that is handled, as data for both twins;
and what a handler's mistakes are called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple

from spop.constants import DataType
from spop.errors import HandlerError
from spop.frames import Action
from spop.logs import text_of

MISSING: Final[Any] = object()
"""The default of a `Parameter` without one."""

ARGUMENT, MESSAGE, ACK, KEY, STATE, MESSAGES = range(6)
"""What a parameter is given: an argument of the message, the message itself, an `Ack`, the key of a
cached answer, a `StreamState`, the messages of a batch. Dispatchers know the first four."""

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


def annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that has the annotations: that of a partial, or an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is ``async def``, or an object whose `__call__` is."""
    return any(map(inspect.iscoroutinefunction, (function, annotated(function))))


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether it yields, so that to call it runs nothing."""
    called = annotated(function)
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function; for an object without one, its repr."""
    return getattr(function, "__name__", None) or repr(function)


def place_of(function: Callable[..., Any]) -> str:
    """File and line of a function, or its name where it has none."""
    code = getattr(inspect.unwrap(annotated(function)), "__code__", None)
    if code is None:
        return text_of(function, name_of)
    return f"{code.co_filename}:{code.co_firstlineno}"


def described(function: Callable[..., Any], place: str = "") -> str:
    """A handler, for people: its name, its file and its line, which is its place."""
    return f"handler {text_of(function, name_of)} ({place or place_of(function)})"


def check_answer(function: Callable[..., Any], returned: object) -> None:
    """Dispatchers call this before they encode what is no dict.

    Raises:
        HandlerError: it is no answer either. The message has the handler's file and line.
    """
    if isinstance(returned, Mapping):
        return
    if isinstance(returned, (list, tuple)) and all(type(each) is Action for each in returned):
        return
    kind = type(returned).__name__
    raise HandlerError(
        f"{described(function)} returned {kind}; a dict of variables or None is needed"
    )


def missing(message: str, parameter: Parameter, names: Iterable[str]) -> HandlerError:
    """The error of a message that lacks an argument. `names` are those that it has."""
    there = ", ".join(name or "one without a name" for name in names) or "none"
    return HandlerError(f"message {message}: no argument {parameter.name}; the message has {there}")


def mistyped(message: str, parameter: Parameter, kind: str) -> HandlerError:
    """The error of an argument of another type than annotated. `kind` names the type that came."""
    taken = [each.name for each in DataType if parameter.accepts >> each & 1]
    if parameter.accepts & HEADERS:
        taken = ["STRING or BINARY with header fields"]
    return HandlerError(
        f"message {message}: argument {parameter.name} is {kind}; {' or '.join(taken)} is needed"
    )
