"""The types of samples, and HAProxy's implicit casts between them.

A sample is a Python value; a string is a str whose bytes are its UTF-8 with surrogateescape.
What a fetch promises and what it gives may differ (``src`` promises IPv4 and may give IPv6),
so whether a cast exists is asked twice: of the promise when an expression is compiled, of
the value when it runs.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

Cast = Callable[[Any], Any] | None
"""Turns a value into one of another type, or into None; None itself leaves it as it is."""


class SampleType(Enum):
    """A sample's type, by the name that HAProxy's manual gives it."""

    ANY = "any"
    BOOL = "boolean"
    INT = "integer"
    ADDR = "address"
    IPV4 = "IPv4"
    IPV6 = "IPv6"
    STR = "string"
    BIN = "binary"
    METH = "method"


class Method(str):
    """An HTTP method: in an annotation it means the type METH."""

    __slots__ = ()


def raw(text: str) -> bytes:
    """A string's bytes."""
    return text.encode("utf-8", "surrogateescape")


def text(data: bytes) -> str:
    """The string that has these bytes."""
    return data.decode("utf-8", "surrogateescape")


def byte_length(text: str) -> int:
    """How many bytes a string has."""
    return len(text) if text.isascii() else len(raw(text))


def clamp(value: int) -> int:
    """The nearest integer that fits 64 bits."""
    return max(INT_MIN, min(INT_MAX, value))


_INTEGER = re.compile(r"[-+]?[0-9]*", re.ASCII)
_MAX_DIGITS = 4000
"""What Python's int() reads; nobody writes so many zeros before a number."""


def leading_int(value: str) -> int:
    """The integer at the start of a string, limited to 64 bits; 0 where there is none."""
    match = _INTEGER.match(value)
    digits = match[0] if match else ""
    return clamp(int(digits[:_MAX_DIGITS])) if digits.strip("+-") else 0


def _text_to_int(value: str) -> int | None:
    return leading_int(value) if value else None


def ipv4_of(word: str) -> IPv4Address | None:
    """The address that is written in a word."""
    try:
        return IPv4Address(socket.inet_pton(socket.AF_INET, word))
    except (OSError, ValueError):
        return None


def ipv6_of(word: str) -> IPv6Address | None:
    """The address that is written in a word."""
    try:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, word))
    except (OSError, ValueError):
        return None


_LEADING_IPV4 = re.compile(r"N\.N\.N\.N(?![0-9.])".replace("N", "0*+([0-9]{0,3})(?<=[0-9])"))


def _text_to_ipv4(value: str) -> IPv4Address | None:
    """Also with zeros before its numbers, and with anything but a dot or digit after it."""
    if address := ipv4_of(value):
        return address
    match = _LEADING_IPV4.match(value)
    numbers = [int(digits or 0) for digits in match.groups()] if match else [256]
    return IPv4Address(bytes(numbers)) if max(numbers) < 256 else None


def _text_to_address(value: str) -> IPv4Address | IPv6Address | None:
    return _text_to_ipv4(value) or ipv6_of(value)


def _int_to_text(value: int) -> str:
    return str(int(value))


def _int_to_ipv4(value: int) -> IPv4Address:
    return IPv4Address(value & 0xFFFFFFFF)


def _int_to_ipv6(value: int) -> IPv6Address:
    return _ipv4_to_ipv6(_int_to_ipv4(value))


def _ipv4_to_ipv6(value: IPv4Address) -> IPv6Address:
    return IPv6Address(0xFFFF_0000_0000 | int(value))


def ipv6_to_ipv4(value: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside ``::ffff:a.b.c.d``."""
    return value.ipv4_mapped


def _ipv6_to_text(value: IPv6Address) -> str:
    return socket.inet_ntop(socket.AF_INET6, value.packed)


def _packed(value: IPv4Address | IPv6Address) -> bytes:
    return value.packed


def _block_to_text(value: bytes) -> str:
    """Up to the first zero byte, where a string ends."""
    return text(value.partition(b"\0")[0])


def _int_to_bytes(value: int) -> bytes:
    return int(value).to_bytes(8, "big", signed=True)


def _text_to_bool(value: str) -> bool | None:
    return leading_int(value) != 0 if value else None


_AS_IT_IS = dict.fromkeys((bool, int, IPv4Address, IPv6Address, str, bytes))

CASTS: Mapping[SampleType, Mapping[type, Cast]] = {
    SampleType.ANY: _AS_IT_IS,
    SampleType.BOOL: {bool: None, int: bool, str: _text_to_bool},
    SampleType.INT: {bool: None, int: None, IPv4Address: int, str: _text_to_int},
    SampleType.ADDR: {
        int: _int_to_ipv4,
        IPv4Address: None,
        IPv6Address: None,
        str: _text_to_address,
    },
    SampleType.IPV4: {
        int: _int_to_ipv4,
        IPv4Address: None,
        IPv6Address: ipv6_to_ipv4,
        str: _text_to_ipv4,
    },
    SampleType.IPV6: {
        int: _int_to_ipv6,
        IPv4Address: _ipv4_to_ipv6,
        IPv6Address: None,
        str: ipv6_of,
    },
    SampleType.STR: {
        bool: _int_to_text,
        int: _int_to_text,
        IPv4Address: str,
        IPv6Address: _ipv6_to_text,
        str: None,
        bytes: _block_to_text,
    },
    SampleType.BIN: {
        bool: _int_to_bytes,
        int: _int_to_bytes,
        IPv4Address: _packed,
        IPv6Address: _packed,
        str: raw,
        bytes: None,
    },
    SampleType.METH: {str: None, bytes: text},
}
"""What a value of a Python type has to undergo to be taken for a sample type."""

_PYTHON_TYPES: Mapping[SampleType, type] = {
    SampleType.BOOL: bool,
    SampleType.INT: int,
    SampleType.IPV4: IPv4Address,
    SampleType.IPV6: IPv6Address,
    SampleType.STR: str,
    SampleType.BIN: bytes,
}


def castable(promised: SampleType, wanted: SampleType) -> bool:
    """Whether HAProxy accepts a sample that promises one type where another is wanted."""
    if SampleType.ANY in (promised, wanted) or promised is wanted:
        return True
    if promised is SampleType.METH:
        return wanted in (SampleType.STR, SampleType.BIN)
    return promised in _PYTHON_TYPES and _PYTHON_TYPES[promised] in CASTS[wanted]


def unchanged(casts: Mapping[type, Cast]) -> frozenset[type]:
    """The types whose values one row of `CASTS` leaves as they are."""
    return frozenset(kind for kind, change in casts.items() if change is None)


def cast(value: Any, casts: Mapping[type, Cast]) -> Any:
    """The value by one row of `CASTS`; None where there is no way."""
    kind = type(value)
    if kind not in casts:
        return None
    change = casts[kind]
    return change(value) if change else value
