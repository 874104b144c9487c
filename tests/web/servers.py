"""Real web servers in threads, and an agent that remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn
import waitress.server
import werkzeug.serving
from hypercorn.asyncio import serve
from hypercorn.config import Config
from waitress.channel import HTTPChannel

from spop import Agent, Message

HEAD = """
[waf]
spoe-agent waf
    {names}
    option var-prefix waf
    option set-on-error error
    timeout hello 20s
    timeout idle 1m
    timeout processing {timeout}
    use-backend agents

spoe-message check-request
    args id=unique-id src=src dst_port=dst_port tls=ssl_fc method=method url=url path=path
    args query=query version=req.ver headers=req.hdrs {request}
    {request_event}

spoe-message check-response
    args id=unique-id status=status headers=res.hdrs user=var(txn.waf.user) {response}
    {response_event}
"""
BODY = "body=req.body length=req.body_len"
RESPONSE_BODY = "body=res.body"
GROUPS = """
spoe-group request
    messages check-request

spoe-group response
    messages check-response
"""


def spoe(
    folder: Path,
    *,
    request: str = "",
    response: str = "",
    events: bool = True,
    timeout: str = "20s",
) -> Path:
    """An SPOE file: of events, or of groups."""
    text = HEAD.format(
        names="messages check-request check-response" if events else "groups request response",
        request=request,
        response=response,
        request_event="event on-frontend-http-request" if events else "",
        response_event="event on-http-response" if events else "",
        timeout=timeout,
    )
    path = folder / "spoe.cfg"
    path.write_text(text if events else text + GROUPS)
    return path


class Waf:
    """An agent that denies what has "attack" in it, and what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.responses: list[dict[str, Any]] = []
        self.agent = Agent(name="waf")
        self.agent.message("check-request")(self.check_request)
        self.agent.message("check-response")(self.check_response)

    def check_request(self, message: Message) -> dict[str, Any]:
        found = dict(zip(message.names, message.values, strict=True))
        self.requests.append(found)
        answer = {"txn.score": 80, "txn.user": "zoë", "req.once": "yes"}
        if "attack" in found["url"] or b"attack" in (found.get("body") or b""):
            answer["txn.action"] = "deny"
        if found["path"] == "/moved":
            answer |= {"txn.action": "redirect", "txn.to": "https://example.com/é?q=1%20\r\nx: y"}
        if found["path"] == "/lines":
            answer["txn.user"] = "a\r\nx-evil: 1"
        if found["path"] == "/nobody":
            del answer["txn.user"]
        return answer

    def check_response(self, message: Message) -> dict[str, Any]:
        found = dict(zip(message.names, message.values, strict=True))
        self.responses.append(found)
        secret = "x-secret:" in found["headers"] or b"secret" in (found.get("body") or b"")
        return {"txn.action": "deny" if secret else "allow", "res.checked": found["status"]}


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """All values of a header, as latin-1."""
        return ",".join(v for n, v in self.headers if n.lower() == name) or None


def ask(
    port: int,
    method: str = "GET",
    target: str = "/",
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request over a connection of its own; a body of several chunks is sent as such."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())


@contextlib.contextmanager
def listening(path: Path | None = None) -> Iterator[socket.socket]:
    """A socket of this machine's, or the unix socket of a path."""
    if path is None:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
            yield sock
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            yield sock


@contextlib.contextmanager
def uvicorn_serving(app: Any, **options: Any) -> Iterator[int]:
    """An ASGI application under uvicorn; its port. With `path`, on a unix socket."""
    settings = {
        "log_level": "critical", "loop": "asyncio", "http": "h11", "ws": "wsproto", **options,
    }  # fmt: skip
    path = settings.pop("path", None)
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    with listening(path) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield sock.getsockname()[1] if path is None else 0
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


uvloop_serving = functools.partial(
    uvicorn_serving, loop="uvloop", http="httptools", ws="websockets-sansio"
)
"""As `uvicorn` is when its extras are installed."""


@contextlib.contextmanager
def hypercorn_serving(app: Any) -> Iterator[int]:
    """An ASGI application under hypercorn, which speaks HTTP/2 as well; its port."""
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    with listening() as sock:
        config = Config()
        config.bind = [f"fd://{sock.fileno()}"]
        config.errorlog = None
        thread = threading.Thread(
            target=loop.run_until_complete,
            args=(serve(app, config, shutdown_trigger=ended.wait),),  # type: ignore[arg-type]
        )
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(20)
            loop.close()
            sock.detach()


@contextlib.contextmanager
def waitress_serving(app: Any, threads: int = 8) -> Iterator[int]:
    """A WSGI application under waitress; its port."""
    sockets: dict[int, Any] = {}
    with listening() as sock:
        server = waitress.server.create_server(
            app, map=sockets, sockets=[sock], threads=threads, clear_untrusted_proxy_headers=True
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            server.trigger.pull_trigger(functools.partial(_leave, sockets))
            thread.join(20)
            server.task_dispatcher.shutdown()
            server.close()  # With its trigger, which must outlive the pull above.


def _leave(dispatchers: dict[int, Any]) -> None:
    """Ends waitress' loop, in its own thread: it goes on as long as it has a socket."""
    for channel in [d for d in dispatchers.values() if isinstance(d, HTTPChannel)]:
        channel.handle_close()  # With its buffers, which may be files.
    dispatchers.clear()


class _Threads(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def _in_thread(server: HTTPServer) -> Iterator[int]:
    """A server in a thread of its own; its port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


@contextlib.contextmanager
def wsgiref_serving(app: Any) -> Iterator[int]:
    """A WSGI application under the standard library's server; its port."""
    with _in_thread(make_server("127.0.0.1", 0, app, _Threads, _Quiet)) as port:
        yield port


class _QuietWerkzeug(werkzeug.serving.WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def werkzeug_serving(app: Any) -> Iterator[int]:
    """A WSGI application under the server that ``flask run`` starts; its port."""
    server = werkzeug.serving.make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=_QuietWerkzeug
    )
    with _in_thread(server) as port:
        yield port


GUNICORN_APP = """
from spop.engine import Engine
from spop.web import WSGIMiddleware, deny, set_header, var

def echo(environ, start_response):
    start_response("200 OK", [("X-Url", environ["RAW_URI"])])
    return [environ["wsgi.input"].read()]

engine = Engine.from_file({spoe!r}, backends={{"agents": {address!r}}})
app = WSGIMiddleware(
    echo, engine, http_request=[deny(when=var("txn.waf.action") == "deny")], max_body=1000
)
"""


@contextlib.contextmanager
def gunicorn_serving(address: str, folder: Path) -> Iterator[int]:
    """An echo behind the middleware under gunicorn, which asks the agent; its port."""
    spoe_path = str(spoe(folder, request=BODY))
    (folder / "echo.py").write_text(GUNICORN_APP.format(spoe=spoe_path, address=address))
    with listening() as sock:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--threads", "4", "--chdir", str(folder),
             "--bind", f"fd://{sock.fileno()}", "--log-level", "critical", "echo:app"],
            pass_fds=[sock.fileno()],
        )  # fmt: skip
        try:
            yield sock.getsockname()[1]
        finally:
            process.terminate()
            process.wait(20)
