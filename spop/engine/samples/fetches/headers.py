"""Fetches of header fields, of requests (``req.``) and responses (``res.``); section 7.3.6.

``hdr`` and fetches like it split a field at commas. ``fhdr`` takes whole fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from spop import codec
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch, fetch_part
from spop.engine.samples.types import CASTS, SampleType, cast, ipv6_of, raw
from spop.engine.stream import Request, Response, Stream, header_fields

MAX_OCCURRENCE = 10
"""Number of values that a negative occurrence may count back from the last one."""

HttpMessage = Request | Response
MessageOf = Callable[[Stream], HttpMessage | None]
Parse = Callable[[str], Any]
Read = Callable[[Stream], str | None]
ReadEvery = Callable[[Stream], Iterable[str]]

_COMMA_SEPARATED = re.compile(r'((?:[^",]|"(?:\\.?|[^"\\])*(?:"|$))*)(,|$)', re.DOTALL)
_IPV4_AND_PORT = re.compile(r"([0-9.]+)(?::([0-9]+))?", re.ASCII)
_ONLY_DIGITS = re.compile(r"(-?)([0-9]+)(?=[:-~]|$)", re.ASCII)


def _of_either(stream: Stream) -> HttpMessage | None:
    """The response; the request, as long as there is no response."""
    return stream.response or stream.request


MESSAGE_OF: Mapping[Source, MessageOf] = {
    Source.REQUEST_HEADERS: attrgetter("request"),
    Source.RESPONSE_HEADERS: attrgetter("response"),
    Source.HEADERS: _of_either,
}


@dataclass(frozen=True, slots=True)
class View:
    """What counts as one value of a header.

    Attributes:
        split: gives the values of a field.
        last: gives the last value of a field.
    """

    split: Callable[[str], Iterable[str]]
    last: Callable[[str], str]


def split_values(field: str) -> Iterable[str]:
    """The values of a field, separated by commas outside of quotes."""
    if "," not in field:
        return (field.strip(" \t"),)
    if '"' in field:
        return _split_quoted(field)
    return [value.strip(" \t") for value in field.split(",")]


def _split_quoted(field: str) -> Iterator[str]:
    position = 0
    while match := _COMMA_SEPARATED.match(field, position):
        yield match[1].strip(" \t")
        position = match.end()
        if not match[2]:
            return


def last_value(field: str) -> str:
    """The last value of `split_values`."""
    if '"' in field:
        return list(_split_quoted(field))[-1]
    return field.rpartition(",")[2].strip(" \t")


VALUES = View(split_values, last_value)
WHOLE_FIELDS = View(lambda field: (field,), str)


def fields(message: HttpMessage | None, name: str) -> Sequence[str]:
    """The fields of this name, which is in lower case; all fields if the name is empty."""
    if message is None:
        return ()
    return header_fields(message, name) if name else [value for _, value in message.headers]


def values(message: HttpMessage | None, name: str, view: View = VALUES) -> Iterator[str]:
    """The values of the fields of this name; of all fields if the name is empty."""
    return chain.from_iterable(map(view.split, fields(message, name)))


def chosen(found: Iterator[str], occurrence: int) -> str | None:
    """The value at an occurrence: 1 is the first value, -1 or 0 the last; None if there is none."""
    if occurrence > 0:
        return next(islice(found, occurrence - 1, None), None)
    last = list(found)
    position = occurrence or -1
    return last[position] if -position <= len(last) else None


def strict_int(value: str) -> int:
    """The integer of 32 bits that HAProxy's ``strl2ic()`` makes of a value.

    The number ends at the first character above the digits. Characters below the digits count as
    negative digits.
    """
    match = _ONLY_DIGITS.match(value)
    if match:
        # 10**32 is a multiple of 2**32: digits before the last 32 change nothing.
        number = int(match[1] + match[2][-32:])
    else:
        digits = raw(value)
        sign = -1 if digits[:1] == b"-" else 1
        number = 0
        for byte in digits[sign == -1 :]:
            digit = (byte - 256 if byte > 127 else byte) - 48
            if digit > 9:
                break
            number = number * 10 + sign * digit
    return (number + 2**31) % 2**32 - 2**31


def address(value: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: IPv4, optionally with a port, or IPv6."""
    match = _IPV4_AND_PORT.fullmatch(value)
    if not match:
        return ipv6_of(value)
    found: IPv4Address | None = cast(match[1], CASTS[SampleType.IPV4])
    return found if int(match[2] or 0) < 2**16 else None


