"""Patterns and how they match values (section 7.1 of HAProxy's manual); for ACLs and maps."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spop.engine.samples.arguments import parse_hex, parse_int, parse_ipv6, parse_mask4, parse_mask6
from spop.engine.samples.regexes import compile_regex
from spop.engine.samples.types import MAX_DIGITS, SampleType, byte_length, raw
from spop.engine.stream import IPAddress
from spop.errors import reason

T = TypeVar("T")
Predicate = Callable[[Any], bool]
CompileAll = Callable[[Sequence[str], bool], Predicate]
"""Makes a predicate of patterns. The second argument is whether case is ignored."""

KNOWN_METHODS = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"]

_LOWER = {ordinal: ordinal + 32 for ordinal in range(ord("A"), ord("Z") + 1)}
_REFERENCE = re.compile(rb"\\(?:([0-9])|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)


def ascii_lower(value: str) -> str:
    """The value in lower case. As in HAProxy, only letters of ASCII change."""
    return value.lower() if value.isascii() else value.translate(_LOWER)


def expand_references(template: bytes, match: re.Match[bytes]) -> bytes:
    r"""The template, with ``\0`` to ``\9`` replaced by groups, and ``\xHH`` by a byte."""

    def expand(reference: re.Match[bytes]) -> bytes:
        group, code, literal = reference.groups()
        if group:
            return (int(group) <= match.re.groups and match[int(group)]) or b""
        return bytes.fromhex(code.decode()) if code else literal

    return _REFERENCE.sub(expand, template)


def parse_range(word: str) -> tuple[float, float]:
    """The inclusive bounds of ``5``, ``5:8``, ``5:`` or ``:8`` (section 7.1.2).

    HAProxy also takes a hyphen in place of the colon.

    Raises:
        ValueError: the word is none of these, or a number has more than 64 bits.
    """
    match = re.search("[:-]", word)
    if not match:
        number = parse_bound(word)
        return number, number
    low_text, high_text = word[: match.start()], word[match.end() :]
    if not low_text and not high_text:
        raise ValueError(f"'{word}' is not a number or range")
    low = parse_bound(low_text) if low_text else float("-inf")
    high = parse_bound(high_text) if high_text else float("inf")
    if low > high:
        raise ValueError(f"'{word}' is not a range: it ends before it starts")
    return low, high


def parse_bound(word: str) -> int:
    """An integer of 64 bits, without a plus sign."""
    number = parse_int(word) if not word.startswith("+") else None
    if number is None or number != int(word[:MAX_DIGITS]):
        raise ValueError(f"'{word}' is not an integer of 64 bits")
    return number


@dataclass(frozen=True, slots=True)
class Network:
    """An address pattern. ``width`` is the number of bits of an address, 32 or 128."""

    address: int
    mask: int
    width: int


def narrowest_network(entries: Iterable[tuple[Network, T]]) -> Callable[[IPAddress], T | None]:
    """A function that looks an address up in networks, and gives the value of the narrowest.

    Of entries for the same network, the first counts. The time depends on the number of different
    masks, not on that of networks.
    """
    tables: dict[tuple[int, int], dict[int, T]] = {}
    for network, value in entries:
        table = tables.setdefault((network.mask, network.width), {})
        table.setdefault(network.address & network.mask, value)
    by_mask = sorted(tables.items(), key=lambda item: -item[0][0].bit_count())

    def lookup(address: IPAddress) -> T | None:
        for (mask, width), table in by_mask:
            number = _number(address, width)
            if number is not None and (found := table.get(number & mask)) is not None:
                return found
        return None

    return lookup


def _number(address: IPAddress, width: int) -> int | None:
    """An address as a number of a width; None where it has no such form."""
    if address.max_prefixlen == width:
        return int(address)
    if width == 128:
        return 0xFFFF_0000_0000 | int(address)
    return _embedded_ipv4(int(address))


def _embedded_ipv4(ipv6: int) -> int | None:
    """The IPv4 address in ``::a.b.c.d``, ``::ffff:a.b.c.d`` or 6to4's ``2002:aabb:ccdd::/48``."""
    if ipv6 >> 32 in (0, 0xFFFF):
        return ipv6 & 0xFFFFFFFF
    return ipv6 >> 80 & 0xFFFFFFFF if ipv6 >> 112 == 0x2002 else None


def parse_network(word: str) -> Network:
    """An address, optionally with a mask. IPv4 may be in a short form such as ``10.12/8``.

    Raises:
        ValueError: the word is no address. Host names are not looked up.
    """
    address, slash, mask = word.partition("/")
    if ":" in address:
        if not re.fullmatch("[0-9]+", mask or "128", re.ASCII):
            raise ValueError(f"'{mask}' is not the number of bits of a mask")
        bits = parse_mask6(mask) if slash else parse_mask6("128")
        return Network(int(parse_ipv6(address)), bits, 128)
    if not re.fullmatch(r"[0-9.]+", address, re.ASCII):
        raise ValueError(f"'{word}' is not an address or network")
    try:
        packed = socket.inet_aton(address)
    except OSError:
        raise ValueError(f"'{word}' is not an address or network") from None
    bits = parse_mask4(mask) if slash else parse_mask4("32")  # type: ignore[assignment]
    return Network(int.from_bytes(packed, "big"), bits, 32)


def _texts(compile_words: Callable[[tuple[str, ...]], Predicate]) -> CompileAll:
    """A match method that compares texts, in lower case where case is ignored."""

    def compile_all(words: Sequence[str], ignore_case: bool) -> Predicate:
        if not ignore_case:
            return compile_words(tuple(words))
        matches = compile_words(tuple(map(ascii_lower, words)))
        return lambda value: matches(ascii_lower(value))

    return compile_all


