"""One request and its response: the order of events, and what rules do.

`Transaction.request` and `Transaction.response` are coroutines, which give the reply that replaces
the application's, or None. All that they wait for is the engine's stream. With one that blocks they
end at their first step.
"""

from __future__ import annotations

import functools
import html
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from spop.engine.filter import Processing
from spop.engine.stream import (
    NOT_INDEXED,
    HeaderFields,
    IPAddress,
    Request,
    Response,
    Stream,
    Tls,
)
from spop.engine.variables import Session, Variables
from spop.values import DecodedValue
from spop.web.header_lists import fields_of, names_of
from spop.web.policy import Policy
from spop.web.rules import (
    AddHeaders,
    Allow,
    DelHeaders,
    Deny,
    Redirect,
    Rule,
    SendGroup,
    SetHeader,
    SetVar,
)
from spop.web.texts import header_value, url

VARIABLES = "spop.variables"
"""The key of the variables in the application's scope or environ."""

_PLAIN = "content-type", "text/plain; charset=utf-8"
"""WSGI wants a content type, even without a body."""


class Reply(NamedTuple):
    """A response in place of the application's."""

    status: int
    headers: HeaderFields
    body: bytes

    @property
    def phrase(self) -> str:
        """The reason phrase of the status, for HTTP/1."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "Unknown"


Decision = Coroutine[Any, Any, Reply | None]

INCOMPLETE_REQUEST = Reply(400, [_PLAIN, ("content-length", "0")], b"")
"""The reply to a client that did not send the body that it announced."""


class ReceivedRequest(Request):
    """A request whose header fields are made when something reads them, as few messages do.

    Args:
        source: what the server gave.
        read: gives the header fields of `source`, in a list of its own.
    """

    __slots__ = ("_fields", "_read", "_source")

    def __init__(
        self,
        method: str,
        uri: str,
        version: str,
        source: Any,
        read: Callable[[Any], HeaderFields],
        body: bytes = b"",
    ) -> None:
        self.method: str = method
        self.uri: str = uri
        self.version: str = version
        self.body: bytes = body
        self._source, self._read = source, read
        self._fields: HeaderFields | None = None
        self._indexed = NOT_INDEXED

    @property
    def headers(self) -> HeaderFields:
        if self._fields is None:
            self._fields = self._read(self._source)
        return self._fields

    @headers.setter
    def headers(self, fields: HeaderFields) -> None:
        self._fields = fields


class ReceivedStream(Stream):
    """A stream that knows no proxies. Without a unique-id it makes one when something reads it."""

    __slots__ = ("_unique_id",)

    def __init__(
        self,
        source: IPAddress | None,
        source_port: int,
        destination: IPAddress | None,
        destination_port: int,
        request: Request,
        tls: Tls | None,
        variables: Mapping[str, DecodedValue] | None,
        unique_id: str | None,
    ) -> None:
        self.source: IPAddress | None = source
        self.source_port: int = source_port
        self.destination: IPAddress | None = destination
        self.destination_port: int = destination_port
        self.frontend: str | None = None
        self.backend: str | None = None
        self.request: Request | None = request
        self.response: Response | None = None
        self.tls: Tls | None = tls
        self.variables: Variables = (
            variables if type(variables) is Variables else Variables(variables)
        )
        self.started: float = time.time()
        self.session: Session | None = None
        self._unique_id = unique_id

    @property
    def unique_id(self) -> str:
        if self._unique_id is None:
            self._unique_id = new_unique_id()
        return self._unique_id

    @unique_id.setter
    def unique_id(self, unique_id: str | None) -> None:
        self._unique_id = unique_id


class Context(Protocol):
    """The engine's stream, whose events are awaited. `AsyncStream` is one."""

    def event(self, event: str, /) -> Awaitable[Processing | None]: ...

    def send_group(self, name: str, /) -> Awaitable[Processing | None]: ...


