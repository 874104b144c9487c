"""The texts of rules: with samples, ``%[...]``, as in HAProxy's log formats (section 8.2.6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

from spop.engine.samples import Expression, SampleError, SampleType, compile_expression
from spop.engine.samples.types import CASTS, cast, raw
from spop.engine.stream import Stream
from spop.web.conditions import Variable

_STRINGS = CASTS[SampleType.STR]

_NO_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_URL = "!#$%&'()*+,/:;=?@[]"
"""The characters that are not encoded in a URL, besides letters, digits and ``-._~``."""


class Text:
    """A text whose samples are filled in for each stream.

    Attributes:
        variables: the whole names of the variables that it reads.
        text: the text as written.
    """

    __slots__ = ("_parts", "text", "variables")

    def __init__(self, parts: list[str | Expression], text: str) -> None:
        self._parts = parts
        self.text: str = text
        samples = [part for part in parts if not isinstance(part, str)]
        self.variables: frozenset[str] = frozenset[str]().union(
            *(sample.variables for sample in samples)
        )

    def render(self, stream: Stream, escape: Callable[[str], str] = str) -> str | None:
        """The text of a stream; None if it is a single sample that is not available.

        Args:
            escape: a function that is applied to each sample.
        """
        if len(self._parts) == 1 and not isinstance(self._parts[0], str):
            found = _sample(self._parts[0], stream)
            return None if found is None else escape(found)
        return "".join(
            part if isinstance(part, str) else escape(_sample(part, stream) or "")
            for part in self._parts
        )


def text_of(value: str | Variable) -> Text:
    """Compile text.

    Raises:
        ValueError: HAProxy would refuse a sample expression in it.
    """
    text = f"%[var({value.name})]" if isinstance(value, Variable) else value
    try:
        return Text(list(_parts(text)), text)
    except SampleError as error:
        raise ValueError(f"{text!r}: {error}") from None


def header_value(text: str) -> str:
    """A text as the value of a header field."""
    # RFC 9110, section 5.5: a line end or NUL is replaced by a space, or the message is invalid.
    return _NO_HEADER.sub(" ", text).strip(" \t")


def url(text: str) -> str:
    """A text as a URL. What is percent-encoded stays so."""
    return quote(raw(text), safe=_URL)


def _sample(expression: Expression, stream: Stream) -> str | None:
    found: str | None = cast(expression.evaluate(stream), _STRINGS)
    return found


def _parts(text: str) -> Iterator[str | Expression]:
    position = 0
    while (start := text.find("%[", position)) >= 0:
        if start > position:
            yield text[position:start]
        position = _end_of_sample(text, start + 2) + 1
        yield compile_expression(text[start + 2 : position - 1])
    if position < len(text) or not text:
        yield text[position:]


def _end_of_sample(text: str, start: int) -> int:
    """The position of the bracket that closes a sample: the first outside of parentheses."""
    depth = 0
    for position in range(start, len(text)):
        char = text[position]
        depth += (char == "(") - (char == ")")
        if char == "]" and depth <= 0:
            return position
    raise ValueError(f"{text!r}: no ']' after '%['")
