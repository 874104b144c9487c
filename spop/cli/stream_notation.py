"""Streams as people write them: ``method=GET path=/x hdr:user-agent=curl src=10.0.0.1``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from spop.cli.notation import natural_value
from spop.engine import Request, Response, Stream, Tls, Variables
from spop.errors import reason


def parse_stream(words: Iterable[str], *, http: bool) -> Stream:
    """The stream that the words tell of. It has a request if one is told of, or with `http`.

    Raises:
        click.UsageError: a word tells of nothing, or its value can't be read.
    """
    draft = _Draft()
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise click.UsageError(f"{word!r} is no part of a stream: name=value")
        try:
            draft.take(key, text)
        except (ValueError, OSError) as error:
            raise click.UsageError(f"{word!r}: {reason(error)}") from None
    return draft.stream(http)


class _Draft:
    """What is known so far."""

    def __init__(self) -> None:
        self._connection: dict[str, Any] = {}
        self._request: dict[str, Any] = {}
        self._response: dict[str, Any] = {}
        self._tls: dict[str, Any] | None = None
        self._variables: dict[str, Any] = {}

    def take(self, key: str, text: str) -> None:
        kind, colon, name = key.partition(":")
        if key in _CONNECTION:
            field, parse = _CONNECTION[key]
            self._connection[field] = parse(text)
        elif key in _REQUEST:
            self._request[key] = _REQUEST[key](text)
        elif key in _RESPONSE:
            field, parse = _RESPONSE[key]
            self._response[field] = parse(text)
        elif key == "ssl":
            self._tls = {} if _boolean(text) else None
        elif not colon or kind not in ("hdr", "res.hdr", "ssl", "var"):
            known = (*_CONNECTION, *_REQUEST, *_RESPONSE, "ssl", *_NAMED)
            raise ValueError(f"unknown; there are {', '.join(known)}")
        else:
            self._take_named(kind, name, text)

    def _take_named(self, kind: str, name: str, text: str) -> None:
        if kind == "var":
            value = natural_value(text)
            if isinstance(value, int) and not isinstance(value, bool):
                value = int(value)  # A sample knows no widths.
            try:
                self._variables[name] = value
                Variables(self._variables)
            except KeyError:
                raise ValueError("a variable has a scope: proc, sess, txn or req") from None
        elif kind == "ssl":
            if name not in _TLS:
                raise ValueError(f"unknown; there are {', '.join(_TLS)}")
            self._tls = {**(self._tls or {}), name: text}
        else:
            message = self._request if kind == "hdr" else self._response
            message.setdefault("headers", []).append((name, text))

    def stream(self, http: bool) -> Stream:
        request, response = self._request, self._response
        if "path" in request or "query" in request:
            path, query = request.pop("path", "/"), request.pop("query", None)
            request.setdefault("url", path if query is None else f"{path}?{query}")
        if "url" in request:
            request["uri"] = request.pop("url")
        return Stream(
            **self._connection,
            request=Request(**request) if request or http else None,
            response=Response(**response) if response else None,
            tls=None if self._tls is None else Tls(**self._tls),
            variables=Variables(self._variables),
        )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError("true or false is wanted")
    return text.lower() in ("true", "1")


def _bytes(text: str) -> bytes:
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text.encode("utf-8", "surrogateescape")


_CONNECTION: dict[str, tuple[str, Callable[[str], Any]]] = {
    "src": ("source", ipaddress.ip_address),
    "src_port": ("source_port", int),
    "dst": ("destination", ipaddress.ip_address),
    "dst_port": ("destination_port", int),
    "fe_name": ("frontend", str),
    "be_name": ("backend", str),
    "unique_id": ("unique_id", str),
}
_REQUEST: dict[str, Callable[[str], Any]] = {
    "method": str,
    "url": str,
    "path": str,
    "query": str,
    "version": str,
    "body": _bytes,
}
_RESPONSE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "status": ("status", int),
    "res.version": ("version", str),
    "res.body": ("body", _bytes),
}
_TLS = ("protocol", "cipher", "alpn", "sni")
_NAMED = ("hdr:NAME", "res.hdr:NAME", "ssl:NAME", "var:NAME")
