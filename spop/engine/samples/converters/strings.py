"""Converters of strings. Case is ASCII's; lengths are in bytes."""

from __future__ import annotations

import re
from hmac import compare_digest

from spop.engine.samples.arguments import Variable, parse_variable
from spop.engine.samples.errors import ArgumentError
from spop.engine.samples.patterns import ascii_lower, compile_regex, expand_references
from spop.engine.samples.registry import converter
from spop.engine.samples.types import SampleType, raw, text
from spop.engine.stream import Stream

_UPPER = {ordinal: ordinal - 32 for ordinal in range(ord("a"), ord("z") + 1)}


@converter("lower")
def lower(value: str) -> str:
    return ascii_lower(value)


@converter("upper")
def upper(value: str) -> str:
    return value.upper() if value.isascii() else value.translate(_UPPER)


@converter("length", "len")
def length(value: str) -> int:
    return len(value) if value.isascii() else len(raw(value))


@converter("ltrim")
def ltrim(value: str, characters: str) -> str:
    return value.lstrip(characters) if characters else value


@converter("rtrim")
def rtrim(value: str, characters: str) -> str:
    return value.rstrip(characters) if characters else value


@converter("cut_crlf")
def cut_crlf(value: str) -> str:
    return re.split("[\r\n]", value, maxsplit=1)[0]


def _selection(index: int, delimiters: str, count: int = 1) -> tuple[int, re.Pattern[str], int]:
    if index == 0:
        raise ArgumentError("an index counts from 1, or from the end as -1")
    if count < 0:
        raise ArgumentError("a count is 0 for all, or positive")
    return index, re.compile(f"[{re.escape(delimiters)}]" if delimiters else "(?!)"), count


def _select(value: str, spans: list[tuple[int, int]], index: int, count: int) -> str | None:
    """The text of ``count`` adjoining spans (0 for all), with what separates them."""
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
    ends = [match.start() for match in delimiters.finditer(value)]
    return list(zip([0, *(end + 1 for end in ends)], [*ends, len(value)], strict=True))


@converter("field", prepare=_selection)
def field(value: str, index: int, delimiters: str, count: int = 1) -> str | None:
    return _select(value, _spans(value, delimiters), index, count)  # type: ignore[arg-type]


@converter("word", prepare=_selection)
def word(value: str, index: int, delimiters: str, count: int = 1) -> str:
    """Empty if there is none. All remaining words come with the delimiters beyond them."""
    spans = _spans(value, delimiters)  # type: ignore[arg-type]
    words = [span for span in spans if span[0] < span[1]]
    available = len(words) - abs(index) + 1
    if (count and count <= available) or available <= 0:
        return _select(value, words, index, count) or ""
    return value[words[index - 1][0] :] if index > 0 else value[: words[index][1]]


def _substitution(
    regex: str, replacement: str, flags: str = ""
) -> tuple[re.Pattern[bytes], bytes, int]:
    if set(flags) - {"g", "i"}:
        raise ArgumentError(f"'{flags}': the flags are 'g' and 'i'")
    return compile_regex(regex, "i" in flags), raw(replacement), 0 if "g" in flags else 1


@converter("regsub", prepare=_substitution)
def regsub(value: str, regex: str, replacement: str, flags: str = "") -> str:
    pattern: re.Pattern[bytes] = regex  # type: ignore[assignment]
    template: bytes = replacement  # type: ignore[assignment]
    replaced = pattern.sub(
        lambda match: expand_references(template, match), raw(value), count=int(flags)
    )
    return text(replaced)


def _concatenated(start: str = "", name: str = "", end: str = "") -> tuple[str, object, str]:
    return start, parse_variable(name) if name else None, end


@converter("concat", prepare=_concatenated)
def concat(value: str, stream: Stream, start: str = "", name: str = "", end: str = "") -> str:
    return value + start + _variable_text(name, stream) + end


def _variable_text(name: object, stream: Stream) -> str:
    held = name.value(stream, SampleType.STR) if isinstance(name, Variable) else None
    return held or ""


def _added_item(delimiter: str, name: str = "", suffix: str = "") -> tuple[str, object, str]:
    if not name and not suffix:
        raise ArgumentError("a variable, a suffix or both are needed")
    return _concatenated(delimiter, name, suffix)


@converter("add_item", prepare=_added_item)
def add_item(value: str, stream: Stream, delimiter: str, name: str = "", suffix: str = "") -> str:
    item = _variable_text(name, stream) + suffix
    return value + delimiter + item if value and item else value + item


@converter("strcmp")
def strcmp(value: str, stream: Stream, variable: Variable) -> int | None:
    """Below, at or above 0 as the value sorts before, equals or sorts after the variable."""
    other = variable.value(stream, SampleType.STR)
    if other is None:
        return None
    left, right = raw(value), raw(other)
    for a, b in zip(left, right, strict=False):
        if a != b:
            return a - b
    return len(left) - len(right)


@converter("secure_memcmp")
def secure_memcmp(value: bytes, stream: Stream, variable: Variable) -> bool | None:

    other = variable.value(stream, SampleType.BIN)
    return None if other is None else compare_digest(value, other)


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
