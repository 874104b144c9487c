"""The WSGI middleware: makes a stream of WSGI's environ, and reads the body ahead."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any
from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

from spop.engine import Engine
from spop.engine.blocking import BlockingStream
from spop.engine.processing import Processing
from spop.engine.samples.types import raw, text
from spop.engine.stream import HeaderFields, IPAddress, Response, Tls
from spop.engine.variables import Variables
from spop.web.decision import INCOMPLETE_REQUEST, VARIABLES, Reply, decide
from spop.web.policy import MAX_BODY, Policy, Step
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

_NOT_HTTP = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

Write = Callable[[bytes], object]


class _Request(ReceivedRequest):
    """The request of an environ."""

    version: str = when_read(lambda self: http_version(_version(self.received)))
    headers: HeaderFields = when_read(lambda self: _headers(self.received))


class _Stream(ReceivedStream):
    """The stream of an environ."""

    destination: IPAddress | None = when_read(
        lambda self: address(self.received.get("SERVER_NAME"))
    )
    destination_port: int = when_read(lambda self: _port(self.received.get("SERVER_PORT")))
    tls: Tls | None = when_read(
        lambda self: Tls() if self.received.get("wsgi.url_scheme") == "https" else None
    )


class WSGIMiddleware:
    """Asks agents about the requests and responses of a WSGI application.

    Around each request the events of the engine are processed, in the thread that serves it. The
    application finds the variables in ``environ["spop.variables"]``.

    Args:
        engine: an engine for the process that serves the application.
        http_request, http_response, max_body, wait_for_body, wait_for_response_body,
            unique_id_header: as in `spop.web.ASGIMiddleware`.

    Raises:
        ValueError: a rule sends a group that the engine lacks, or `max_body` is less than 1.
    """

    def __init__(
        self,
        app: WSGIApplication,
        engine: Engine,
        *,
        http_request: Iterable[Rule] = (),
        http_response: Iterable[Rule] = (),
        max_body: int = MAX_BODY,
        wait_for_body: bool | None = None,
        wait_for_response_body: bool | None = None,
        unique_id_header: str | None = None,
    ) -> None:
        self.app = app
        self._engine = engine
        self._unique_id_key = _key(unique_id_header) if unique_id_header else ""
        self._policy = Policy(
            engine.config,
            http_request,
            http_response,
            max_body=max_body,
            wait_for_body=wait_for_body,
            wait_for_response_body=wait_for_response_body,
        )
        engine.let_set(self._policy.variables)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application."""
        policy = self._policy
        body = b""
        if policy.request_body:
            read = _read_ahead(environ, policy.request_body)
            if read is None:  # The client has disconnected. Agents don't see its request.
                return _start_reply(start_response, INCOMPLETE_REQUEST)
            body = read
        context, stream = self._begin(environ, body)
        reply = _decide(context, policy.request_steps)
        if reply is not None:
            return _start_reply(start_response, reply)
        environ[VARIABLES] = stream.variables
        _copy_changed_headers(stream, environ)
        if not policy.acts_on_response:
            return self.app(environ, start_response)
        responder = _Responder(context, stream, policy, start_response)
        return responder.respond(self.app(environ, responder.start_response))

    def _begin(self, environ: WSGIEnvironment, body: bytes) -> tuple[BlockingStream, _Stream]:
        key = self._unique_id_key
        unique_id = environ.get(key) if key else None
        if key and not unique_id:
            environ[key] = unique_id = new_unique_id()
        # The application may change its own.
        received = environ.copy() if self._policy.acts_on_response else environ
        request = _Request()
        request.received, request.method = received, environ["REQUEST_METHOD"]
        request.uri, request.body = _uri(environ), body
        stream = _Stream()
        stream.received, stream.request, stream.started = received, request, time.time()
        stream.source = address(environ.get("REMOTE_ADDR"))
        stream.source_port = _port(environ.get("REMOTE_PORT"))
        variables = environ.get(VARIABLES)  # Of an outer middleware.
        stream.variables = variables if type(variables) is Variables else Variables(variables)
        if unique_id:
            stream.unique_id = _text(unique_id)
        return self._engine.stream(stream), stream


