"""Fetches of cookies: ``Cookie`` in requests, ``Set-Cookie`` in responses (section 7.3.6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from spop.engine.samples.fetches.headers import parsed, strict_int, values
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.stream import Stream

_PAIR = re.compile(r'\s*([^=;,]*?)\s*=\s*((?:"(?:\\.|[^"\\])*"?|[^;,"])*)')
_NEXT = re.compile(r"[;,]")

Cookies = Callable[[Stream], Iterator[str]]


def request_cookies(name: str = "") -> Cookies:
    """Reads the values of the cookies of this name in a request; of all if the name is empty."""
    key = re.escape(name) or "[^=;,]*?"
    least = len(name) + 2
    find_plain = re.compile(rf"(?:^|[;,])(?=.{{{least}}})\s*{key}\s*=\s*([^;,]*)").findall

    def read(stream: Stream) -> Iterator[str]:
        for line in values(stream.request, "cookie"):
            if '"' in line:
                yield from (value for key, value in _pairs(line, least) if name in ("", key))
            elif name in line:
                for value in find_plain(line):
                    yield value.rstrip(" \t")

    return read


def response_cookies(name: str = "") -> Cookies:
    """Reads the values of the cookies that a response sets."""
    least = len(name) + 2

    def read(stream: Stream) -> Iterator[str]:
        for line in values(stream.response, "set-cookie"):
            for key, value in _pairs(line, least):
                if name not in ("", key):
                    break
                # Without a name, HAProxy takes attributes such as ``Path`` for cookies, too.
                yield value

    return read


def _pairs(line: str, least: int) -> Iterator[tuple[str, str]]:
    """The names and values in a line, as long as at least so many characters are left of it."""
    # To HAProxy, ``name=`` at the end of a line is no cookie of that name.
    position = 0
    while len(line) - position >= least:
        pair = _PAIR.match(line, position)
        if pair:
            yield pair[1], pair[2].rstrip(" \t")
        end = _NEXT.search(line, pair.end() if pair else position)
        position = end.end() if end else len(line)


def _register(source: Source, cookies: Callable[..., Cookies], *prefixes: str) -> None:
    def every_int(name: str = "") -> Callable[[Stream], Iterable[int]]:
        read = cookies(name)
        return lambda stream: map(strict_int, read(stream))

    def cook(name: str = "") -> Callable[[Stream], str | None]:
        # HAProxy gives the last cookie of a name; without a name, the first one of all.
        read = cookies(name)
        if not name:
            return lambda stream: next(read(stream), None)

        def last(stream: Stream) -> str | None:
            value = None
            for value in read(stream):  # noqa: B007
                pass
            return value

        return last

    def cook_val(name: str = "") -> Callable[[Stream], int | None]:
        return parsed(cook(name), strict_int)

    def cook_cnt(name: str = "") -> Callable[[Stream], int]:
        read = cookies(name)
        return lambda stream: sum(1 for _ in read(stream))

    fetch(*prefixes, of=source, every=cookies)(cook)
    fetch(*(f"{p}_val" for p in prefixes), of=source, every=every_int)(cook_val)
    fetch(*(f"{p}_cnt" for p in prefixes), of=source)(cook_cnt)


_register(Source.REQUEST_HEADERS, request_cookies, "req.cook", "cook")
_register(Source.RESPONSE_HEADERS, response_cookies, "res.cook", "scook")
