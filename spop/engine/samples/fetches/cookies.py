"""Fetches of cookies: of ``Cookie`` in requests, of ``Set-Cookie`` in responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from spop.engine.samples.fetches.headers import (
    of_request,
    of_response,
    strict_int,
    values,
)
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.stream import Stream

_PAIR = re.compile(r'\s*([^=;,\s]*)\s*=\s*((?:"(?:\\.|[^"\\])*"?|[^;,"])*)')
_NEXT = re.compile(r"[;,]")

Cookies = Callable[[Stream, str], Iterator[str]]


def request_cookies(stream: Stream, name: str) -> Iterator[str]:
    """The values of a request's cookies of this name; of all for an empty name."""
    for line in values(of_request(stream), "cookie"):
        for key, value in _pairs(line):
            if name in ("", key):
                yield value


def response_cookies(stream: Stream, name: str) -> Iterator[str]:
    """The values of the cookies that a response sets.

    Attributes are passed over by their name, but without one they count, as in HAProxy.
    """
    for line in values(of_response(stream), "set-cookie"):
        for key, value in _pairs(line):
            if name not in ("", key):
                break
            yield value


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(line):
        pair = _PAIR.match(line, position)
        if pair:
            yield pair[1], pair[2].rstrip(" \t")
        end = _NEXT.search(line, pair.end() if pair else position)
        position = end.end() if end else len(line)


def _register(source: Source, cookies: Cookies, *prefixes: str) -> None:
    def every(stream: Stream, name: str = "") -> Iterator[str]:
        return cookies(stream, name)

    def every_int(stream: Stream, name: str = "") -> Iterator[int]:
        return map(strict_int, cookies(stream, name))

    def cook(stream: Stream, name: str = "") -> str | None:
        """The last of this name; without a name, the first."""
        if not name:
            return next(cookies(stream, name), None)
        value = None
        for value in cookies(stream, name):  # noqa: B007
            pass
        return value

    def cook_val(stream: Stream, name: str = "") -> int | None:
        value = cook(stream, name)
        return None if value is None else strict_int(value)

    def cook_cnt(stream: Stream, name: str = "") -> int:
        return sum(1 for _ in cookies(stream, name))

    fetch(*prefixes, of=source, every=every)(cook)
    fetch(*(f"{p}_val" for p in prefixes), of=source, every=every_int)(cook_val)
    fetch(*(f"{p}_cnt" for p in prefixes), of=source)(cook_cnt)


_register(Source.REQUEST_HEADERS, request_cookies, "req.cook", "cook")
_register(Source.RESPONSE_HEADERS, response_cookies, "res.cook", "scook")