class Transaction:
    """A request, its response, and the engine's stream for both.

    Attributes:
        stream: the data of the request and response.
        failed: an exchange with an agent has failed.
        changed: the names, in lower case, of header fields that rules have changed since the last
            `request` or `response` began.
    """

    __slots__ = ("_context", "_policy", "changed", "failed", "stream")

    def __init__(self, policy: Policy, stream: Stream, context: Context) -> None:
        self._policy = policy
        self._context = context
        self.stream: Stream = stream
        self.failed: bool = False
        self.changed: frozenset[str] = frozenset()

    def request(self) -> Decision:
        """Decide before the application is called."""
        return self._decide(self._policy.request_events, self._policy.http_request)

    def response(self, response: Response) -> Decision:
        """Decide before the response is sent to the client."""
        self.stream.response = response
        self.stream.variables.begin_response()
        self.changed = frozenset()
        return self._decide(self._policy.response_events, self._policy.http_response)

    async def _decide(self, events: Sequence[str], rules: Sequence[Rule]) -> Reply | None:
        for event in events:
            self._note(await self._context.event(event))
        for rule in rules:
            if rule.when is not None and not rule.when.holds(self):
                continue
            match rule:
                case SendGroup():
                    self._note(await self._context.send_group(rule.group))
                case SetHeader():
                    self._set_header(rule)
                case AddHeaders():
                    self._add_headers(rule)
                case DelHeaders():
                    for name in names_of(rule.names.evaluate(self.stream)):
                        self._change_header(name, None)
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
        value = None if rule.value is None else rule.value.render(self.stream)
        if value is not None:
            value = header_value(value)
        self._change_header(rule.name, value, beside=rule.beside)

    def _add_headers(self, rule: AddHeaders) -> None:
        for name, value in fields_of(rule.fields.evaluate(self.stream)):
            self._change_header(name, value, beside=not rule.replaces)

    def _change_header(self, name: str, value: str | None, *, beside: bool = False) -> None:
        """Replace the fields of a name, or add one (`beside`). Without a value, remove them."""
        message = self.stream.response or self.stream.request
        assert message is not None
        headers = message.headers.copy() if beside else _without(message.headers, name)
        if value is not None:
            headers.append((name, value))
        message.headers = headers
        self.changed |= {name.lower()}

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
        # A cache must not give the reply to another client, unless the rule says so.
        if not any(name.lower() == "cache-control" for name, _ in headers):
            headers.append(("cache-control", "no-cache"))
        headers.append(("content-length", str(len(body))))
        request = self.stream.request
        head = request is not None and request.method == "HEAD"
        return Reply(status, headers, b"" if head else body)


def _without(headers: HeaderFields, name: str) -> HeaderFields:
    """The header fields of other names. The name is a token."""
    # Few fields have a name of the same length, and the others need no folding: 0.5 µs in place
    # of 0.9 for seven.
    folded, length = _folded(name), len(name)
    return [h for h in headers if len(h[0]) != length or _folded(h[0]) != folded]


def _folded(name: str) -> str:
    """The name of a header field, for comparisons.

    WSGI and CGI can't tell ``x_user`` from ``x-user``. So a rule for one replaces both: otherwise a
    client could send a field that an application takes for the rule's.
    """
    return name.lower().replace("_", "-")


@functools.lru_cache(1024)  # Clients send several requests: 0.2 µs in place of 3 to 6.
def address(host: str | None) -> IPAddress | None:
    """The address that a server gives as a host; None if it is no address."""
    try:
        return ip_address((host or "").partition("%")[0])
    except ValueError:
        return None


_random = random.Random()
if hasattr(os, "register_at_fork"):  # The children of a server must not make the same ids.
    os.register_at_fork(after_in_child=_random.seed)


def new_unique_id() -> str:
    """A unique-id for a request without one."""
    return f"{_random.getrandbits(128):032x}"


def http_version(version: str) -> str:
    """The version in HAProxy's spelling: "2.0" for ASGI's "2"."""
    return version if "." in version else f"{version}.0"


def quoted(path: str | bytes) -> str:
    """A path that the server has decoded, percent-encoded again."""
    return quote(path, safe="/!$&'()*+,:;=@~")


def is_event_stream(headers: HeaderFields) -> bool:
    """Whether a response is a stream of server-sent events, which may never end."""
    return any(n.lower() == "content-type" and "text/event-stream" in v for n, v in headers)
