"""The ASGI middleware: makes a stream of ASGI's scope and messages."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from spop.engine import AsyncEngine
from spop.engine.asynchronous import AsyncStream
from spop.engine.processing import Processing
from spop.engine.samples.types import raw, text
from spop.engine.stream import HeaderFields, IPAddress, Response, Tls
from spop.engine.variables import Variables
from spop.web.decision import VARIABLES, Reply, decide
from spop.web.policy import MAX_BODY, Policy
from spop.web.received import (
    ReceivedRequest,
    ReceivedStream,
    address,
    http_version,
    is_event_stream,
    new_unique_id,
    quoted,
    when_read,
)
from spop.web.rules import Rule

ASGIScope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

_SECURE = ("https", "wss")
_TLS_VERSIONS = {0x301: "TLSv1", 0x302: "TLSv1.1", 0x303: "TLSv1.2", 0x304: "TLSv1.3"}


class _Request(ReceivedRequest):
    """The request of a scope."""

    version: str = when_read(lambda self: http_version(self.received.get("http_version", "1.1")))
    headers: HeaderFields = when_read(lambda self: _headers(self.received["headers"]))


class _Stream(ReceivedStream):
    """The stream of a scope."""

    destination: IPAddress | None = when_read(lambda self: address(_server(self.received)[0]))
    destination_port: int = when_read(lambda self: _server(self.received)[1] or 0)
    tls: Tls | None = when_read(lambda self: _tls(self.received))


class ASGIMiddleware:
    """Asks agents about the requests and responses of an ASGI application.

    Around each HTTP request the events of the engine are processed, then the rules. The application
    finds the variables in ``scope["spop.variables"]``. Lifespan messages go to the application.

    Args:
        engine: an engine for the event loop that serves the application, or a function that makes
            one. The function is called at once, and for each further event loop, as in tests. An
            engine that it made is closed when the application has shut down.
        http_request: rules after the events of the request; see `spop.web.rules`.
        http_response: rules after the events of the response, before it starts.
        max_body: bytes of a body to wait for. Agents never see more of it.
        wait_for_body: wait for the request's body before its events. None: if a message of an
            event, or a rule, reads ``req.body`` or a fetch like it.
        wait_for_response_body: the same for the response and ``res.body``. Server-sent events are
            not waited for.
        websockets: treat handshakes of WebSockets as requests. Otherwise agents don't see them.
        unique_id_header: the header of the request with ``unique-id``. It is added if it is
            missing.

    Raises:
        ValueError: a rule sends a group that the engine lacks, or `max_body` is less than 1.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: AsyncEngine | Callable[[], AsyncEngine],
        *,
        http_request: Iterable[Rule] = (),
        http_response: Iterable[Rule] = (),
        max_body: int = MAX_BODY,
        wait_for_body: bool | None = None,
        wait_for_response_body: bool | None = None,
        websockets: bool = False,
        unique_id_header: str | None = None,
    ) -> None:
        self.app = app
        self._only = engine if isinstance(engine, AsyncEngine) else None
        self._make = None if isinstance(engine, AsyncEngine) else engine
        self._first: AsyncEngine | None = engine() if callable(engine) else engine
        self._engines: dict[asyncio.AbstractEventLoop, AsyncEngine] = {}
        self._websockets = websockets
        self._unique_id_header = (unique_id_header or "").lower().encode()
        self._policy = Policy(
            self._first.config,
            http_request,
            http_response,
            max_body=max_body,
            wait_for_body=wait_for_body,
            wait_for_response_body=wait_for_response_body,
        )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        policy = self._policy
        context, stream = self._begin(scope)
        if policy.request_body:
            received = _Received(receive)
            body = await received.body(policy.request_body)
            if body is None:  # The client has disconnected. Agents don't see its request.
                return
            stream.request.body = body
            receive = received
        steps = iter(policy.request_steps)
        while isinstance(decision := decide(context, steps), Processing):
            try:  # As `exchange`, whose coroutine would take as long as all of `decide`.
                await context.send(decision)
            except BaseException as error:
                context.give_up(decision, error)
            else:
                context.end(decision)
        if decision is not None:
            await _send_reply(send, decision)
            return
        if not policy.acts_on_response:
            await self.app(self._scope(stream), receive, send)
            return
        responder = _Responder(context, stream, policy, send)
        try:
            await self.app(self._scope(stream), receive, responder)
        except Exception:
            if not responder.refused:
                raise
        else:
            await responder.finish()

    async def _other(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._websockets:
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan" and self._make is not None:
            await self.app(scope, receive, self._closing(send))
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        context, stream = self._begin(scope)
        received = _Received(receive)
        if not await received.connect():
            return
        steps = iter(self._policy.request_steps)
        while isinstance(decision := decide(context, steps), Processing):
            await context.exchange(decision)
        if decision is None:
            await self.app(self._scope(stream), received, send)
        elif "websocket.http.response" in (scope.get("extensions") or ()):
            await _send_reply(send, decision, "websocket.http.response")
        else:
            await send({"type": "websocket.close"})

    def _engine(self) -> AsyncEngine:
        """The engine of the running event loop.

        Raises:
            RuntimeError: there is only one engine, and it belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        engine = self._engines.get(loop)
        if engine is None:
            if self._first is not None:
                engine, self._first = self._first, self._only
            else:
                assert self._make is not None
                engine = self._make()
            try:
                engine.bind()
            except RuntimeError as error:
                raise RuntimeError(
                    f"{error}: give the middleware a function that makes engines"
                ) from None
            engine.let_set(self._policy.variables)
            self._engines[loop] = engine
        return engine

    def _closing(self, send: Send) -> Send:
        """A `send` that closes the engine when the application has shut down."""

        async def send_and_close(message: ASGIMessage) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                engine = self._engine()
                del self._engines[asyncio.get_running_loop()]
                await engine.close()
            await send(message)

        return send_and_close

    def _begin(self, scope: ASGIScope) -> tuple[AsyncStream, _Stream]:
        """The stream of a request, as the engine sees it, and its data."""
        unique_id = None
        if self._unique_id_header:
            headers = list(scope["headers"])
            unique_id = self._unique_id(headers)
            scope = {**scope, "headers": headers}
        source, source_port = scope.get("client") or (None, 0)
        request = _Request()
        request.received, request.method = scope, scope.get("method", "GET")
        request.uri = _uri(scope)
        stream = _Stream()
        stream.received, stream.request, stream.started = scope, request, time.time()
        stream.source, stream.source_port = address(source), source_port or 0
        variables = scope.get(VARIABLES)  # Of an outer middleware.
        stream.variables = variables if type(variables) is Variables else Variables(variables)
        if unique_id is not None:
            stream.unique_id = unique_id
        engine = self._engines.get(asyncio.get_running_loop()) or self._engine()
        return engine.begin(stream), stream

    def _scope(self, stream: _Stream) -> ASGIScope:
        """The scope for the application: a copy with the variables, and header fields of rules."""
        scope = {**stream.received}
        scope[VARIABLES] = stream.variables
        if stream.changed:
            scope["headers"] = _raw_headers(stream.request.headers)
        elif self._policy.acts_on_response:  # Rules read the request as it came.
            scope["headers"] = list(scope["headers"])
        return scope

    def _unique_id(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The unique-id of these header fields. It is added to them if it is missing."""
        wanted = self._unique_id_header
        unique_id = next((text(value) for name, value in headers if name == wanted), None)
        if unique_id is None:
            unique_id = new_unique_id()
            headers.append((wanted, unique_id.encode()))
        return unique_id


class _Received:
    """A `receive` for the application that repeats what the middleware has received."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[ASGIMessage] = deque()

    async def body(self, limit: int) -> bytes | None:
        """The body, up to a limit; None if the client disconnects before its end."""
        body = bytearray()
        while len(body) < limit:
            message = await self._next()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body[:limit])

    async def connect(self) -> bool:
        """Whether the client opens a WebSocket."""
        return bool((await self._next())["type"] == "websocket.connect")

    async def _next(self) -> ASGIMessage:
        message = await self._receive()
        self._messages.append(message)
        return message

    async def __call__(self) -> ASGIMessage:
        return self._messages.popleft() if self._messages else await self._receive()


class _Responder:
    """A `send` for the application that holds the response back until agents have decided.

    Attributes:
        refused: the response was replaced while the application had more to send. It was told that
            the client has disconnected.
    """

    def __init__(self, context: AsyncStream, stream: _Stream, policy: Policy, send: Send) -> None:
        self._context = context
        self._stream = stream
        self._steps = iter(policy.response_steps)
        self._wait = policy.response_body
        self._send = send
        self._held: list[ASGIMessage] = []
        self._body = bytearray()
        self._response = Response()
        self._decided = self._replaced = self.refused = False
        self._lock = asyncio.Lock()

    async def __call__(self, message: ASGIMessage) -> None:
        if not self._decided:
            async with self._lock:  # Some applications send from several tasks.
                if not self._decided:
                    await self._hold(message)
                    return
        if not self._replaced:
            await self._send(message)
        elif message.get("more_body", False):
            self.refused = True
            raise OSError("the response was denied")

    async def finish(self) -> None:
        """Decide, if the application returns before its response is complete."""
        if self._held and not self._decided:
            await self._decide()

    async def _hold(self, message: ASGIMessage) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            self._begin(message)
        elif not self._held:  # Early hints and the like.
            await self._send(message)
            return
        self._held.append(message)
        if kind == "http.response.body":
            self._body += message.get("body", b"")
        if len(self._body) >= self._wait or not self._awaits_more(message):
            await self._decide()

    def _begin(self, message: ASGIMessage) -> None:
        headers = _headers(message["headers"])
        version = self._stream.request.version
        self._response = Response(message["status"], version, headers)
        if is_event_stream(headers):
            self._wait = 0

    @staticmethod
    def _awaits_more(message: ASGIMessage) -> bool:
        if message["type"] == "http.response.body":
            return bool(message.get("more_body", False))
        # Any other message may be a file, whose bytes the middleware can't see.
        return bool(message["type"] == "http.response.start")

    async def _decide(self) -> None:
        stream = self._stream
        self._response.body = bytes(self._body[: self._wait])
        stream.begin_response(self._response)
        while isinstance(decision := decide(self._context, self._steps), Processing):
            await self._context.exchange(decision)
        self._decided = True
        held, self._held, self._body = self._held, [], bytearray()
        if decision is not None:
            self._replaced = True
            await _send_reply(self._send, decision)
            return
        if stream.changed:
            held[0] = {**held[0], "headers": _raw_headers(self._response.headers)}
        for message in held:
            await self._send(message)


async def _send_reply(send: Send, reply: Reply, kind: str = "http.response") -> None:
    headers = _raw_headers(reply.headers)
    await send({"type": f"{kind}.start", "status": reply.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": reply.body})


def _uri(scope: ASGIScope) -> str:
    """The URI of the request line. Without ``raw_path``, it is made from the decoded path."""
    uri: bytes = scope.get("raw_path") or quoted(scope["path"]).encode()
    if query := scope.get("query_string"):
        uri += b"?" + query
    return uri.decode("utf-8", "surrogateescape")


def _headers(headers: list[tuple[bytes, bytes]]) -> HeaderFields:
    try:  # Almost always it is UTF-8, which is decoded a third faster like this.
        return [(name.decode(), value.decode()) for name, value in headers]
    except UnicodeDecodeError:
        return [(text(name), text(value)) for name, value in headers]


def _raw_headers(headers: HeaderFields) -> list[tuple[bytes, bytes]]:
    try:  # As in `_headers`.
        return [(name.lower().encode(), value.encode()) for name, value in headers]
    except UnicodeEncodeError:
        return [(raw(name.lower()), raw(value)) for name, value in headers]


def _server(scope: ASGIScope) -> tuple[str | None, int | None]:
    return scope.get("server") or (None, None)


def _tls(scope: ASGIScope) -> Tls | None:
    """The TLS session, with details if the server has ASGI's TLS extension."""
    if scope.get("scheme") not in _SECURE:
        return None
    known = (scope.get("extensions") or {}).get("tls") or {}
    return Tls(
        protocol=_TLS_VERSIONS.get(known.get("tls_version", 0)),
        client_certificate=bool(known.get("client_cert_chain")),
    )
