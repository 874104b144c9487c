"""The ``map`` converters. A map file is read once, when the expression is compiled."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop.engine.samples.arguments import parse_int
from spop.engine.samples.patterns import (
    any_of,
    expand_references,
    narrowest_network,
    parse_network,
    read_map,
)
from spop.engine.samples.regexes import compile_regex
from spop.engine.samples.registry import converter
from spop.engine.samples.types import CASTS, SampleType, cast, raw, text

Lookup = Callable[[Any], Any]
Parse = Callable[[str], Any]


def _parse_address(word: str) -> IPv4Address | IPv6Address:
    address: IPv4Address | IPv6Address | None = cast(word, CASTS[SampleType.ADDR])
    if address is None:
        raise ValueError(f"'{word}' is not an address")
    return address


_OUTPUTS: dict[str, tuple[Parse, Any]] = {
    "": (str, str),
    "_int": (parse_int, int),
    "_ip": (_parse_address, IPv4Address | IPv6Address),
}
_INPUTS: dict[str, Any] = {"int": int, "ip": IPv4Address | IPv6Address}


def _longest_prefix(entries: list[tuple[str, Any]]) -> Lookup:
    return _first_match("beg", sorted(entries, key=lambda entry: -len(entry[0])))


def _narrowest_network(entries: list[tuple[str, Any]]) -> Lookup:
    return narrowest_network([(parse_network(key), value) for key, value in entries])


def _first_match(method: str, entries: list[tuple[str, Any]]) -> Lookup:
    tests = [(any_of(method, [(key, False)]), value) for key, value in entries]
    return lambda key: next((value for test, value in tests if test(key)), None)


def _with_references(entries: list[tuple[str, Any]]) -> Lookup:
    patterns = [(compile_regex(key, False), raw(value)) for key, value in entries]

    def lookup(key: str) -> str | None:
        data = raw(key)
        for pattern, template in patterns:
            if match := pattern.search(data):
                return text(expand_references(template, match))
        return None

    return lookup


_LOOKUPS: dict[str, Callable[[list[tuple[str, Any]]], Lookup]] = {
    "str": lambda entries: dict(reversed(entries)).get,
    "beg": _longest_prefix,
    "ip": _narrowest_network,
    "regm": _with_references,
}


def _register(match: str, output: str, *names: str) -> None:
    parse, gives = _OUTPUTS[output]

    def lookup_converter(path: str, default: str | None = None) -> Callable[[Any], Any]:
        entries = [(key, parse(value)) for key, value in read_map(path)]
        build = _LOOKUPS.get(match)
        lookup = build(entries) if build else _first_match(match, entries)
        if default is None:
            return lookup
        otherwise = parse(default)

        def lookup_or_default(value: Any) -> Any:
            found = lookup(value)
            return otherwise if found is None else found

        return lookup_or_default

    takes = _INPUTS.get(match, str)
    lookup_converter.__annotations__["return"] = Callable[[takes], gives]
    converter(*names)(lookup_converter)


for _match in ("str", "beg", "sub", "dir", "dom", "end", "reg", "int", "ip"):
    for _output in _OUTPUTS:
        _register(_match, _output, f"map_{_match}{_output}")
_register("str", "", "map")
_register("regm", "", "map_regm")
