"""Streams as people write them: ``method=GET path=/x hdr:user-agent=curl src=10.0.0.1``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

import click

from spop.cli.notation import natural_value, read_value
from spop.engine import Request, Response, Stream, Tls, Variables
from spop.errors import reason
from spop.values import Value


def parse_stream(words: Iterable[str], *, http: bool) -> Stream:
    """The stream that the words tell of. It has a request if one is told of, or with `http`.

    Raises:
        click.UsageError: a word tells of nothing, or its value can't be read.
    """
    told: Told = {"connection": {}, "request": {}, "response": {}, "tls": {}, "variables": {}}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise click.UsageError(f"{word!r} is no part of a stream: name=value")
        try:
            _take(told, key, text)
        except (ValueError, OSError) as error:
            raise click.UsageError(f"{word!r}: {reason(error)}") from None
    return _stream(told, http)


Told = dict[str, dict[str, Any]]
"""The arguments of the classes that make up a stream, as far as they are known."""


def _take(told: Told, key: str, text: str) -> None:
    kind, colon, name = key.partition(":")
    if key in _FIELDS:
        part, field, parse = _FIELDS[key]
        told[part][field] = parse(text)
    elif not colon or kind not in _NAMED:
        known = (*_FIELDS, *(f"{kind}:NAME" for kind in _NAMED))
        raise ValueError(f"unknown; there are {', '.join(known)}")
    elif kind == "var":
        _take_variable(told["variables"], name, natural_value(text))
    elif kind == "ssl":
        if name not in _TLS:
            raise ValueError(f"unknown; there are {', '.join(_TLS)}")
        told["tls"] |= {"ssl": True, name: text}
    else:
        part = "request" if kind == "hdr" else "response"
        told[part].setdefault("headers", []).append((name, text))


def _take_variable(variables: dict[str, Any], name: str, value: Value) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = int(value)  # A sample knows no widths.
    variables[name] = value
    try:
        Variables(variables)
    except KeyError:
        raise ValueError("a variable has a scope: proc, sess, txn or req") from None


def _stream(told: Told, http: bool) -> Stream:
    request, response, tls = told["request"], told["response"], told["tls"]
    has_tls = tls.pop("ssl", False)
    if "path" in request or "query" in request:
        path, query = request.pop("path", "/"), request.pop("query", None)
        request.setdefault("uri", path if query is None else f"{path}?{query}")
    return Stream(
        **told["connection"],
        request=Request(**request) if request or http else None,
        response=Response(**response) if response else None,
        tls=Tls(**tls) if has_tls else None,
        variables=Variables(told["variables"]),
    )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError("true or false is wanted")
    return text.lower() in ("true", "1")


def _bytes(text: str) -> bytes:
    if text.startswith("@"):
        return read_value(text[1:])
    return text.encode("utf-8", "surrogateescape")


_FIELDS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "src": ("connection", "source", ipaddress.ip_address),
    "src_port": ("connection", "source_port", int),
    "dst": ("connection", "destination", ipaddress.ip_address),
    "dst_port": ("connection", "destination_port", int),
    "fe_name": ("connection", "frontend", str),
    "be_name": ("connection", "backend", str),
    "unique_id": ("connection", "unique_id", str),
    "method": ("request", "method", str),
    "url": ("request", "uri", str),
    "path": ("request", "path", str),
    "query": ("request", "query", str),
    "version": ("request", "version", str),
    "body": ("request", "body", _bytes),
    "status": ("response", "status", int),
    "res.version": ("response", "version", str),
    "res.body": ("response", "body", _bytes),
    "ssl": ("tls", "ssl", _boolean),
}
_TLS = ("protocol", "cipher", "alpn", "sni")
_NAMED = ("hdr", "res.hdr", "ssl", "var")
