"""The fetches and converters that an expression may use: the engine's, and a HAProxy's.

A `Vocabulary` decides what a name means. The engine's own one has what the engine can evaluate.
That of a HAProxy has the names that `spop.engine.haproxy` lists for its version. A name that the
engine can't evaluate is compiled, too, and its sample is never available.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spop.engine.haproxy import Branch, Keyword, Keywords, keywords_of
from spop.engine.haproxy.keywords import elsewhere
from spop.engine.samples.arguments import (
    is_int,
    parse_int,
    parse_ipv4,
    parse_ipv6,
    parse_mask4,
    parse_mask6_if_any,
)
from spop.engine.samples.errors import SampleError, did_you_mean
from spop.engine.samples.haproxy_arguments import CHECKS, LAST_CHECKED
from spop.engine.samples.places import Place, Source
from spop.engine.samples.registry import CONVERTERS, FETCHES, ArgumentSpec, Converter, Fetch
from spop.engine.samples.types import SampleType
from spop.engine.stream import Stream

_MISSING = "HAProxy has '{}'; this engine can't evaluate it"

ENGINE_BRANCH: Branch = (2, 6)
"""The HAProxy whose types and arguments the engine's own vocabulary has."""

_TYPES = {
    "any": SampleType.ANY, "same": SampleType.SAME, "bool": SampleType.BOOL,
    "sint": SampleType.INT, "addr": SampleType.ADDR, "ipv4": SampleType.IPV4,
    "ipv6": SampleType.IPV6, "str": SampleType.STR, "bin": SampleType.BIN,
    "meth": SampleType.METH,
}  # fmt: skip

_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "integer": parse_int,
    "IPv4 address": parse_ipv4,
    "IPv6 address": parse_ipv6,
    "IPv4 mask": parse_mask4,
    "IPv6 mask": parse_mask6_if_any,
}
"""How an argument of each of HAProxy's types is parsed. The other types are text."""

_TEXTS = ("string", "backend", "frontend", "server", "table", "user list", "regex")


@dataclass(frozen=True, slots=True)
class Remark:
    """What is to be said of a name in an expression that is no error.

    Attributes:
        offset: of the name, in characters or words.
        missing: HAProxy has it, and the engine can't evaluate it.
        objects: kind and name of what its arguments name in a ``haproxy.cfg``. An empty name is
            that of the proxy itself.
    """

    text: str
    offset: int
    missing: bool
    objects: tuple[tuple[str, str], ...] = ()


