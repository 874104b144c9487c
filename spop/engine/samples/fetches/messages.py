"""Fetches of requests and responses but for their headers: line, URL parameters, body."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spop.engine.samples.converters.hashes import avalanche, sdbm_hash
from spop.engine.samples.fetches.headers import strict_int, values
from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.samples.types import Method, raw, text
from spop.engine.stream import Request, Stream

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


def path_and_query(request: Request) -> str | None:
    """What follows the authority in the URI; None for ``*`` and for CONNECT."""
    uri = request.uri
    if uri.startswith("/"):
        return uri
    if uri == "*" or request.method == "CONNECT":
        return None
    match = _AUTHORITY.match(uri)
    return uri[match.end() :] if match else None


@fetch("method", of=Source.REQUEST_KEPT)
def method(stream: Stream) -> Method | None:
    return stream.request.method if stream.request else None  # type: ignore[return-value]


@fetch("url", of=Source.REQUEST_HEADERS)
def url(stream: Stream) -> str | None:
    return stream.request.uri if stream.request else None


@fetch("pathq", of=Source.REQUEST_HEADERS)
def pathq(stream: Stream) -> str | None:
    return path_and_query(stream.request) if stream.request else None


@fetch("path", of=Source.REQUEST_HEADERS)
def path(stream: Stream) -> str | None:
    found = pathq(stream)
    return None if found is None else found.partition("?")[0]


@fetch("query", of=Source.REQUEST_HEADERS)
def query(stream: Stream) -> str | None:
    _, mark, after = (url(stream) or "").partition("?")
    return after if mark else None


def _with_host(stream: Stream, part: str | None) -> str | None:
    request = stream.request
    host = next(values(request.headers, "host"), "") if request else ""
    if not host:
        return part
    return host + part if part and part.startswith("/") else host


@fetch("base", of=Source.REQUEST_HEADERS)
def base(stream: Stream) -> str | None:
    return _with_host(stream, path(stream))


@fetch("baseq", of=Source.REQUEST_HEADERS)
def baseq(stream: Stream) -> str | None:
    return _with_host(stream, pathq(stream))


@fetch("base32", of=Source.REQUEST_HEADERS)
def base32(stream: Stream) -> int | None:
    found = base(stream)
    return None if found is None else avalanche(sdbm_hash(raw(found)))


@fetch("req.ver", "req_ver", of=Source.REQUEST_HEADERS)
def req_ver(stream: Stream) -> str | None:
    return stream.request.version if stream.request else None


@fetch("req.proto_http", "req_proto_http", of=Source.REQUEST_KEPT)
def req_proto_http(stream: Stream) -> bool:
    return stream.request is not None


@fetch("res.ver", "resp_ver", of=Source.RESPONSE_HEADERS)
def res_ver(stream: Stream) -> str | None:
    return stream.response.version if stream.response else None


@fetch("status", of=Source.RESPONSE_KEPT)
def status(stream: Stream) -> int | None:
    return stream.response.status if stream.response else None


@fetch("req.body", of=Source.REQUEST_BODY)
def req_body(stream: Stream) -> bytes | None:
    return stream.request.body if stream.request else None


@fetch("req.body_len", of=Source.REQUEST_BODY)
def req_body_len(stream: Stream) -> int | None:
    return len(stream.request.body) if stream.request else None


@fetch("req.body_size", of=Source.REQUEST_BODY)
def req_body_size(stream: Stream) -> int | None:
    """The announced length, or of what arrived where none is."""
    if stream.request is None:
        return None
    announced = next(values(stream.request.headers, "content-length"), None)
    return len(stream.request.body) if announced is None else strict_int(announced)


@fetch("res.body", of=Source.RESPONSE_BODY)
def res_body(stream: Stream) -> bytes | None:
    return stream.response.body if stream.response else None


@fetch("res.body_len", of=Source.RESPONSE_BODY)
def res_body_len(stream: Stream) -> int | None:
    return len(stream.response.body) if stream.response else None


def parameters(found: str, name: str, separators: str = "&;") -> Iterator[str]:
    """The values of the parameters of this name, undecoded; of all for an empty name.

    One without an equals sign is none.
    """
    for pair in re.split(f"[{re.escape(separators)}]", found):
        key, equals, value = pair.partition("=")
        if equals and name in ("", key):
            yield value


def _delimiter(name: str = "", delimiter: str = "?") -> tuple[str, str]:
    return name, delimiter[:1] or "?"


def every_urlp(stream: Stream, name: str = "", delimiter: str = "?") -> Iterator[str]:
    _, mark, after = (url(stream) or "").partition(delimiter)
    return parameters(after, name, "&;" + delimiter) if mark else iter(())


@fetch("urlp", "url_param", of=Source.REQUEST_HEADERS, every=every_urlp, prepare=_delimiter)
def urlp(stream: Stream, name: str = "", delimiter: str = "?") -> str | None:
    return next(every_urlp(stream, name, delimiter), None)


def every_urlp_val(stream: Stream, name: str = "", delimiter: str = "?") -> Iterator[int]:
    return map(strict_int, every_urlp(stream, name, delimiter))


@fetch("urlp_val", of=Source.REQUEST_HEADERS, every=every_urlp_val, prepare=_delimiter)
def urlp_val(stream: Stream, name: str = "", delimiter: str = "?") -> int | None:
    return next(every_urlp_val(stream, name, delimiter), None)


def every_body_param(stream: Stream, name: str = "") -> Iterator[str]:
    body = stream.request.body if stream.request else b""
    return parameters(text(body), name)


@fetch("req.body_param", of=Source.REQUEST_BODY, every=every_body_param)
def req_body_param(stream: Stream, name: str = "") -> str | bytes | None:
    return next(every_body_param(stream, name), None)
