"""Fetches of requests and responses: first line, URL parameters, body (section 7.3.6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import TypeVar

from spop.engine.samples.converters.hashes import avalanche, sdbm_hash
from spop.engine.samples.fetches.headers import strict_int, values
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch, fetch_part
from spop.engine.samples.types import Method, raw, text
from spop.engine.stream import Request, Stream

T = TypeVar("T")

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


def path_and_query(request: Request) -> str | None:
    """The part of the URI behind the authority; None for ``*`` and for CONNECT."""
    uri = request.uri
    if uri.startswith("/"):
        return uri
    if uri == "*" or request.method == "CONNECT":
        return None
    match = _AUTHORITY.match(uri)
    return uri[match.end() :] if match else None


_request_fetch = partial(fetch_part, whole=attrgetter("request"))
_response_fetch = partial(fetch_part, whole=attrgetter("response"))
_version, _body = attrgetter("version"), attrgetter("body")

_request_fetch("method", of=Source.REQUEST_KEPT, gives=Method, read=attrgetter("method"))
_request_fetch("url", of=Source.REQUEST_HEADERS, gives=str, read=attrgetter("uri"))
_request_fetch("pathq", of=Source.REQUEST_HEADERS, gives=str, read=path_and_query)
_request_fetch("req.ver", "req_ver", of=Source.REQUEST_HEADERS, gives=str, read=_version)
_request_fetch("req.body", of=Source.REQUEST_BODY, gives=bytes, read=_body)
_request_fetch("req.body_len", of=Source.REQUEST_BODY, gives=int, read=lambda it: len(it.body))
_response_fetch("status", of=Source.RESPONSE_KEPT, gives=int, read=attrgetter("status"))
_response_fetch("res.ver", "resp_ver", of=Source.RESPONSE_HEADERS, gives=str, read=_version)
_response_fetch("res.body", of=Source.RESPONSE_BODY, gives=bytes, read=_body)
_response_fetch("res.body_len", of=Source.RESPONSE_BODY, gives=int, read=lambda it: len(it.body))


@fetch("path", of=Source.REQUEST_HEADERS)
def path(stream: Stream) -> str | None:
    request = stream.request
    if request is None:
        return None
    found = path_and_query(request)
    return None if found is None else found.partition("?")[0]


@fetch("query", of=Source.REQUEST_HEADERS)
def query(stream: Stream) -> str | None:
    _, mark, after = (stream.request.uri if stream.request else "").partition("?")
    return after if mark else None


def _with_host(stream: Stream, part: str | None) -> str | None:
    request = stream.request
    host = next(values(request, "host"), "")
    if not host:
        return part
    return host + part if part and part.startswith("/") else host


@fetch("base", of=Source.REQUEST_HEADERS)
def base(stream: Stream) -> str | None:
    return _with_host(stream, path(stream))


@fetch("baseq", of=Source.REQUEST_HEADERS)
def baseq(stream: Stream) -> str | None:
    return _with_host(stream, path_and_query(stream.request) if stream.request else None)


@fetch("base32", of=Source.REQUEST_HEADERS)
def base32(stream: Stream) -> int | None:
    found = base(stream)
    return None if found is None else avalanche(sdbm_hash(raw(found)))


@fetch("req.proto_http", "req_proto_http", of=Source.REQUEST_KEPT)
def req_proto_http(stream: Stream) -> bool | None:
    # HAProxy has no such sample once there is a response.
    return stream.request is not None if stream.response is None else None


@fetch("req.body_size", of=Source.REQUEST_BODY)
def req_body_size(stream: Stream) -> int | None:
    """The announced length; without one, the length of what has arrived."""
    if stream.request is None:
        return None
    announced = next(values(stream.request, "content-length"), None)
    return len(stream.request.body) if announced is None else strict_int(announced)


def parameters(name: str, separators: str = "&;") -> re.Pattern[str]:
    """A pattern for the parameters of this name; for all if the name is empty.

    Its group is the value, still encoded. As in HAProxy, a parameter has an equals sign.
    """
    separator, other = f"[{re.escape(separators)}]", f"[^{re.escape(separators)}]"
    key = re.escape(name) or f"[^={re.escape(separators)}]*"
    return re.compile(rf"(?:\A|{separator}){key}=({other}*)")


def _first(every: Callable[[Stream], Iterable[T]]) -> Callable[[Stream], T | None]:
    return lambda stream: next(iter(every(stream)), None)


def _every_urlp(name: str = "", delimiter: str = "?") -> Callable[[Stream], Iterable[str]]:
    delimiter = delimiter[:1] or "\0"
    find_all = parameters(name, "&;" + delimiter).finditer

    def read(stream: Stream) -> Iterable[str]:
        uri = stream.request.uri if stream.request else ""
        start = uri.find(delimiter)
        return (match[1] for match in find_all(uri, start)) if start >= 0 else ()

    return read


@fetch("urlp", "url_param", of=Source.REQUEST_HEADERS, every=_every_urlp)
def urlp(name: str = "", delimiter: str = "?") -> Callable[[Stream], str | None]:
    return _first(_every_urlp(name, delimiter))


def _every_urlp_val(name: str = "", delimiter: str = "?") -> Callable[[Stream], Iterable[int]]:
    every = _every_urlp(name, delimiter)
    return lambda stream: map(strict_int, every(stream))


@fetch("urlp_val", of=Source.REQUEST_HEADERS, every=_every_urlp_val)
def urlp_val(name: str = "", delimiter: str = "?") -> Callable[[Stream], int | None]:
    return _first(_every_urlp_val(name, delimiter))


def _every_body_param(name: str = "") -> Callable[[Stream], Iterable[str]]:
    find_all = parameters(name).findall
    return lambda stream: find_all(text(stream.request.body)) if stream.request else ()


@fetch("req.body_param", of=Source.REQUEST_BODY, every=_every_body_param)
def req_body_param(name: str = "") -> Callable[[Stream], str | bytes | None]:
    return _first(_every_body_param(name))
