"""A small HTTP server for the pages of operators: GET and HEAD, on one thread.

It holds up whatever connects to it: each request has a limit of time and size, and the connections
have a limit in number, beyond which the one that has waited longest is closed.
"""

from __future__ import annotations

import asyncio
import email.parser
import logging
import socket
from collections.abc import Awaitable, Callable
from email.message import Message
from http import HTTPStatus
from typing import NamedTuple

from spop.logs import fields

logger: logging.Logger = logging.getLogger("spop.server")

REQUEST_TIMEOUT = 10.0
"""Seconds for a request to come, to be answered and for the answer to be read."""
MAX_CONNECTIONS = 200
MAX_LINE = 8192
MAX_LINES = 100

_Bad = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)


class Request(NamedTuple):
    """A request without its body. `host` is None if it has none."""

    path: str
    host: str | None
    accept: str


class Answer(NamedTuple):
    """An answer. `type` is its Content-Type."""

    status: HTTPStatus
    body: str
    type: str = "text/plain; charset=utf-8"


Respond = Callable[[Request], Awaitable[Answer]]


async def serve(listener: socket.socket, respond: Respond, headers: dict[str, str]) -> None:
    """Serve until cancelled.

    Args:
        listener: it is closed in the end.
        headers: of each answer.
    """
    asyncio.get_running_loop().set_exception_handler(_log)
    connections = _Connections(respond, headers)
    server = await asyncio.start_server(connections.converse, sock=listener, limit=MAX_LINE)
    try:
        await server.serve_forever()
    finally:
        connections.abort()


def _log(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    message, error = context["message"], context.get("exception")
    logger.warning("admin: %s: %s", message, error, extra=fields("admin error", error=error))


class _Connections:
    def __init__(self, respond: Respond, headers: dict[str, str]) -> None:
        self._respond = respond
        self._headers = {**headers, "Cache-Control": "no-store"}
        self._open: dict[asyncio.StreamWriter, None] = {}
        """Ordered by the time of the last answer."""

    def abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).transport.abort()
        writer.transport.set_write_buffer_limits(0)  # `drain` then waits for all of an answer.
        goes_on = True
        try:
            while goes_on:
                self._open.pop(writer, None)
                self._open[writer] = None
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    goes_on = await self._exchange(reader, writer)
        except (TimeoutError, OSError) as error:
            logger.debug("admin: %r", error, extra=fields("admin error", error=repr(error)))
        finally:
            self._open.pop(writer, None)
            writer.transport.abort() if goes_on else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request. Returns whether a further one may come."""
        try:
            first = (await reader.readline()).decode("latin-1")
            if not first:
                return False
            header = await _header(reader)
            method, path, version = first.split()
            request = _request(path, header)
        except _Bad:
            bad = Answer(HTTPStatus.BAD_REQUEST, "this is no HTTP request\n")
            return await self._send(writer, bad, "close", body=True)
        answer = Answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD are allowed\n")
        if method in ("GET", "HEAD"):
            answer = await self._respond(request)
        has_body = "content-length" in header or "transfer-encoding" in header
        ends = version != "HTTP/1.1" or has_body or "close" in header.get("connection", "").lower()
        connection = "close" if ends else "keep-alive"
        return await self._send(writer, answer, connection, body=method != "HEAD")

    async def _send(
        self, writer: asyncio.StreamWriter, answer: Answer, connection: str, *, body: bool
    ) -> bool:
        data = answer.body.encode()
        headers = {
            **self._headers,
            "Content-Type": answer.type,
            "Content-Length": str(len(data)),
            "Connection": connection,
        }
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        lines = [f"HTTP/1.1 {answer.status} {answer.status.phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (data if body else b""))
        await writer.drain()
        return connection == "keep-alive"


async def _header(reader: asyncio.StreamReader) -> Message:
    lines = []
    while (line := await reader.readline()).strip():
        lines.append(line)
        if len(lines) > MAX_LINES:
            raise ValueError("too many header fields")
    return email.parser.Parser().parsestr(b"".join(lines).decode("latin-1"), headersonly=True)


def _request(path: str, header: Message) -> Request:
    """Raises ValueError: there are several hosts."""
    hosts = header.get_all("host", [])
    if len(hosts) > 1:
        raise ValueError("several hosts")
    return Request(path.partition("?")[0], hosts[0] if hosts else None, header.get("accept", ""))