def _each(compile_one: Callable[[str], Predicate]) -> CompileAll:
    """A match method that tries one word after the other, and has no notion of case."""
    return lambda words, ignore_case: disjunction(list(map(compile_one, words)))


def disjunction(tests: Sequence[Callable[[T], bool]]) -> Callable[[T], bool]:
    """A test that holds where one of the tests does."""
    if len(tests) == 1:
        return tests[0]

    def one_holds(value: T) -> bool:
        for test in tests:  # noqa: SIM110 - any() of a generator takes three times as long
            if test(value):
                return True
        return False

    return one_holds


def _contains_one(word: str) -> Predicate:
    return lambda value: word in value


def _contains(words: tuple[str, ...]) -> Predicate:
    return disjunction([_contains_one(word) for word in words])


def _delimited(delimiters: str) -> Callable[[tuple[str, ...]], Predicate]:
    """A test for whole words between delimiters (``-m dir`` and ``-m dom``)."""
    one = f"[{re.escape(delimiters)}]"

    def compile_words(words: tuple[str, ...]) -> Predicate:
        inner = "|".join(re.escape(word) for w in words if (word := w.strip(delimiters)))
        if not inner:
            return lambda value: False
        search = re.compile(rf"(?:\A|(?<={one}))(?:{inner})(?:\Z|(?={one}))").search
        return lambda value: search(value) is not None

    return compile_words


def _regexes(words: Sequence[str], ignore_case: bool) -> Predicate:
    searches = [compile_regex(word, ignore_case).search for word in words]
    if len(searches) == 1:
        search = searches[0]
        return lambda value: search(raw(value)) is not None
    return lambda value: any(search(data) for data in (raw(value),) for search in searches)


def _integer(word: str) -> Predicate:
    low, high = parse_range(word)
    return lambda value: low <= value <= high


def _length(word: str) -> Predicate:
    # HAProxy compares lengths without a sign: a negative bound is a very large one.
    low, high = (bound + 2**64 if -(2**63) <= bound < 0 else bound for bound in parse_range(word))
    return lambda value: low <= byte_length(value) <= high


def _addresses(words: Sequence[str], ignore_case: bool) -> Predicate:
    lookup = narrowest_network([(parse_network(word), True) for word in words])
    return lambda value: lookup(value) is not None


def _block(word: str) -> Predicate:
    block = parse_hex(word)
    return lambda value: bool(value == block)


def _methods(words: Sequence[str], ignore_case: bool) -> Predicate:
    # HAProxy compares known methods by number. So case can only be ignored for others.
    exact = frozenset(words)
    if not ignore_case:
        return exact.__contains__
    folded = frozenset(map(ascii_lower, exact.difference(KNOWN_METHODS)))
    return lambda value: (
        value in exact or (value not in KNOWN_METHODS and ascii_lower(value) in folded)
    )


@dataclass(frozen=True, slots=True)
class MatchMethod:
    """A match method: the type that values are cast to, and how patterns are compiled.

    Without ``compile_all`` it ignores patterns. Without ``takes`` it ignores the value, too.
    """

    takes: SampleType | None
    compile_all: CompileAll | None = None


METHODS: Mapping[str, MatchMethod] = {
    "found": MatchMethod(None),
    "bool": MatchMethod(SampleType.INT),
    "int": MatchMethod(SampleType.INT, _each(_integer)),
    "ip": MatchMethod(SampleType.ADDR, _addresses),
    "bin": MatchMethod(SampleType.BIN, _each(_block)),
    "len": MatchMethod(SampleType.STR, _each(_length)),
    "str": MatchMethod(SampleType.STR, _texts(lambda words: frozenset(words).__contains__)),
    "beg": MatchMethod(SampleType.STR, _texts(lambda words: lambda value: value.startswith(words))),
    "end": MatchMethod(SampleType.STR, _texts(lambda words: lambda value: value.endswith(words))),
    "sub": MatchMethod(SampleType.STR, _texts(_contains)),
    "dir": MatchMethod(SampleType.STR, _texts(_delimited("/?"))),
    "dom": MatchMethod(SampleType.STR, _texts(_delimited("/?.:"))),
    "reg": MatchMethod(SampleType.STR, _regexes),
    "meth": MatchMethod(SampleType.METH, _methods),
}
"""The match methods by the names that ``-m`` takes. Only the ACL ``method`` uses ``meth``."""


def any_of(method: str, patterns: Sequence[tuple[str, bool]]) -> Predicate:
    """A predicate that holds where a value matches one of the patterns.

    Args:
        patterns: each with whether it ignores case.

    Raises:
        ValueError: a pattern does not fit the match method.
    """
    compile_all = METHODS[method].compile_all
    if compile_all is None:
        return bool if METHODS[method].takes else lambda value: True
    words: dict[bool, list[str]] = {}
    for word, ignore_case in patterns:
        words.setdefault(ignore_case, []).append(word)
    return disjunction([compile_all(some, ignore_case) for ignore_case, some in words.items()])


def read_patterns(path: str) -> list[str]:
    """The lines of a pattern file, without blank lines and comments.

    Raises:
        ValueError: the file can't be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"can't read '{path}': {reason(error)}") from None
    lines = data.decode("utf-8", "surrogateescape").replace("\r", "\n").split("\n")
    stripped = (line.lstrip(" \t") for line in lines if not line.startswith("#"))
    return [line for line in stripped if line]


def read_map(path: str) -> list[tuple[str, str]]:
    """The keys and values of a map file, in order.

    Raises:
        ValueError: the file can't be read.
    """
    entries = []
    for line in read_patterns(path):
        key, *value = re.split(r"[ \t]+", line.rstrip(" \t"), maxsplit=1)
        entries.append((key, value[0] if value else ""))
    return entries
