"""From a handler's parameter to the argument of its message: names and types are the evidence.

The event is a rule of names. A handler with a parameter such as ``status``, or whose name has the
word ``response``, gets ``on-http-response``. All others get ``on-frontend-http-request``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from spop.constants import DataType
from spop.engine.config.model import Event
from spop.engine.haproxy.types import arriving_types
from spop.parameters import HEADERS, MISSING, TYPE_BITS, Parameter

_OF_RESPONSE = re.compile(r"status(_code)?|(res|resp|response)(_.+)?")
_HEADER = re.compile(
    r"accept(_.+)?|authorization|content_type|cookie|origin|referer|traceparent|user_agent|x_.+"
)

_CONNECTION: Mapping[str, str] = {
    **dict.fromkeys(
        ["ip", "src", "src_ip", "client", "client_ip", "addr", "address", "remote_addr", "peer"],
        "src",
    ),
    **dict.fromkeys(["port", "src_port", "client_port"], "src_port"),
    **dict.fromkeys(["dst", "dst_ip", "server_ip"], "dst"),
    **dict.fromkeys(["dst_port", "server_port"], "dst_port"),
    **dict.fromkeys(["ssl", "tls", "https", "is_ssl", "is_tls"], "ssl_fc"),
    "sni": "ssl_fc_sni",
    **dict.fromkeys(["now", "date", "time", "timestamp"], "date"),
    **dict.fromkeys(["id", "request_id", "unique_id", "uuid"], "uuid()"),
    **dict.fromkeys(["frontend", "fe_name"], "fe_name"),
    "method": "method",
}
_REQUEST: Mapping[str, str] = {
    "path": "path",
    **dict.fromkeys(["url", "uri"], "url"),
    **dict.fromkeys(["query", "query_string", "qs"], "query"),
    **dict.fromkeys(["host", "hostname", "authority"], "req.hdr(host)"),
    **dict.fromkeys(["ua", "agent"], "req.fhdr(user-agent)"),
    **dict.fromkeys(["referrer"], "req.fhdr(referer)"),
    **dict.fromkeys(["auth"], "req.fhdr(authorization)"),
    **dict.fromkeys(["cookies"], "req.fhdr(cookie)"),
    **dict.fromkeys(["xff", "forwarded_for"], "req.fhdr(x-forwarded-for)"),
    **dict.fromkeys(["version", "http_version"], "req.ver"),
    **dict.fromkeys(["body", "payload", "data", "content"], "req.body"),
    **dict.fromkeys(["body_size", "content_length", "size", "length"], "req.body_size"),
    "headers": "req.hdrs",
}
_RESPONSE: Mapping[str, str] = {
    **dict.fromkeys(["status", "status_code"], "status"),
    **dict.fromkeys(["version", "http_version"], "res.ver"),
    **dict.fromkeys(["body", "payload", "data", "content"], "res.body"),
    **dict.fromkeys(["body_size", "content_length", "size", "length"], "res.body_size"),
    "headers": "res.hdrs",
}
_MAY_LACK = ("req.fhdr(", "res.fhdr(", "query", "ssl_fc_sni")
"""Fetches that find nothing in many requests. HAProxy then sends NULL."""

_CONSTANTS: Mapping[int, str] = {
    TYPE_BITS[str]: "str(none)",
    TYPE_BITS[int]: "int(0)",
    TYPE_BITS[bool]: "bool(false)",
    1 << DataType.IPV4: "ipv4(192.0.2.1)",
    1 << DataType.IPV6: "ipv6(2001:db8::1)",
    TYPE_BITS[bytes]: "bin(00)",
}
_TO_TEXT, _TO_BYTES = "concat()", "bytes(0)"
"""Converters that change the type alone."""


class Guess(NamedTuple):
    """An argument of a message.

    Attributes:
        remark: what its author has to know or to do; empty if nothing.
        certain: no one has to fill it in.
    """

    name: str
    expression: str
    remark: str = ""
    certain: bool = True


def event_of(message: str, names: Iterable[str]) -> Event:
    """When the message is sent. `names` are those of its arguments."""
    of_response = "response" in re.split(r"[-_.:]", message.lower())
    if of_response or any(_OF_RESPONSE.fullmatch(name) for name in names):
        return Event.ON_HTTP_RESPONSE
    return Event.ON_FRONTEND_HTTP_REQUEST


def guess(parameter: Parameter, event: Event) -> Guess | None:
    """The argument of a parameter; None if nothing fits, and the handler has a default for it."""
    name, of_response = parameter.name, event is Event.ON_HTTP_RESPONSE
    if parameter.accepts != -1 and parameter.accepts & HEADERS:
        return Guess(name, "res.hdrs_bin" if of_response else "req.hdrs_bin")
    fetch = _fetch(name.lower(), of_response)
    expression = fetch and _of_type(fetch, parameter.accepts)
    if expression:
        return Guess(name, expression, _remark(parameter, expression))
    if parameter.default is not MISSING:
        return None
    return Guess(name, _constant(parameter.accepts), "fill in", certain=False)


def _fetch(name: str, of_response: bool) -> str | None:
    if of_response:
        bare = re.sub(r"^(res|resp|response)_", "", name)
        known: Mapping[str, str] = {**_CONNECTION, **_RESPONSE}
        direction = "res"
    else:
        bare, known, direction = (
            re.sub(r"^(req|request)_(?!id$)", "", name),
            {**_CONNECTION, **_REQUEST},
            "req",
        )
    if bare in known:
        return known[bare]
    return f"{direction}.fhdr({bare.replace('_', '-')})" if _HEADER.fullmatch(bare) else None


def _of_type(fetch: str, accepts: int) -> str | None:
    """The fetch as a type that the parameter accepts; None if there is no such."""
    if fetch.endswith(".hdrs") and not accepts & TYPE_BITS[str]:
        fetch += "_bin"
    kinds = arriving_types(fetch)
    if not kinds or any(accepts >> kind & 1 for kind in kinds):
        return fetch
    if accepts & TYPE_BITS[str]:
        return f"{fetch},{_TO_TEXT}"
    if accepts & TYPE_BITS[bytes] and kinds == {DataType.STRING}:
        return f"{fetch},{_TO_BYTES}"
    return None


def _remark(parameter: Parameter, expression: str) -> str:
    takes_null = parameter.accepts >> DataType.NULL & 1 or parameter.default is not MISSING
    if expression.startswith(_MAY_LACK) and not takes_null:
        return "NULL where there is none, which the handler's parameter does not take"
    return "at most what has come by then" if expression.startswith("res.body") else ""


def _constant(accepts: int) -> str:
    fitting = (text for bits, text in _CONSTANTS.items() if accepts & bits)
    return next(fitting, "var(txn.none)")
