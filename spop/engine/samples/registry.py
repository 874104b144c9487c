"""Which fetches and converters exist. Functions register themselves by decorator.

A function's annotations are its declaration: a converter's first parameter is the sample
type it takes, the return annotation the one it gives, further parameters are arguments,
optional where they have defaults. A converter that needs the stream names its second
parameter ``stream``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from spop.engine.samples.arguments import PARSERS
from spop.engine.samples.places import Source
from spop.engine.samples.types import Method, SampleType

Function = TypeVar("Function", bound=Callable[..., Any])
Prepare = Callable[..., tuple[Any, ...]]

_TYPES: dict[Any, SampleType] = {
    bool: SampleType.BOOL,
    int: SampleType.INT,
    str: SampleType.STR,
    bytes: SampleType.BIN,
    IPv4Address: SampleType.IPV4,
    IPv6Address: SampleType.IPV6,
    Method: SampleType.METH,
    object: SampleType.ANY,
    Any: SampleType.ANY,
}
_ADDRESSES = {IPv4Address, IPv6Address}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that a fetch or converter takes."""

    name: str
    parse: Callable[[str], Any]
    is_text: bool
    required: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch: ``function(stream, *args)`` gives one value.

    ``every(stream, *args)`` gives all those that an ACL tries, where they may be several.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    gives: SampleType
    prepare: Prepare | None
    every: Callable[..., Iterable[Any]] | None
    source: Source


@dataclass(frozen=True, slots=True)
class Converter:
    """A converter: ``function(value, *args)`` or ``function(value, stream, *args)``."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    takes: SampleType
    keeps_type: bool
    gives: SampleType
    prepare: Prepare | None
    needs_stream: bool


FETCHES: dict[str, Fetch] = {}
CONVERTERS: dict[str, Converter] = {}


def fetch(
    *names: str,
    of: Source = Source.INTERNAL,
    every: Callable[..., Iterable[Any]] | None = None,
    prepare: Prepare | None = None,
) -> Callable[[Function], Function]:
    """Register a function of the stream and the arguments as a fetch, under each name.

    Args:
        of: what the function reads, which says where the fetch may stand.
        every: gives all values that an ACL tries in turn; by default there is only one.
        prepare: takes the arguments when an expression is compiled and gives those to call
            the function with; raises ArgumentError for bad ones.

    Raises:
        TypeError: an annotation is missing or has no HAProxy type.
    """

    def register(function: Function) -> Function:
        hints = get_type_hints(function)
        gives = _sample_type(hints.get("return"), function, address=SampleType.IPV4)
        parameters = _parameters(function, hints, skip=1)
        for name in names:
            FETCHES[name] = Fetch(name, function, parameters, gives, prepare, every, of)
        return function

    return register


def converter(
    *names: str, prepare: Prepare | None = None, gives: SampleType | None = None
) -> Callable[[Function], Function]:
    """Register a function of a value and the arguments as a converter, under each name.

    Args:
        prepare: as for `fetch`.
        gives: the type that the converter promises, if not the one it is annotated with.

    Raises:
        TypeError: an annotation is missing or has no HAProxy type.
    """

    def register(function: Function) -> Function:
        hints = get_type_hints(function)
        order = list(inspect.signature(function).parameters)
        needs_stream = order[1:2] == ["stream"]
        taken = hints.get(order[0])
        keeps_type = taken == str | bytes
        for name in names:
            CONVERTERS[name] = Converter(
                name,
                function,
                _parameters(function, hints, skip=1 + needs_stream),
                SampleType.BIN
                if keeps_type
                else _sample_type(taken, function, address=SampleType.ADDR),
                keeps_type,
                gives or _sample_type(hints.get("return"), function, address=SampleType.IPV4),
                prepare,
                needs_stream,
            )
        return function

    return register


def _sample_type(hint: Any, function: Callable[..., Any], address: SampleType) -> SampleType:
    choices = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
    choices -= {type(None)}
    if choices == _ADDRESSES:
        return address
    if choices == {str, bytes}:
        return SampleType.BIN
    if len(choices) == 1 and (sample_type := _TYPES.get(choices.pop())):
        return sample_type
    raise TypeError(f"{function.__qualname__}: the annotation {hint!r} has no sample type")


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any], skip: int
) -> tuple[Parameter, ...]:
    declared = list(inspect.signature(function).parameters.values())[skip:]
    return tuple(_parameter(p, hints.get(p.name), function) for p in declared)


def _parameter(declared: inspect.Parameter, hint: Any, function: Callable[..., Any]) -> Parameter:
    choices = set(get_args(hint)) - {type(None)} if isinstance(hint, UnionType) else {hint}
    kind = choices.pop() if len(choices) == 1 else None
    if kind not in PARSERS:
        raise TypeError(f"{function.__qualname__}: no argument is of type {hint!r}")
    required = declared.default is inspect.Parameter.empty
    return Parameter(declared.name, PARSERS[kind], kind is str, required)
