"""The types of samples, and HAProxy's implicit casts between them (section 7.3.1 of the manual).

A sample is a Python value. The bytes of a string are its UTF-8 with surrogateescape. The declared
type of a fetch and the type of its value may differ: ``src`` declares IPv4 and may give IPv6. So a
cast is looked up twice: for the declared type when an expression is compiled, and for the value
when it is evaluated.
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
"""Converts a value to another type, or to None where it can't. No function: the value stays."""


class SampleType(Enum):
    """The type of a sample, by its name in HAProxy's manual.

    A converter that gives SAME gives the type that it took.
    """

    ANY = "any"
    SAME = "same"
    BOOL = "boolean"
    INT = "integer"
    ADDR = "address"
    IPV4 = "IPv4"
    IPV6 = "IPv6"
    STR = "string"
    BIN = "binary"
    METH = "method"


class Method(str):
    """An HTTP method. In an annotation, it stands for the type METH."""

    __slots__ = ()


def raw(text: str) -> bytes:
    """The bytes of a string."""
    return text.encode("utf-8", "surrogateescape")


def text(data: bytes) -> str:
    """The string of these bytes."""
    return data.decode("utf-8", "surrogateescape")


def byte_length(text: str) -> int:
    """How many bytes a string has."""
    return len(text) if text.isascii() else len(raw(text))


def clamp(value: int) -> int:
    """The nearest integer that fits 64 bits."""
    return max(INT_MIN, min(INT_MAX, value))


_INTEGER = re.compile(r"[-+]?[0-9]*", re.ASCII)
MAX_DIGITS = 4000
"""Python's int() refuses more than 4300 digits."""


def read_int(digits: str) -> int:
    """The integer that digits are, limited to 64 bits."""
    return clamp(int(digits[:MAX_DIGITS]))


def leading_int(value: str) -> int:
    """The integer at the start of a string, limited to 64 bits; 0 if there is no integer."""
    match = _INTEGER.match(value)
    digits = match[0] if match else ""
    return read_int(digits) if digits.strip("+-") else 0


def _text_to_int(value: str) -> int | None:
    return leading_int(value) if value else None


def ipv4_of(word: str) -> IPv4Address | None:
    """The address that a word consists of; None for any other word."""
    try:
        return IPv4Address(socket.inet_pton(socket.AF_INET, word))
    except (OSError, ValueError):
        return None


def ipv6_of(word: str) -> IPv6Address | None:
    """The address that a word consists of; None for any other word."""
    try:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, word))
    except (OSError, ValueError):
        return None


_LEADING_IPV4 = re.compile(r"N\.N\.N\.N(?![0-9.])".replace("N", "0*+([0-9]{0,3})(?<=[0-9])"))


def _text_to_ipv4(value: str) -> IPv4Address | None:
    """As HAProxy, take leading zeros in a number, and any text after the address.

    That text must not begin with a dot or digit.
    """
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
    """The IPv4 address in ``::ffff:a.b.c.d``; None for any other address."""
    return value.ipv4_mapped


def _ipv6_to_text(value: IPv6Address) -> str:
    return socket.inet_ntop(socket.AF_INET6, value.packed)


def _packed(value: IPv4Address | IPv6Address) -> bytes:
    return value.packed


def _block_to_text(value: bytes) -> str:
    """The text up to the first zero byte, where a C string ends."""
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
"""For each sample type: the types of values that can be cast to it, and how."""

_PYTHON_TYPES: Mapping[SampleType, type] = {
    SampleType.BOOL: bool,
    SampleType.INT: int,
    SampleType.IPV4: IPv4Address,
    SampleType.IPV6: IPv6Address,
    SampleType.STR: str,
    SampleType.BIN: bytes,
}


_OF_ADDRESSES = (
    SampleType.ADDR, SampleType.IPV4, SampleType.IPV6, SampleType.STR, SampleType.BIN,
)  # fmt: skip


def castable(declared: SampleType, wanted: SampleType, branch: tuple[int, int] = (2, 6)) -> bool:
    """Whether HAProxy accepts a sample of a declared type where another type is wanted."""
    if declared is SampleType.ADDR:  # Until 2.8, nothing can be made of it.
        return wanted is SampleType.ANY or (branch >= (2, 9) and wanted in _OF_ADDRESSES)
    if branch < (2, 6) and (declared, wanted) == (SampleType.BOOL, SampleType.BIN):
        return False
    if SampleType.ANY in (declared, wanted) or declared is wanted:
        return True
    if declared is SampleType.METH:
        return wanted in (SampleType.STR, SampleType.BIN)
    return declared in _PYTHON_TYPES and _PYTHON_TYPES[declared] in CASTS[wanted]


def unchanged(casts: Mapping[type, Cast]) -> frozenset[type]:
    """The types whose values a row of `CASTS` does not change."""
    return frozenset(kind for kind, change in casts.items() if change is None)


def cast(value: Any, casts: Mapping[type, Cast]) -> Any:
    """The value, cast by a row of `CASTS`; None if it can't be cast."""
    kind = type(value)
    if kind not in casts:
        return None
    change = casts[kind]
    return change(value) if change else value