class _Input:
    """The body of a request: the part that was read ahead, then the rest."""

    def __init__(self, head: bytes, rest: InputStream) -> None:
        self._head = BytesIO(head)
        self._rest = rest

    def read(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        head = self._head.read(size)
        if len(head) == size:
            return head
        return head + self._rest.read(size if size < 0 else size - len(head))

    def readline(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        head = self._head.readline(size)
        if len(head) == size or head.endswith(b"\n"):
            return head
        return head + self._rest.readline(size if size < 0 else size - len(head))

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        lines, size = [], 0
        for line in self:
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


class _Responder:
    """Holds a response back until agents have decided, at its first bytes or when enough came."""

    def __init__(
        self,
        context: BlockingStream,
        stream: _Stream,
        policy: Policy,
        start_response: StartResponse,
    ) -> None:
        self._context = context
        self._stream = stream
        self._steps = policy.response_steps
        self._wait = policy.response_body
        self._start_response = start_response
        self._started: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Write | None = None
        self._reply: Reply | None = None
        self._decided = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Write:
        """The `start_response` of the application."""
        if self._decided and self._reply is None:
            return self._start_response(status, headers, exc_info)
        self._started = status, headers
        return self._write_now

    def respond(self, result: Iterable[bytes]) -> Iterable[bytes]:
        """The body of the response, from the result of the application."""
        if self._decided:  # The application has called `write`.
            return result if self._reply is None else self._replaced(result)
        try:
            chunks, size, parts = iter(result), 0, []
            while self._started is None or size < self._body_wanted():
                chunk = next(chunks, None)
                if chunk is None:
                    break
                parts.append(chunk)
                size += len(chunk)
            self._decide(b"".join(parts))
        except BaseException:
            _close(result)
            raise
        if self._reply is not None:
            return self._replaced(result)
        # The result itself, where it is complete: a server may have a fast path for files and
        # lists.
        if not parts or isinstance(result, list | tuple):
            return result
        return _Body(itertools.chain(parts, chunks), result)

    def _body_wanted(self) -> int:
        assert self._started is not None
        return 0 if is_event_stream(self._started[1]) else self._wait

    def _decide(self, body: bytes) -> None:
        if self._started is None:
            raise AssertionError("start_response() was not called before the body began")
        stream = self._stream
        status, headers = self._started
        response = Response(
            int(status.partition(" ")[0]),
            stream.request.version,
            [(name, _text(value)) for name, value in headers],
            body[: self._body_wanted()],
        )
        stream.begin_response(response)
        self._reply = _decide(self._context, self._steps)
        self._decided = True
        if self._reply is not None:
            _start_reply(self._start_response, self._reply)
            return
        if stream.changed:
            headers = _native(response.headers)
        self._write = self._start_response(status, headers)

    def _replaced(self, result: Iterable[bytes]) -> Iterable[bytes]:
        _close(result)
        assert self._reply is not None
        return [self._reply.body]

    def _write_now(self, data: bytes) -> None:
        if not self._decided:
            self._decide(data)
        if self._write is not None:
            self._write(data)


class _Body:
    """Chunks of a body, and the result that is closed after them."""

    def __init__(self, chunks: Iterator[bytes], result: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._result = result

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        _close(self._result)


def _decide(context: BlockingStream, steps: Iterable[Step]) -> Reply | None:
    steps = iter(steps)
    while isinstance(decision := decide(context, steps), Processing):
        context.exchange(decision)
    return decision


def _start_reply(start_response: StartResponse, reply: Reply) -> Iterable[bytes]:
    start_response(f"{reply.status} {reply.phrase}", _native(reply.headers))
    return [reply.body]


def _read_ahead(environ: WSGIEnvironment, limit: int) -> bytes | None:
    """The body, up to a limit. The application can still read it. None if it is incomplete."""
    stream: InputStream = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    if length:
        known = int(length)
    elif environ.get("wsgi.input_terminated"):  # The stream has an end, as with chunks.
        known = None
    else:
        return b""
    wanted = limit if known is None else min(limit, known)
    head = _read(stream, wanted)
    if known is not None and len(head) < wanted:
        return None
    complete = len(head) < limit or len(head) == known
    environ["wsgi.input"] = BytesIO(head) if complete else _Input(head, stream)
    return head


def _read(stream: InputStream, size: int) -> bytes:
    """Bytes up to a size or the end. A stream may return fewer at a time."""
    parts = bytearray()
    while len(parts) < size and (data := stream.read(size - len(parts))):
        parts += data
    return bytes(parts)


def _copy_changed_headers(stream: _Stream, environ: WSGIEnvironment) -> None:
    """Copy the header fields that rules have changed. Several of a name are joined by commas."""
    for name in stream.changed:
        key = _key(name)
        values = [value for other, value in stream.request.headers if _key(other) == key]
        if values:
            environ[key] = ",".join(raw(value).decode("latin-1") for value in values)
        else:
            environ.pop(key, None)


def _key(name: str) -> str:
    """The key of a header in environ."""
    return _NOT_HTTP.get(name.lower()) or f"HTTP_{name.upper().replace('-', '_')}"


def _uri(environ: WSGIEnvironment) -> str:
    """The URI of the request line. If the server does not give it, it is made from the path."""
    known = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if known:
        return _text(known)
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    query = environ.get("QUERY_STRING")
    uri = quoted(path.encode("latin-1"))
    return f"{uri}?{_text(query)}" if query else uri


def _version(environ: WSGIEnvironment) -> str:
    protocol: str = environ.get("SERVER_PROTOCOL", "HTTP/1.1")
    return protocol.partition("/")[2]


def _headers(environ: WSGIEnvironment) -> HeaderFields:
    fields = [
        (key[5:].replace("_", "-").lower(), _text(value))
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    fields += [(name, _text(environ[key])) for name, key in _NOT_HTTP.items() if environ.get(key)]
    return fields


def _text(native: str) -> str:
    """A string for the engine, from one of WSGI, whose characters are bytes."""
    return native if native.isascii() else text(native.encode("latin-1"))


def _native(headers: HeaderFields) -> list[tuple[str, str]]:
    return [(name, raw(value).decode("latin-1")) for name, value in headers]


def _port(port: object) -> int:
    """A port, which the server of Werkzeug, and so `flask run`, gives as an integer."""
    text = str(port)
    return int(text) if text.isdecimal() else 0


def _close(result: Iterable[bytes]) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()