class Vocabulary:
    """What names of fetches and converters mean.

    Args:
        branch: the HAProxy that decides; None is the engine's own vocabulary.
        own: names that no HAProxy has are taken, if they are registered.
        has_backend: the expressions stand in a proxy that is a backend. Fetches of a backend
            need no name of one there.
    """

    def __init__(
        self, branch: Branch | None = None, *, own: bool = True, has_backend: bool = True
    ) -> None:
        self.branch: Branch = branch or ENGINE_BRANCH
        self._keywords: Keywords | None = keywords_of(branch) if branch else None
        self._own = own
        self._has_backend = has_backend

    @property
    def remark(self) -> str | None:
        """What is to be said of the table that is used."""
        return self._keywords.remark if self._keywords else None

    def fetch(self, name: str, offset: int) -> Fetch:
        """The fetch of this name.

        Raises:
            SampleError: there is none.
        """
        mine = FETCHES.get(name)
        found = self._find("f", name)
        if found is None:
            return mine if mine and self._takes("f", name) else self._refuse("fetch", name, offset)
        doubt = self._doubt("f", name)
        if mine is None:
            return replace(self._missing_fetch(found), doubt=doubt)
        return replace(mine, gives=_TYPES[found.type], places=_places(found), doubt=doubt)

    def converter(self, name: str, offset: int) -> Converter:
        """The converter of this name.

        Raises:
            SampleError: there is none.
        """
        mine = CONVERTERS.get(name)
        found = self._find("c", name)
        if found is None:
            taken = mine if mine and self._takes("c", name) else None
            return taken or self._refuse("converter", name, offset)
        doubt = self._doubt("c", name)
        if mine is None:
            return replace(self._missing_converter(found), doubt=doubt)
        gives, takes = _TYPES[found.type], _TYPES[found.other]
        return replace(mine, gives=gives, takes=takes, doubt=doubt)

    def with_arguments(
        self, function: Fetch | Converter, words: Sequence[str]
    ) -> Fetch | Converter:
        """The function for these arguments: HAProxy's may take others than the engine's."""
        found = self._find(_kind(function), function.name)
        if found is None or function.missing or _takes(function, found, words):
            return function
        return self.without(function)

    def without(self, function: Fetch | Converter) -> Fetch | Converter:
        """HAProxy's function in place of the engine's; the same where no HAProxy decides."""
        found = self._find(_kind(function), function.name)
        if found is None:
            return function
        if isinstance(function, Fetch):
            return self._missing_fetch(found)
        return self._missing_converter(found)

    @property
    def of_haproxy(self) -> bool:
        """Whether a HAProxy decides."""
        return self._keywords is not None

    def _missing_fetch(self, keyword: Keyword) -> Fetch:
        def make(*args: Any) -> Callable[[Stream], Any]:
            self._check(keyword, args)
            return lambda stream: None

        return Fetch(
            keyword.name, make, tuple(_parameters(keyword)), _TYPES[keyword.type],
            Source.INTERNAL, None, _places(keyword), missing=True,
        )  # fmt: skip

    def _missing_converter(self, keyword: Keyword) -> Converter:
        def make(*args: Any) -> Callable[[Any], Any]:
            self._check(keyword, args)
            return lambda value: None

        return Converter(
            keyword.name, make, tuple(_parameters(keyword)), _TYPES[keyword.other], False,
            _TYPES[keyword.type], needs_stream=False, pure=False, missing=True,
        )  # fmt: skip

    def _check(self, keyword: Keyword, args: tuple[Any, ...]) -> None:
        if keyword.arguments[:1] == ("backend",) and not (self._has_backend or any(args)):
            raise ValueError("the name of a backend is missing")
        check = CHECKS.get(keyword.name)
        if check and self.branch <= LAST_CHECKED.get(keyword.name, self.branch):
            check(*args)

    def has_converter(self, name: str) -> bool:
        if self._find("c", name):
            return True
        return name in CONVERTERS and self._takes("c", name)

    def criterion(self, name: str) -> tuple[str, str] | None:
        """Fetch and match method of a name that only ACLs have; None if it is no such name."""
        found = self._find("a", name)
        return (found.type, found.other) if found else None

    def _find(self, kind: str, name: str) -> Keyword | None:
        return self._keywords.find(kind, name) if self._keywords else None

    def _doubt(self, kind: str, name: str) -> str | None:
        return self._keywords.doubt(kind, name) if self._keywords else None

    def _takes(self, kind: str, name: str) -> bool:
        """Whether a name is taken that this HAProxy does not have: one of the engine's own."""
        return self._keywords is None or (self._own and elsewhere(kind, name) is None)

    def _refuse(self, what: str, name: str, offset: int) -> Any:
        kind = what[0]
        if self._keywords is None and elsewhere(kind, name):
            raise SampleError(_MISSING.format(name), offset)
        hint = elsewhere(kind, name) or did_you_mean(name, self._names(kind))
        raise SampleError(f"unknown {what} '{name}'", offset, hint)

    def _names(self, kind: str) -> Iterator[str]:
        if self._keywords:
            yield from self._keywords.names(kind)
        else:
            yield from FETCHES if kind == "f" else CONVERTERS


ENGINE = Vocabulary()
"""The engine's own vocabulary."""


OBJECTS = ("backend", "frontend", "server", "table", "user list")
"""The kinds of arguments that name something in a ``haproxy.cfg``."""


def remark(function: Fetch | Converter, words: Sequence[str], offset: int) -> Iterator[Remark]:
    """The remarks on a function that stands at an offset, with these arguments."""
    if function.doubt:
        yield Remark(function.doubt, offset, missing=False)
    if function.missing:
        objects = (
            (parameter.name, words[index] if index < len(words) else "")
            for index, parameter in enumerate(function.parameters)
            if parameter.name in OBJECTS and (index < len(words) or parameter.required)
        )
        text = _MISSING.format(function.name)
        yield Remark(text, offset, missing=True, objects=tuple(objects))


def _kind(function: Fetch | Converter) -> str:
    return "f" if isinstance(function, Fetch) else "c"


def _takes(mine: Fetch | Converter, found: Keyword, words: Sequence[str]) -> bool:
    """Whether the engine's function takes these arguments, or HAProxy's does not either."""
    if len(mine.parameters) < len(words) <= len(found.arguments):
        return False
    # Arguments that were integers until 2.8 may be variables since.
    loose = any(
        kind == "string" and parameter.parse is parse_int
        for kind, parameter in zip(found.arguments, mine.parameters, strict=False)
    )
    return not loose or (bool(words) and all(map(is_int, words)))


def _parameters(keyword: Keyword) -> Iterator[ArgumentSpec]:
    for number, kind in enumerate(keyword.arguments):
        parse = _PARSERS.get(kind, str)
        yield ArgumentSpec(kind, parse, kind in _TEXTS, number < keyword.required)


def _places(keyword: Keyword) -> Place:
    bits = (place for place, letter in zip(Place, keyword.other, strict=False) if letter == "Y")
    places = Place(0)
    for place in bits:
        places |= place
    return places
