"""From a handler's signature to the parameters that a dispatcher fills in.

What can't be served is found here, at registration, with the file and line of the handler.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop.frames import Ack, Message
from spop.headers import Headers
from spop.parameters import (
    ACK,
    ARGUMENT,
    HEADERS,
    MESSAGE,
    MESSAGES,
    MISSING,
    STATE,
    TYPE_BITS,
    Parameter,
    annotated,
    described,
)
from spop.state import StreamState
from spop.values import UNSET

_ANY = -1
_ACCEPTED: dict[Any, int] = {
    **TYPE_BITS,
    None: TYPE_BITS[type(None)],
    int: TYPE_BITS[bool] | TYPE_BITS[int],
    Headers: HEADERS,
    object: _ANY,
    Any: _ANY,
    inspect.Parameter.empty: _ANY,
}
_TEXT = TYPE_BITS[str] | TYPE_BITS[bytes]

_VALUES = (
    bool, int, str, bytes, bytearray, memoryview, IPv4Address, IPv6Address, Headers, type(UNSET),
    type(None),
)  # fmt: skip
"""The types of the values that a handler may answer."""


def parameters_of(
    message: str, function: Callable[..., Any], *, batch: bool = False
) -> tuple[Parameter, ...]:
    """The parameters of a handler's signature.

    Args:
        batch: it takes a list of messages and returns a list of answers.

    Raises:
        TypeError: the signature can't be served. The message has the handler's file and line.
    """
    hints = _hints(message, function)
    if batch:
        return _batch_parameters(message, function, hints)
    _check_returned(message, function, hints.get("return", Any))
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _unfit(
                message, function, f"takes {parameter}; name the arguments it needs, "
                "or take a parameter annotated Message",
            )  # fmt: skip
        annotation = hints.get(parameter.name, parameter.annotation)
        parameters.append(_parameter(message, function, parameter, annotation))
    return tuple(parameters)


def _batch_parameters(
    message: str, function: Callable[..., Any], hints: dict[str, Any]
) -> tuple[Parameter, ...]:
    parameters = list(inspect.signature(function).parameters.values())
    returned = hints.get("return", list)
    returned = typing.get_origin(returned) or returned
    if len(parameters) != 1 or hints.get(parameters[0].name, list[Message]) != list[Message]:
        why = "has to take one parameter, list[Message], as batch= is set"
        raise _unfit(message, function, why)
    if isinstance(returned, type) and returned is not Any and not issubclass(list, returned):
        why = f"is annotated to return {_shown(returned)}; with batch= a list is needed"
        raise _unfit(message, function, why)
    return (Parameter(parameters[0].name, MESSAGES),)


def _unfit(message: str, function: Callable[..., Any], why: str) -> TypeError:
    return TypeError(f"message {message!r}: {described(function)} {why}")


def _hints(message: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, resolved."""
    try:
        return typing.get_type_hints(annotated(function))
    except NameError as error:
        why = f"has an annotation that can't be resolved: {error}"
        raise _unfit(message, function, why) from None


def _parameter(
    message: str, function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any
) -> Parameter:
    keyword_only = parameter.kind is parameter.KEYWORD_ONLY
    if annotation is Message:
        return Parameter(parameter.name, MESSAGE, keyword_only=keyword_only)
    if annotation is Ack:
        return Parameter(parameter.name, ACK, keyword_only=keyword_only)
    if annotation is StreamState:
        return Parameter(parameter.name, STATE)
    accepts = _accepted(annotation)
    if accepts is None:
        raise _unfit(
            message,
            function,
            f"has parameter {parameter.name} annotated {annotation!r}, "
            "which no SPOP value can be; use None, bool, int, str, bytes, IPv4Address, "
            "IPv6Address, Headers, a union of these (Headers with neither str nor bytes), "
            "Message, Ack or StreamState",
        )
    default = MISSING if parameter.default is parameter.empty else parameter.default
    return Parameter(parameter.name, ARGUMENT, accepts, default, keyword_only)


def _accepted(annotation: Any) -> int | None:
    """The data types that an annotation admits, as bits; None if it is no type of SPOP."""
    if _is_union(annotation):
        union = 0
        for member in typing.get_args(annotation):
            accepts = _accepted(member)
            if accepts is None:
                return None
            union |= accepts
        # A STRING or BINARY could become either of the two.
        ambiguous = union != _ANY and union & HEADERS and union & _TEXT
        return None if ambiguous else union
    if typing.get_origin(annotation) is typing.Annotated:
        return _accepted(typing.get_args(annotation)[0])
    try:
        return _ACCEPTED.get(annotation)
    except TypeError:
        return None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _check_returned(message: str, function: Callable[..., Any], annotation: Any) -> None:
    """Refuse a return annotation that no answer can have. What isn't known passes."""
    if not _may_be_answer(annotation):
        raise _unfit(
            message,
            function,
            f"is annotated to return {_shown(annotation)}; a dict of variables or None is needed",
        )


def _may_be_answer(annotation: Any) -> bool:
    if _is_union(annotation):
        return any(map(_may_be_answer, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    if kind is Any or not isinstance(kind, type) or typing.is_typeddict(kind):
        return True
    if not (issubclass(kind, (Mapping, type(None))) or issubclass(dict, kind)):
        return False
    key, value = (*typing.get_args(annotation), Any, Any)[:2]
    if not issubclass(kind, Mapping):
        return True
    return _may_be(key, (str,)) and _may_be(value, _VALUES)


def _may_be(annotation: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value of this annotation may be of one of these types."""
    if _is_union(annotation):
        return any(_may_be(member, kinds) for member in typing.get_args(annotation))
    kind = typing.get_origin(annotation) or annotation
    if kind is Any or not isinstance(kind, type):  # Any is a class from Python 3.11 on.
        return True
    return any(issubclass(kind, each) or issubclass(each, kind) for each in kinds)


def _shown(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else repr(annotation)
