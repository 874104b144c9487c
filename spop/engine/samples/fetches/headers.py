"""Fetches of header fields, each for requests (``req.``) and responses (``res.``).

``hdr`` and its kin see comma-separated values, ``fhdr`` whole fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop.engine.samples.errors import ArgumentError
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.samples.types import CASTS, SampleType, cast, raw
from spop.engine.stream import Headers, Stream

MAX_OCCURRENCE = 10
"""How far a negative occurrence may look back from the last one."""

HeadersOf = Callable[[Stream], Headers | None]

_COMMA_SEPARATED = re.compile(r'((?:[^",]|"(?:\\.|[^"\\])*(?:"|$))*)(,|$)', re.DOTALL)
_PORT = re.compile(r":\d{1,5}$", re.ASCII)


def of_request(stream: Stream) -> Headers | None:
    return stream.request.headers if stream.request else None


def of_response(stream: Stream) -> Headers | None:
    return stream.response.headers if stream.response else None


def of_either(stream: Stream) -> Headers | None:
    """The response's once there is one."""
    return of_response(stream) if stream.response else of_request(stream)


HEADERS_OF: Mapping[Source, HeadersOf] = {
    Source.REQUEST_HEADERS: of_request,
    Source.RESPONSE_HEADERS: of_response,
    Source.HEADERS: of_either,
}


def split_values(field: str) -> Iterator[str]:
    """The values of a field, separated by commas outside of quotes."""
    if '"' not in field:
        for value in field.split(","):
            yield value.strip(" \t")
        return
    position = 0
    while match := _COMMA_SEPARATED.match(field, position):
        yield match[1].strip(" \t")
        position = match.end()
        if not match[2]:
            return


def whole_fields(headers: Headers | None, name: str) -> Iterator[str]:
    """The fields of this name, in lower case; all for an empty name."""
    for field_name, value in headers or ():
        if not name or field_name.lower() == name:
            yield value


def values(headers: Headers | None, name: str) -> Iterator[str]:
    """The comma-separated values of the fields of this name; all for an empty name."""
    for field in whole_fields(headers, name):
        yield from split_values(field)


def chosen(found: Iterator[str], occurrence: int) -> str | None:
    """The value at a position from 1, or from the end as -1; 0 is the last."""
    if occurrence > 0:
        return next((v for n, v in enumerate(found, 1) if n == occurrence), None)
    last = list(found)
    position = occurrence or -1
    return last[position] if -position <= len(last) else None


def strict_int(value: str) -> int:
    """The integer at a value's start as HAProxy's C ``int``: without a plus sign, 32 bits."""
    match = re.match(r"-?[0-9]+", value)
    number = int(match[0]) if match else 0
    return (number + 2**31) % 2**32 - 2**31


def address(value: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: IPv4 with a port or without, IPv6 maybe in brackets."""
    found: IPv4Address | IPv6Address | None
    if value.count(":") == 1:
        value = _PORT.sub("", value)
    elif value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
    found = cast(value, CASTS[SampleType.ADDR])
    return found


def _occurrence(name: str = "", occurrence: int = 0) -> tuple[str, int]:
    if occurrence < -MAX_OCCURRENCE:
        raise ArgumentError(f"an occurrence must be at least -{MAX_OCCURRENCE}")
    return name.lower(), occurrence


def _lower(name: str = "") -> tuple[str]:
    return (name.lower(),)


Finder = Callable[[Headers | None, str], Iterator[str]]


def _candidates(found: Iterator[str], occurrence: int) -> Iterator[str]:
    """All that an ACL tries: every value, unless an occurrence is asked for."""
    if not occurrence:
        return found
    one = chosen(found, occurrence)
    return iter(() if one is None else (one,))


def _register_values(source: Source, find: Finder, *names: str) -> None:
    of = HEADERS_OF[source]

    def every(stream: Stream, name: str = "", occurrence: int = 0) -> Iterator[str]:
        return _candidates(find(of(stream), name), occurrence) if name else iter(())

    def header(stream: Stream, name: str = "", occurrence: int = 0) -> str | None:
        return chosen(find(of(stream), name), occurrence) if name else None

    fetch(*names, of=source, every=every, prepare=_occurrence)(header)


def _register_parsed(source: Source, parse: Callable[[str], Any], gives: Any, *names: str) -> None:
    """Values as addresses or integers; an ACL passes over those that are none."""
    of = HEADERS_OF[source]

    def every(stream: Stream, name: str = "", occurrence: int = 0) -> Iterator[Any]:
        parsed = map(parse, _candidates(values(of(stream), name), occurrence))
        return (value for value in parsed if value is not None)

    def header(stream: Stream, name: str = "", occurrence: int = 0) -> Any:
        value = chosen(values(of(stream), name), occurrence)
        return None if value is None else parse(value)

    header.__annotations__["return"] = gives
    fetch(*names, of=source, every=every, prepare=_occurrence)(header)


def _register_counts(source: Source, find: Finder, *names: str) -> None:
    of = HEADERS_OF[source]

    def count(stream: Stream, name: str = "") -> int:
        return sum(1 for _ in find(of(stream), name))

    fetch(*names, of=source, prepare=_lower)(count)


def _register_blocks(source: Source, prefix: str) -> None:
    """The whole header section, in the forms that suit agents."""
    of = HEADERS_OF[source]

    def hdrs(stream: Stream) -> str | bytes | None:
        headers = of(stream)
        if headers is None:
            return None
        return "".join(f"{name.lower()}: {value}\r\n" for name, value in headers) + "\r\n"

    def hdrs_bin(stream: Stream) -> bytes | None:
        headers = of(stream)
        if headers is None:
            return None
        strings = [raw(part) for name, value in headers for part in (name.lower(), value)]
        return b"".join(_varint(len(s)) + s for s in strings) + b"\0\0"

    def hdr_names(stream: Stream, separator: str = ",") -> str | None:
        headers = of(stream)
        return None if headers is None else separator.join(name.lower() for name, _ in headers)

    fetch(f"{prefix}.hdrs", of=source)(hdrs)
    fetch(f"{prefix}.hdrs_bin", of=source)(hdrs_bin)
    fetch(f"{prefix}.hdr_names", of=source)(hdr_names)


def _varint(value: int) -> bytes:
    """A length as in SPOP (section 3.1 of the specification)."""
    if value < 240:
        return bytes((value,))
    out = bytearray((value & 0xFF | 0xF0,))
    value = value - 240 >> 4
    while value >= 128:
        out.append(value & 0xFF | 0x80)
        value = value - 128 >> 7
    out.append(value)
    return bytes(out)


_ADDRESS = IPv4Address | IPv6Address

_register_values(Source.HEADERS, values, "hdr")
_register_values(Source.RESPONSE_HEADERS, values, "shdr")
for _source, _prefix, _short in (
    (Source.REQUEST_HEADERS, "req", ""),
    (Source.RESPONSE_HEADERS, "res", "s"),
):
    _register_values(_source, values, f"{_prefix}.hdr")
    _register_values(_source, whole_fields, f"{_prefix}.fhdr")
    _register_parsed(_source, address, _ADDRESS, f"{_prefix}.hdr_ip", f"{_short}hdr_ip")
    _register_parsed(_source, strict_int, int, f"{_prefix}.hdr_val", f"{_short}hdr_val")
    _register_counts(_source, values, f"{_prefix}.hdr_cnt", f"{_short}hdr_cnt")
    _register_counts(_source, whole_fields, f"{_prefix}.fhdr_cnt")
    _register_blocks(_source, _prefix)
