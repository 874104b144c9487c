"""One request and its response: the order of events, and what rules do. It waits for nothing.

`Transaction.request` and `Transaction.response` are generators of steps. A step is what the
engine's stream returned: the `Processing` where it blocks, something to await where it doesn't.
The middleware sends back the Processing, and gets, in the end, what to answer in the
application's stead.
"""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Generator, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, NamedTuple

from spop.engine.asynchronous import AsyncStream
from spop.engine.blocking import BlockingStream
from spop.engine.filter import Processing
from spop.engine.stream import HeaderFields, IPAddress, Response, Stream
from spop.web.policy import Policy
from spop.web.rules import Allow, Deny, Redirect, Rule, SendGroup, SetHeader, SetVar
from spop.web.texts import header_value, url

VARIABLES = "spop.variables"
"""Where the application finds the variables, in its scope or environ."""


_PLAIN = "content-type", "text/plain; charset=utf-8"
"""WSGI wants a type even where there is no body."""


class Reply(NamedTuple):
    """What is answered in the application's stead."""

    status: int
    headers: HeaderFields
    body: bytes

    @property
    def phrase(self) -> str:
        """The status' name, which HTTP/1 has after it."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "Unknown"


BROKEN_OFF = Reply(400, [_PLAIN, ("content-length", "0")], b"")
"""To a client that didn't send what it announced."""

Steps = Generator[Any, Processing | None, Reply | None]


class Transaction:
    """A request, its response, and the stream that an engine makes of both.

    Attributes:
        failed: an agent did not answer as it should have.
        changed: the names, in lower case, of header fields that rules changed since the last
            `request` or `response` began.
    """

    __slots__ = ("_context", "_policy", "changed", "failed", "stream")

    def __init__(self, policy: Policy, context: BlockingStream | AsyncStream) -> None:
        self._policy = policy
        self._context = context
        self.stream: Stream = context.stream
        self.failed: bool = False
        self.changed: set[str] = set()

    def request(self) -> Steps:
        """All that precedes the application."""
        return self._steps(self._policy.request_events, self._policy.http_request)

    def response(self, response: Response) -> Steps:
        """All that precedes the response's way to the client."""
        self.stream.response = response
        self.stream.variables.begin_response()
        self.changed.clear()
        return self._steps(self._policy.response_events, self._policy.http_response)

    def _steps(self, events: Sequence[str], rules: Sequence[Rule]) -> Steps:
        for event in events:
            self._note((yield self._context.event(event)))
        for rule in rules:
            if rule.when is not None and not rule.when.holds(self):
                continue
            match rule:
                case SendGroup():
                    self._note((yield self._context.send_group(rule.group)))
                case SetHeader():
                    self._set_header(rule)
                case SetVar():
                    self._set_var(rule)
                case Deny():
                    return self._denied(rule)
                case Redirect():
                    return self._redirected(rule)
                case Allow():
                    return None
        return None

    def _note(self, processing: Processing | None) -> None:
        if processing is not None and processing.status:
            self.failed = True

    def _set_header(self, rule: SetHeader) -> None:
        message = self.stream.response or self.stream.request
        assert message is not None
        value = None if rule.value is None else rule.value.render(self.stream)
        name = _alike(rule.name)
        headers = [h for h in message.headers if rule.beside or _alike(h[0]) != name]
        if value is not None:
            headers.append((rule.name, header_value(value)))
        message.headers = headers
        self.changed.add(rule.name.lower())

    def _set_var(self, rule: SetVar) -> None:
        value = rule.expression.evaluate(self.stream)
        if value is not None:
            self.stream.variables.set(rule.name, value)

    def _denied(self, rule: Deny) -> Reply:
        body = rule.body
        if not isinstance(body, bytes):
            escape = html.escape if "html" in rule.content_type else str
            body = (body.render(self.stream, escape) or "").encode("utf-8", "surrogateescape")
        headers = [("content-type", rule.content_type)]
        for name, text in rule.headers:
            value = text.render(self.stream)
            if value is not None:
                headers.append((name, header_value(value)))
        status = rule.status or (502 if self.stream.response else 403)
        return self._reply(status, headers, body)

    def _redirected(self, rule: Redirect) -> Reply:
        location = rule.location.render(self.stream) or ""
        return self._reply(rule.status, [("location", url(location)), _PLAIN], b"")

    def _reply(self, status: int, headers: HeaderFields, body: bytes) -> Reply:
        """Nobody else is to get it from a cache, unless the rule says so."""
        if not any(name.lower() == "cache-control" for name, _ in headers):
            headers.append(("cache-control", "no-cache"))
        headers.append(("content-length", str(len(body))))
        request = self.stream.request
        head = request is not None and request.method == "HEAD"
        return Reply(status, headers, b"" if head else body)


def _alike(name: str) -> str:
    """WSGI and CGI see no difference between ``x_user`` and ``x-user``; nor must rules."""
    return name.lower().replace("_", "-")


@functools.lru_cache(1024)
def address(host: str | None) -> IPAddress | None:
    """A host as servers name it, where it is an address."""
    try:
        return ip_address((host or "").partition("%")[0])
    except ValueError:
        return None


def new_unique_id() -> str:
    """For a request that came without one; a UUID would take five times as long."""
    return os.urandom(16).hex()


def http_version(version: str) -> str:
    """HAProxy's "2.0" for what ASGI calls "2"."""
    return version if "." in version else f"{version}.0"