def _read(message_of: MessageOf, view: View, name: str | None, occurrence: int) -> Read:
    """Reads one value. An empty name means any header; without a name there is no value."""
    if occurrence < -MAX_OCCURRENCE:
        raise ValueError(f"an occurrence must be at least -{MAX_OCCURRENCE}")
    if name is None:
        return lambda stream: None
    name = name.lower()
    last = view.last

    def read_last(stream: Stream) -> str | None:
        message = message_of(stream)
        if message is None:
            return None
        found = header_fields(message, name)
        return last(found[-1]) if found else None

    if occurrence or not name:
        return lambda stream: chosen(values(message_of(stream), name, view), occurrence)
    return read_last


def _read_every(message_of: MessageOf, view: View, name: str | None, occurrence: int) -> ReadEvery:
    """Reads the values that an ACL tries: all, or the one of an occurrence."""
    if name is None:
        return lambda stream: ()
    name = name.lower()
    split = view.split

    def read_all(stream: Stream) -> Iterable[str]:
        found = fields(message_of(stream), name)
        if len(found) == 1:
            return split(found[0])
        return chain.from_iterable(map(split, found))

    def read_one(stream: Stream) -> Sequence[str]:
        one = chosen(values(message_of(stream), name, view), occurrence)
        return () if one is None else (one,)

    return read_one if occurrence else read_all


def parsed(read: Read, parse: Parse) -> Callable[[Stream], Any]:
    """Reads a value and parses it."""

    def read_parsed(stream: Stream) -> Any:
        value = read(stream)
        return None if value is None else parse(value)

    return read_parsed


def _register_values(
    source: Source, view: View, *names: str, gives: Any = str, parse: Parse | None = None
) -> None:
    """Values, parsed or as they are. An ACL skips values that can't be parsed."""
    message_of = MESSAGE_OF[source]

    def every(name: str | None = None, occurrence: int = 0) -> Callable[[Stream], Iterable[Any]]:
        read = _read_every(message_of, view, name, occurrence)
        if parse is None:
            return read
        return lambda stream: (v for v in map(parse, read(stream)) if v is not None)

    def header(name: str | None = None, occurrence: int = 0) -> Callable[[Stream], Any]:
        read = _read(message_of, view, name, occurrence)
        return read if parse is None else parsed(read, parse)

    header.__annotations__["return"] = Callable[[Stream], gives]
    fetch(*names, of=source, every=every)(header)


def _register_counts(source: Source, view: View, *names: str) -> None:
    message_of = MESSAGE_OF[source]

    def count(name: str = "") -> Callable[[Stream], int]:
        name = name.lower()
        return lambda stream: sum(1 for _ in values(message_of(stream), name, view))

    fetch(*names, of=source)(count)


def _register_blocks(source: Source, prefix: str) -> None:
    """The whole header section, in the forms that agents read."""
    message_of = MESSAGE_OF[source]

    def hdrs(message: HttpMessage) -> str:
        lines = [f"{name.lower()}: {value}\r\n" for name, value in message.headers]
        return "".join(lines) + "\r\n"

    def hdrs_bin(message: HttpMessage) -> bytes:
        out = bytearray()
        for name, value in message.headers:
            codec.encode_string(name.lower(), out)
            codec.encode_string(value, out)
        return bytes(out + b"\0\0")

    def hdr_names(separator: str = ",") -> Callable[[Stream], str | None]:
        one = separator[:1] or "\0"

        def read(stream: Stream) -> str | None:
            message = message_of(stream)
            if message is None:
                return None
            return one.join([name.lower() for name, _ in message.headers])

        return read

    block = partial(fetch_part, of=source, whole=message_of)
    block(f"{prefix}.hdrs", read=hdrs, gives=str | bytes)
    block(f"{prefix}.hdrs_bin", read=hdrs_bin, gives=bytes)
    fetch(f"{prefix}.hdr_names", of=source)(hdr_names)


_ADDRESS = IPv4Address | IPv6Address

_register_values(Source.HEADERS, VALUES, "hdr")
_register_values(Source.RESPONSE_HEADERS, VALUES, "shdr")
for _source, _prefix, _short in (
    (Source.REQUEST_HEADERS, "req", ""),
    (Source.RESPONSE_HEADERS, "res", "s"),
):
    _register_values(_source, VALUES, f"{_prefix}.hdr")
    _register_values(_source, WHOLE_FIELDS, f"{_prefix}.fhdr")
    _register_values(
        _source, VALUES, f"{_prefix}.hdr_ip", f"{_short}hdr_ip", gives=_ADDRESS, parse=address
    )
    _register_values(
        _source, VALUES, f"{_prefix}.hdr_val", f"{_short}hdr_val", gives=int, parse=strict_int
    )
    _register_counts(_source, VALUES, f"{_prefix}.hdr_cnt", f"{_short}hdr_cnt")
    _register_counts(_source, WHOLE_FIELDS, f"{_prefix}.fhdr_cnt")
    _register_blocks(_source, _prefix)
