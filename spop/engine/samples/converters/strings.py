"""Converters of strings. Only letters of ASCII have case. Lengths are in bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from hmac import compare_digest

from spop.engine.samples.arguments import VariableArgument
from spop.engine.samples.patterns import ascii_lower, expand_references
from spop.engine.samples.regexes import compile_regex
from spop.engine.samples.registry import converter
from spop.engine.samples.types import SampleType, byte_length, raw, text
from spop.engine.stream import Stream

Convert = Callable[[str], str | None]

_UPPER = {ordinal: ordinal - 32 for ordinal in range(ord("a"), ord("z") + 1)}


converter("lower")(ascii_lower)
converter("length", "len")(byte_length)


@converter("upper")
def upper(value: str) -> str:
    return value.upper() if value.isascii() else value.translate(_UPPER)


@converter("ltrim")
def ltrim(characters: str) -> Convert:
    return _by_bytes(characters, lambda some: lambda value: value.lstrip(some))


@converter("rtrim")
def rtrim(characters: str) -> Convert:
    return _by_bytes(characters, lambda some: lambda value: value.rstrip(some))


def _by_bytes(characters: str, make: Callable[[str], Convert]) -> Convert:
    """A converter that looks for characters; for bytes where one of them is not ASCII.

    HAProxy only knows bytes.
    """
    if characters.isascii():
        return make(characters)
    convert = make(raw(characters).decode("latin-1"))

    def convert_bytes(value: str) -> str | None:
        found = convert(raw(value).decode("latin-1"))
        return None if found is None else text(found.encode("latin-1"))

    return convert_bytes


@converter("cut_crlf")
def cut_crlf(value: str) -> str:
    return re.split("[\r\n]", value, maxsplit=1)[0]


def _delimiter(index: int, delimiters: str) -> re.Pattern[str]:
    """A pattern for one delimiter.

    Raises:
        ValueError: the index is 0, or there is no delimiter.
    """
    if index == 0:
        raise ValueError("an index counts from 1, or from the end as -1")
    if not delimiters:
        raise ValueError("there has to be a delimiter")
    return re.compile(f"[{re.escape(delimiters)}]")


def _one_of(parts: list[str], index: int) -> str | None:
    """The part at an index from 1, or from the end as -1; None if there are fewer."""
    return parts[index - (index > 0)] if abs(index) <= len(parts) else None


def _select(value: str, spans: list[tuple[int, int]], index: int, count: int) -> str | None:
    """The text of ``count`` adjoining spans (0 for all), with the delimiters between them."""
    position = index - 1 if index > 0 else len(spans) + index
    if not 0 <= position < len(spans):
        return None
    reach = (count or len(spans)) - 1
    if index > 0:
        first, last = position, min(position + reach, len(spans) - 1)
    else:
        first, last = max(position - reach, 0), position
    return value[spans[first][0] : spans[last][1]]


def _spans(value: str, delimiters: re.Pattern[str]) -> list[tuple[int, int]]:
    """Begin and end of each part between delimiters."""
    ends = [match.start() for match in delimiters.finditer(value)]
    return list(zip([0, *(end + 1 for end in ends)], [*ends, len(value)], strict=True))


@converter("field")
def field(index: int, delimiters: str, count: int = 1) -> Convert:
    return _by_bytes(delimiters, lambda some: _field(index, some, count))


def _field(index: int, delimiters: str, count: int) -> Convert:
    delimiter = _delimiter(index, delimiters)
    count = max(count, 0)
    if count == len(delimiters) == 1:
        return lambda value: _one_of(value.split(delimiters), index)
    return lambda value: _select(value, _spans(value, delimiter), index, count)


@converter("word")
def word(index: int, delimiters: str, count: int = 1) -> Convert:
    """The word at an index; empty if there are fewer words."""
    return _by_bytes(delimiters, lambda some: _word(index, some, count))


def _word(index: int, delimiters: str, count: int) -> Convert:
    delimiter = _delimiter(index, delimiters)
    count = max(count, 0)
    if count == len(delimiters) == 1:
        return lambda value: _one_of(list(filter(None, value.split(delimiters))), index) or ""

    def select(value: str) -> str:
        words = [span for span in _spans(value, delimiter) if span[0] < span[1]]
        available = len(words) - abs(index) + 1
        if (count and count <= available) or available <= 0:
            return _select(value, words, index, count) or ""
        # HAProxy keeps the delimiters behind the last word, or before the first, of all that is
        # left.
        return value[words[index - 1][0] :] if index > 0 else value[: words[index][1]]

    return select


@converter("regsub")
def regsub(regex: str, replacement: str, flags: str = "") -> Callable[[str], str]:
    if set(flags) - {"g", "i"}:
        raise ValueError(f"'{flags}': the flags are 'g' and 'i'")
    if not regex:
        raise ValueError("the regular expression is empty")
    template, ignore_case = raw(replacement), "i" in flags
    first = compile_regex(regex, ignore_case)
    if "g" not in flags:
        return lambda value: text(_substitute(raw(value), template, first, None))
    others = compile_regex(regex, ignore_case, not_at_line_start=True)
    return lambda value: text(_substitute(raw(value), template, first, others))


def _substitute(
    data: bytes, template: bytes, pattern: re.Pattern[bytes], others: re.Pattern[bytes] | None
) -> bytes:
    """Replace the first match of a pattern, and the matches of ``others`` behind it."""
    # As in HAProxy, each search starts behind the last match and does not look back at it.
    out = []
    while match := pattern.search(data):
        out += [data[: match.start()], expand_references(template, match)]
        end = match.end()
        if end == match.start():
            out.append(data[end : end + 1])
            end += 1
        at_end, data = not data, data[end:]
        if at_end or others is None:
            break
        pattern = others
    return b"".join(out) + data


def _text_of(name: VariableArgument | None) -> Callable[[Stream], str]:
    """Reads the text of a variable; empty if it is not set."""
    if name is None:
        return lambda stream: ""
    read = name.reader(SampleType.STR)
    return lambda stream: read(stream) or ""


@converter("concat")
def concat(
    start: str = "", name: VariableArgument | None = None, end: str = ""
) -> Callable[[str, Stream], str]:
    read = _text_of(name)
    return lambda value, stream: value + start + read(stream) + end


@converter("add_item")
def add_item(
    delimiter: str, name: VariableArgument | None = None, suffix: str = ""
) -> Callable[[str, Stream], str]:
    if not name and not suffix:
        raise ValueError("a variable, a suffix or both are needed")
    read = _text_of(name)

    def add(value: str, stream: Stream) -> str:
        item = read(stream) + suffix
        return value + delimiter + item if value and item else value + item

    return add


@converter("strcmp")
def strcmp(variable: VariableArgument) -> Callable[[str, Stream], int | None]:
    """Negative if the value sorts before the variable, 0 if they are equal, else positive."""
    return variable.computer(SampleType.STR, _difference)


def _difference(value: str, variable: str) -> int:
    left, right = raw(value), raw(variable)
    for a, b in zip(left, right, strict=False):
        if a != b:
            return a - b
    return len(left) - len(right)


@converter("secure_memcmp")
def secure_memcmp(variable: VariableArgument) -> Callable[[bytes, Stream], bool | None]:
    return variable.computer(SampleType.BIN, compare_digest)


def _host_and_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        return value, 0
    return host, int(port) if port.isdecimal() and port.isascii() else 0


@converter("host_only")
def host_only(value: str) -> str:
    return ascii_lower(_host_and_port(value)[0])


@converter("port_only")
def port_only(value: str) -> int:
    return _host_and_port(value)[1]
