"""Arguments of fetches and converters: how ``(a,b)`` is split, and how each argument is parsed.

The annotation of a function's parameter selects the parser of its argument; see `PARSERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from spop.engine.samples.errors import SampleError
from spop.engine.samples.types import CASTS, SampleType, cast, ipv4_of, ipv6_of, read_int
from spop.engine.stream import Stream
from spop.values import VARIABLE

_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"} | {char: char for char in "\\'\" "}
_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class VariableArgument:
    """An argument that names a variable. `name` is the whole name, with its scope."""

    name: str

    def reader(self, wanted: SampleType) -> Callable[[Stream], Any]:
        """A function of the stream that gives the variable's value, cast to a type.

        It gives None where the variable is not set or can't be cast.
        """
        name, casts = self.name, CASTS[wanted]
        return lambda stream: cast(stream.variables.get(name), casts)

    def computer(
        self, wanted: SampleType, compute: Callable[[Any, Any], Any]
    ) -> Callable[[Any, Stream], Any]:
        """A function of a value and the stream that computes with both values.

        It gives None where `reader` does.
        """
        read = self.reader(wanted)

        def compute_with_variable(value: Any, stream: Stream) -> Any:
            other = read(stream)
            return None if other is None else compute(value, other)

        return compute_with_variable


Operand = int | VariableArgument
"""An integer argument: a number, or a variable that has one."""


class Mask4(int):
    """An IPv4 network mask, written as a number of bits or dotted."""


class Mask6(int):
    """An IPv6 network mask, written as a number of bits or as an address."""


def is_int(word: str) -> bool:
    return _INTEGER.fullmatch(word) is not None


def parse_int(word: str) -> int:
    if not is_int(word):
        raise ValueError(f"'{word}' is not an integer")
    return read_int(word)


def parse_variable(word: str) -> VariableArgument:
    if not VARIABLE.fullmatch(word):
        raise ValueError(
            f"'{word}' is no variable: a scope (proc, sess, txn, req, res), a dot, "
            "and a name of letters, digits, '.' and '_'"
        )
    return VariableArgument(word)


def parse_variable_if_any(word: str) -> VariableArgument | None:
    return parse_variable(word) if word else None


def parse_operand(word: str) -> Operand:
    if VARIABLE.fullmatch(word):
        return VariableArgument(word)
    if word in ("", "+", "-"):
        return 0
    if not _INTEGER.fullmatch(word):
        raise ValueError(f"'{word}' is neither an integer nor a variable")
    return read_int(word)


class Unit(int):
    """A unit of time: how many of it make a second."""


_UNITS = {"s": Unit(1), "ms": Unit(1000), "us": Unit(1_000_000)}


def parse_unit(word: str) -> Unit:
    if word not in _UNITS:
        raise ValueError(f"'{word}' is none of the units {', '.join(_UNITS)}")
    return _UNITS[word]


def parse_hex(word: str) -> bytes:
    if not _HEX.fullmatch(word):
        raise ValueError(f"'{word}' is no sequence of hexadecimal pairs")
    return bytes.fromhex(word)


def parse_ipv4(word: str) -> IPv4Address:
    if address := ipv4_of(word):
        return address
    raise ValueError(f"'{word}' is not an IPv4 address")


def parse_ipv6(word: str) -> IPv6Address:
    if address := ipv6_of(word):
        return address
    raise ValueError(f"'{word}' is not an IPv6 address")


def parse_mask4(word: str) -> Mask4:
    return Mask4(_mask(word, IPv4Address, 4, 32))


def parse_mask6(word: str) -> Mask6:
    return Mask6(_mask(word, IPv6Address, 6, 128))


def parse_mask6_if_any(word: str) -> Mask6 | None:
    return parse_mask6(word) if word else None


def _mask(word: str, address: type[IPv4Address | IPv6Address], version: int, width: int) -> int:
    if word.isascii() and word.isdecimal() and (bits := read_int(word)) <= width:
        return (1 << width) - (1 << width - bits)
    try:
        return int(address(word))
    except AddressValueError:
        raise ValueError(f"'{word}' is not an IPv{version} mask") from None


PARSERS: Mapping[Any, Callable[[str], Any]] = {
    str: str,
    int: parse_int,
    VariableArgument: parse_variable,
    VariableArgument | None: parse_variable_if_any,
    Operand: parse_operand,
    IPv4Address: parse_ipv4,
    IPv6Address: parse_ipv6,
    Mask4: parse_mask4,
    Mask6 | None: parse_mask6_if_any,
    Unit: parse_unit,
}
"""The parser of an argument, by the annotation of its parameter. Each may raise ValueError."""


@dataclass(frozen=True, slots=True)
class RawArgument:
    """An argument as written, and its offset in the expression."""

    text: str
    offset: int


def split_arguments(text: str, start: int) -> tuple[list[RawArgument], int]:
    """Read a list in parentheses, and resolve its quotes and backslashes.

    Returns:
        The arguments, and the offset after the closing parenthesis. Without a list at ``start``,
        no arguments and ``start``. ``()`` is one empty argument.

    Raises:
        SampleError: a quote or the parenthesis is not closed.
    """
    words: list[RawArgument] = []
    if text[start : start + 1] != "(":
        return words, start
    position = start + 1
    while True:
        word, end = _read_argument(text, position)
        words.append(RawArgument(word, position))
        if end >= len(text):
            raise SampleError("missing closing ')' after arguments", start)
        position = end + 1
        if text[end] == ")":
            return words, position


def _read_argument(text: str, start: int) -> tuple[str, int]:
    """The argument, and the offset of the comma, parenthesis or end of text after it.

    Inside of a line's quotes, arguments have quotes of their own (section 2.2 of the manual).
    """
    out: list[str] = []
    quote = ""
    position = start
    while position < len(text):
        char = text[position]
        if char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif char == "\\" and quote != "'" and text[position + 1 : position + 2] in _ESCAPES:
            position += 1
            out.append(_ESCAPES[text[position]])
        elif not quote and char in ",)":
            break
        else:
            out.append(char)
        position += 1
    if quote:
        raise SampleError(f"missing closing {quote} in argument", start)
    return "".join(out), position
