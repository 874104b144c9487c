"""The parser of sample expressions, which makes of each a closure over the stream.

It knows the grammar (``fetch(args),converter(args),...``) and the rules for types; which
names exist it asks the registry. The configuration's parser and ACLs call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from spop.engine.samples.arguments import Operand, Variable, Word, split_arguments
from spop.engine.samples.errors import ArgumentError, SampleError, unknown
from spop.engine.samples.places import Place
from spop.engine.samples.registry import CONVERTERS, FETCHES, Converter, Fetch, Parameter
from spop.engine.samples.types import CASTS, Cast, SampleType, castable
from spop.engine.stream import Stream
from spop.values import DecodedValue

_NAME = re.compile(r"[A-Za-z0-9._:+-]*", re.ASCII)
_STICK_TABLE = re.compile(r"(?:table_|in_table$|src_(?!port|is_local)|sc[0-9]?_|sc-)")

Step = Callable[[Stream, Any], Any]
"""A converter with its cast and arguments: from a value, or None, to the next."""


class Expression:
    """A compiled sample expression.

    Attributes:
        text: as it was written.
        gives: the type that it promises; a value may be of another, as in HAProxy.
        places: where its fetch has something to read; elsewhere HAProxy refuses it.
        variables: the whole names of all that it mentions, such as ``"txn.user"``.
    """

    __slots__ = ("_every", "_fetch", "_steps", "gives", "places", "text", "variables")

    def __init__(
        self,
        text: str,
        gives: SampleType,
        fetch: Callable[[Stream], Any],
        every: Callable[[Stream], Iterable[Any]] | None,
        steps: tuple[Step, ...],
        places: Place,
        variables: frozenset[str],
    ) -> None:
        self.text = text
        self.gives = gives
        self.places = places
        self.variables = variables
        self._fetch = fetch
        self._every = every
        self._steps = steps

    def __repr__(self) -> str:
        return f"<Expression {self.text}>"

    @property
    def converted(self) -> bool:
        """Whether there are converters after the fetch."""
        return bool(self._steps)

    def evaluate(self, stream: Stream) -> DecodedValue:
        """The sample of this stream; None if it isn't available."""
        value = self._fetch(stream)
        for step in self._steps:
            if value is None:
                return None
            value = step(stream, value)
        result: DecodedValue = value
        return result

    def candidates(self, stream: Stream) -> Iterator[DecodedValue]:
        """The samples that an ACL tries in turn, such as each value of a header."""
        found = self._every(stream) if self._every else (self._fetch(stream),)
        for value in found:
            for step in self._steps:
                if value is None:
                    break
                value = step(stream, value)
            if value is None:
                return
            yield value


def compile_expression(text: str) -> Expression:
    """Compile one word of a configuration, such as ``req.hdr(host,1),lower,field(1,:)``.

    Raises:
        SampleError: what HAProxy would refuse, and where it is.
    """
    name, end = _read_name(text, 0, "fetch")
    source = _find(FETCHES, "fetch", name, 0)
    words, position = split_arguments(text, end)
    args = _bind(source, words, end)
    gives = source.gives
    steps = []
    variables = set(_variables(args))
    while position < len(text):
        start = _skip_commas(text, position, name)
        if start == len(text):
            break
        name, end = _read_name(text, start, "converter")
        step = _find(CONVERTERS, "converter", name, start)
        if not castable(gives, step.takes):
            raise SampleError(
                f"converter '{name}' takes {step.takes.value}, which can't be made of "
                f"{gives.value}",
                start,
            )
        words, position = split_arguments(text, end)
        step_args = _bind(step, words, end)
        steps.append(_step(step, step_args))
        variables.update(_variables(step_args))
        gives = gives if step.gives is SampleType.ANY else step.gives
    return Expression(
        text,
        gives,
        _call(source.function, args),
        _call_every(source, args),
        tuple(steps),
        source.source.places,
        frozenset(variables),
    )


def is_converter(word: str) -> bool:
    """Whether a word begins with a converter's name, and so continues an expression."""
    match = _NAME.match(word)
    return (
        match is not None and match[0] in CONVERTERS and word[match.end() :][:1] in ("", "(", ",")
    )


def _read_name(text: str, start: int, what: str) -> tuple[str, int]:
    match = _NAME.match(text, start)
    if match is None or not match[0]:
        raise SampleError(f"missing name of a {what}", start)
    return match[0], match.end()


def _skip_commas(text: str, position: int, after: str) -> int:
    if text[position] != ",":
        raise SampleError(f"missing comma after '{after}'", position)
    while text[position : position + 1] == ",":
        position += 1
    return position


def _find(known: Mapping[str, Any], what: str, name: str, offset: int) -> Any:
    if name in known:
        return known[name]
    if _STICK_TABLE.match(name):
        raise SampleError(f"'{name}' needs a stick table, and the engine has none", offset)
    raise SampleError(unknown(what, name, known), offset)


def _bind(function: Fetch | Converter, words: list[Word], offset: int) -> tuple[Any, ...]:
    """The arguments to call a function with."""
    parameters = function.parameters
    if words and not parameters:
        if len(words) == 1 and not words[0].text:
            words = []
        else:
            raise SampleError(f"'{function.name}' takes no arguments", words[0].offset)
    words = _without_missing(words, parameters)
    if len(words) > len(parameters):
        raise SampleError(
            f"'{function.name}' takes at most {len(parameters)} arguments",
            words[len(parameters)].offset,
        )
    required = sum(parameter.required for parameter in parameters)
    if len(words) < required:
        raise SampleError(
            f"'{function.name}' needs the argument '{parameters[len(words)].name}'", offset
        )
    try:
        args = tuple(_parse_all(words, parameters))
        return function.prepare(*args) if function.prepare else args
    except ArgumentError as error:
        where = words[0].offset if words else offset
        raise SampleError(f"'{function.name}': {error}", where) from None


def _without_missing(words: list[Word], parameters: tuple[Parameter, ...]) -> list[Word]:
    """``()`` is no argument at all where the first isn't text."""
    if len(words) == 1 and not words[0].text and parameters and not parameters[0].is_text:
        return []
    return words


def _parse_all(words: list[Word], parameters: tuple[Parameter, ...]) -> Iterator[Any]:
    for word, parameter in zip(words, parameters, strict=False):
        try:
            yield parameter.parse(word.text)
        except ArgumentError as error:
            raise SampleError(str(error), word.offset) from None


def _variables(args: tuple[Any, ...]) -> Iterator[str]:
    """The variables among arguments, or that operands are."""
    for arg in args:
        source = arg.source if isinstance(arg, Operand) else arg
        if isinstance(source, Variable):
            yield source.name


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[Stream], Any]:
    return (lambda stream: function(stream, *args)) if args else function


def _call_every(source: Fetch, args: tuple[Any, ...]) -> Callable[[Stream], Iterable[Any]] | None:
    return _call(source.every, args) if source.every else None


def _step(step: Converter, args: tuple[Any, ...]) -> Step:
    function = step.function
    casts: Mapping[type, Cast] = CASTS[step.takes]
    if step.keeps_type:
        casts = {**casts, str: None}
    needs_stream = step.needs_stream

    def convert(stream: Stream, value: Any) -> Any:
        kind = type(value)
        if kind not in casts:
            return None
        change = casts[kind]
        if change is not None:
            value = change(value)
            if value is None:
                return None
        return function(value, stream, *args) if needs_stream else function(value, *args)

    return convert
