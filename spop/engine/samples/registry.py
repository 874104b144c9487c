"""The fetches and converters that exist. Decorators register a function as one.

The annotations of a function are its declaration. The first parameter of a converter is the sample
that it takes, and the return annotation the type that it gives. Further parameters are arguments,
optional where they have defaults. A converter that needs the stream names its second parameter
``stream``.

A function that returns a ``Callable[[Stream], X]`` or ``Callable[[X], Y]`` is a factory. It takes
only the arguments, and is called once, when an expression is compiled. A ValueError that it raises
is an error of the expression.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from spop.engine.samples.arguments import PARSERS, Operand
from spop.engine.samples.places import Place, Source
from spop.engine.samples.types import Method, SampleType
from spop.engine.stream import Stream

Function = TypeVar("Function", bound=Callable[..., Any])

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
class ArgumentSpec:
    """An argument that a fetch or converter takes.

    Attributes:
        is_text: the argument is text, which may be empty.
    """

    name: str
    parse: Callable[[str], Any]
    is_text: bool
    required: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch.

    Attributes:
        make: of the arguments, makes the function that reads the value of a stream.
        every: of the arguments, makes the function that reads all values that an ACL tries; None
            where there is only one value.
        places: where it is available.
        missing: the engine has no such fetch; its value is never available.
        doubt: why it is uncertain that HAProxy has it.
    """

    name: str
    make: Callable[..., Callable[[Stream], Any]]
    parameters: tuple[ArgumentSpec, ...]
    gives: SampleType
    source: Source
    every: Callable[..., Callable[[Stream], Iterable[Any]]] | None
    places: Place
    missing: bool = False
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Converter:
    """A converter.

    Attributes:
        make: of the arguments, makes the function of a value, or of a value and the stream.
        keeps_type: it takes strings and blocks of bytes, and gives what it was given.
        pure: the same value always gives the same result.
        missing, doubt: as of a `Fetch`.
    """

    name: str
    make: Callable[..., Callable[..., Any]]
    parameters: tuple[ArgumentSpec, ...]
    takes: SampleType
    keeps_type: bool
    gives: SampleType
    needs_stream: bool
    pure: bool
    missing: bool = False
    doubt: str | None = None


FETCHES: dict[str, Fetch] = {}
CONVERTERS: dict[str, Converter] = {}


def fetch(
    *names: str,
    of: Source = Source.INTERNAL,
    every: Callable[..., Callable[[Stream], Iterable[Any]]] | None = None,
    gives: Any = None,
) -> Callable[[Function], Function]:
    """Register a function of the stream and the arguments as a fetch, under each name.

    Args:
        of: what the function reads. It decides where the fetch may stand.
        gives: the return annotation of a function that has none and takes no arguments, such as
            an `operator.attrgetter`.
        every: of the arguments, makes a function of the stream that gives all values. An ACL tries
            them in turn. None: the fetch has one value.

    Raises:
        TypeError: an annotation is missing or has no HAProxy type.
    """

    def register(function: Function) -> Function:
        hints = {} if gives else get_type_hints(function)
        result = gives or hints.get("return")
        makes = get_origin(result) is Callable
        type_ = _sample_type(
            get_args(result)[1] if makes else result, function, address=SampleType.IPV4
        )
        parameters = () if gives else _parameters(function, hints, skip=0 if makes else 1)
        make = function if makes else _fetch_maker(function)
        for name in names:
            FETCHES[name] = Fetch(name, make, parameters, type_, of, every, of.places)
        return function

    return register


def fetch_part(
    *names: str, of: Source, whole: Callable[[Stream], Any], read: Callable[[Any], Any], gives: Any
) -> None:
    """Register a fetch of a part of what a stream may lack, such as its request.

    Args:
        whole: gives the whole. Where it gives None, the fetch is not available.
        read: reads the part of the whole.
        gives: the type of the part, as a return annotation.
    """

    def read_part(stream: Stream) -> Any:
        found = whole(stream)
        return None if found is None else read(found)

    fetch(*names, of=of, gives=gives)(read_part)


def converter(*names: str, pure: bool = True) -> Callable[[Function], Function]:
    """Register a function of a value and the arguments as a converter, under each name.

    Args:
        pure: the same value always gives the same result. The result for a constant is then
            computed once.

    Raises:
        TypeError: an annotation is missing or has no HAProxy type.
    """

    def register(function: Function) -> Function:
        hints = get_type_hints(function)
        order = list(inspect.signature(function).parameters)
        result = hints.get("return")
        makes = get_origin(result) is Callable
        if makes:
            taken, result = get_args(result)
            taken, needs_stream = taken[0], len(taken) == 2
            skip = 0
        else:
            taken, needs_stream = hints.get(order[0]), order[1:2] == ["stream"]
            skip = 1 + needs_stream
        keeps_type = taken == str | bytes
        for name in names:
            CONVERTERS[name] = Converter(
                name,
                function if makes else _converter_maker(function, needs_stream),
                _parameters(function, hints, skip),
                _sample_type(taken, function, address=SampleType.ADDR),
                keeps_type,
                _sample_type(result, function, address=SampleType.IPV4),
                needs_stream,
                pure,
            )
        return function

    return register


def _fetch_maker(function: Callable[..., Any]) -> Callable[..., Callable[[Stream], Any]]:
    def make(*args: Any) -> Callable[[Stream], Any]:
        return (lambda stream: function(stream, *args)) if args else function

    return make


def _converter_maker(
    function: Callable[..., Any], needs_stream: bool
) -> Callable[..., Callable[..., Any]]:
    def make(*args: Any) -> Callable[..., Any]:
        if not args:
            return function
        if needs_stream:
            return lambda value, stream: function(value, stream, *args)
        return lambda value: function(value, *args)

    return make


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
) -> tuple[ArgumentSpec, ...]:
    declared = list(inspect.signature(function).parameters.values())[skip:]
    return tuple(_parameter(p, hints.get(p.name), function) for p in declared)


def _parameter(
    declared: inspect.Parameter, hint: Any, function: Callable[..., Any]
) -> ArgumentSpec:
    choices = set(get_args(hint)) - {type(None)} if isinstance(hint, UnionType) else {hint}
    kind = hint if hint in PARSERS else choices.pop() if len(choices) == 1 else None
    if kind not in PARSERS:
        raise TypeError(f"{function.__qualname__}: no argument is of type {hint!r}")
    required = declared.default is inspect.Parameter.empty
    return ArgumentSpec(declared.name, PARSERS[kind], kind in (str, Operand), required)
