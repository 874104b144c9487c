"""The WSGI middleware under real servers: bodies, ways to respond, failures."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from scripted_agent import ScriptedAgent
from servers import (
    BODY,
    RESPONSE_BODY,
    Answer,
    Waf,
    ask,
    gunicorn_serving,
    waitress_serving,
    werkzeug_serving,
    wsgiref_serving,
)

from spop.engine import Engine
from spop.web import WSGIMiddleware, agent_failed, deny, send_group, set_header, var

LIMIT = 1000
SIZES = [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 5 << 20]
DENIES = deny(when=var("txn.waf.action") == "deny")

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]


def echo(environ: Environ, start_response: Any) -> Iterable[bytes]:
    length = environ.get("CONTENT_LENGTH")
    body = environ["wsgi.input"].read(int(length) if length else -1)
    start_response("200 OK", [("X-Length", str(len(body))), ("Content-Type", "text/plain")])
    return [body]


@pytest.fixture
def serve(make_engine: Callable[..., Any]) -> Iterator[Callable[..., int]]:
    """``serve(app, rules…, spoe={…})``: an application behind the middleware; its port."""
    with contextlib.ExitStack() as stack:

        def begin(
            app: App = echo,
            serving: Any = waitress_serving,
            spoe: dict[str, Any] | None = None,
            **settings: Any,
        ) -> int:
            engine = make_engine(Engine, **(spoe or {}))
            port: int = stack.enter_context(serving(WSGIMiddleware(app, engine, **settings)))
            return port

        yield begin


@pytest.mark.parametrize("serving", [waitress_serving, wsgiref_serving, werkzeug_serving])
def test_bodies_reach_the_application_whole(
    serve: Callable[..., int], waf: Waf, serving: Any
) -> None:
    port = serve(echo, serving, {"request": BODY}, max_body=LIMIT)
    for size in SIZES:
        body = bytes(n % 251 for n in range(size))
        assert ask(port, "POST", "/", body).body == body
        assert (waf.requests[-1]["body"], waf.requests[-1]["length"]) == (
            body[:LIMIT], min(size, LIMIT),
        )  # fmt: skip


def test_bodies_in_chunks_without_a_length(address: str, tmp_path: Any) -> None:
    """gunicorn passes them on as they come, waitress collects them first."""
    with gunicorn_serving(address, tmp_path) as port:
        for size in SIZES[1:]:
            body = bytes(n % 251 for n in range(size))
            parts = [body[n : n + 700] for n in range(0, min(size, 7000), 700)] + [body[7000:]]
            assert ask(port, "POST", "/", filter(None, parts)).body == body
        answer = ask(port, "POST", "/", [b"x" * 100, b"attack"])
        assert (answer.status, answer.body) == (403, b"")
        assert ask(port, "GET", "/a%2Fb").header("x-url") == "/a%2Fb"


@pytest.mark.parametrize("serving", [waitress_serving, werkzeug_serving])
def test_the_port_of_a_client_is_known(serve: Callable[..., int], serving: Any) -> None:
    port = serve(lazily, serving, http_response=[set_header("x-port", "%[src_port]")])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        own = connection.sock.getsockname()[1]
        assert connection.getresponse().getheader("x-port") == str(own)


READERS: dict[str, Callable[[Any], list[bytes]]] = {
    "read": lambda stream: [stream.read(), stream.read(), stream.read(5)],
    "read None": lambda stream: [stream.read(None)],
    "read sizes": lambda stream: [stream.read(size) for size in (0, 3, 7, 5, 1000, 1)],
    "readline": lambda stream: [stream.readline() for _ in range(6)],
    "readline sizes": lambda stream: [stream.readline(size) for size in (2, 9, 9, 0, 50, 50, 50)],
    "readlines": lambda stream: stream.readlines(),
    "readlines hint": lambda stream: [*stream.readlines(8), b"|", *stream.readlines()],
    "iteration": lambda stream: list(stream),
    "both": lambda stream: [next(iter(stream)), stream.read(9), stream.readline(), stream.read()],
}


@pytest.mark.parametrize("reader", READERS)
def test_all_ways_to_read_a_body(make_engine: Callable[..., Any], reader: str) -> None:
    """Whatever of it was read ahead."""
    body = b"one\ntwo two\n\nthree"
    engine = make_engine(Engine)
    read: list[bytes] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        read[:] = READERS[reader](environ["wsgi.input"])
        return echo(environ, start_response)

    def behind(environ: Environ, start_response: Any) -> Iterable[bytes]:
        limit = int(environ["PATH_INFO"].strip("/"))
        middleware = WSGIMiddleware(app, engine, wait_for_body=True, max_body=limit)
        return middleware(environ, start_response)

    with waitress_serving(behind) as port:
        for limit in (1, 3, 6, 12, 17, 18, 100):
            assert ask(port, "POST", f"/{limit}", body).status == 200
            assert read == READERS[reader](io.BytesIO(body))


def test_a_client_that_leaves_amid_its_body(make_engine: Callable[..., Any], waf: Waf) -> None:
    called = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        called.set()
        return echo(environ, start_response)

    middleware = WSGIMiddleware(app, make_engine(Engine, request=BODY))
    with (
        wsgiref_serving(middleware) as port,
        socket.create_connection(("127.0.0.1", port), 20) as sock,
    ):
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nattack")
        sock.shutdown(socket.SHUT_WR)
        assert b" 400 " in sock.recv(65536)
    assert not called.is_set()
    assert not waf.requests


def test_what_agents_see(serve: Callable[..., int], waf: Waf) -> None:
    port = serve(unique_id_header="X-Request-ID")
    ask(port, "POST", "/a%2Fb?x=%31&y", b"12", {"Content-Type": "text/x", "X-Mixed": "é"})
    seen = waf.requests[0]
    assert (seen["url"], seen["path"]) == ("/a%2Fb?x=%31&y", "/a%2Fb")
    assert (seen["method"], seen["version"], seen["tls"]) == ("POST", "1.1", False)
    assert (str(seen["src"]), seen["dst_port"]) == ("127.0.0.1", port)
    for line in ("content-type: text/x\r\n", "content-length: 2\r\n", "x-mixed: \udce9\r\n"):
        assert line in seen["headers"]
    assert waf.responses[0]["status"] == 200
    assert "X-Length: 2\r\n".lower() in waf.responses[0]["headers"]
    ask(port, headers={"x-request-id": "given"})
    assert waf.requests[1]["id"] == "given"


def test_a_request_and_its_response_have_one_unique_id(serve: Callable[..., int], waf: Waf) -> None:
    port = serve()
    ask(port)
    ask(port)
    ids = [message["id"] for message in waf.requests]
    assert ids == [message["id"] for message in waf.responses]
    assert len(set(ids)) == len(ids) == 2


def test_mounted_where_the_server_has_decoded_the_path(
    make_engine: Callable[..., Any], waf: Waf
) -> None:
    middleware = WSGIMiddleware(in_a_file, make_engine(Engine))

    def mounted(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix("/mount")
        environ["SCRIPT_NAME"] = "/mount"
        return middleware(environ, start_response)

    with wsgiref_serving(mounted) as port:
        ask(port, "GET", "/mount/%C3%A9%20?q=%20")
    assert waf.requests[0]["url"] == "/mount/%C3%A9%20?q=%20"


class Closing:
    """A body that says when it was closed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self.closed.set()


def lazily(environ: Environ, start_response: Any) -> Iterator[bytes]:
    yield b""
    start_response("200 OK", [("X-Lazy", "1"), ("Content-Type", "text/plain")])
    yield b"first "
    yield b"second"


def writing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", [("X-Lazy", "1"), ("Content-Type", "text/plain")])
    write(b"first ")
    return [b"second"]


def changing_its_mind(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("500 Oh", [("Content-Type", "text/plain")])
    try:
        raise ValueError
    except ValueError as error:
        info = (ValueError, error, None)
        start_response("200 OK", [("X-Lazy", "1"), ("Content-Type", "text/plain")], info)
    return [b"first ", b"second"]


def in_a_file(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("X-Lazy", "1"), ("Content-Type", "text/plain")])
    wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
    found: Iterable[bytes] = wrapper(io.BytesIO(b"first second"))
    return found


@pytest.mark.parametrize("serving", [waitress_serving, wsgiref_serving, werkzeug_serving])
@pytest.mark.parametrize("response", ["", RESPONSE_BODY])
@pytest.mark.parametrize("app", [lazily, writing, changing_its_mind, in_a_file])
def test_all_ways_to_respond(
    serve: Callable[..., int], waf: Waf, app: App, response: str, serving: Any
) -> None:
    checked = set_header("X-Checked", var("res.waf.checked"))
    port = serve(app, serving, {"response": response}, http_response=[checked])
    answer = ask(port)
    assert (answer.body, answer.header("x-lazy")) == (b"first second", "1")
    assert answer.header("x-checked") == "200"
    if response and app is not writing:
        assert waf.responses[0]["body"] == b"first second"


@pytest.mark.parametrize("app", [lazily, writing, changing_its_mind, in_a_file])
def test_all_ways_to_respond_are_denied(serve: Callable[..., int], app: App) -> None:
    port = serve(app, http_response=[deny(503, "no", when="{ status 200 }")])
    answer = ask(port)
    assert (answer.status, answer.body, answer.header("x-lazy")) == (503, b"no", None)


def test_bodies_of_responses(serve: Callable[..., int], waf: Waf) -> None:
    bodies: list[Closing] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        found = [b"a secret"] if environ["PATH_INFO"] == "/whole" else [b"a" * 600, b"b" * 600]
        bodies.append(Closing([*found, b"secret"]))
        return bodies[-1]

    port = serve(app, spoe={"response": RESPONSE_BODY}, http_response=[DENIES], max_body=LIMIT)
    assert ask(port, "GET", "/whole").status == 502
    assert ask(port, "GET", "/parts").body == b"a" * 600 + b"b" * 600 + b"secret"
    assert waf.responses[1]["body"] == b"a" * 600 + b"b" * 400
    assert all(body.closed.wait(20) for body in bodies)


def test_streams_flow(serve: Callable[..., int]) -> None:
    """The second chunk is made when the client has the first."""
    has_first = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        yield b"data: 1\n\n"
        assert has_first.wait(20)
        yield b"data: 2\n\n"

    port = serve(app, wsgiref_serving, {"response": RESPONSE_BODY})
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        while b"data: 1\n\n" not in received:
            received += sock.recv(65536)
        has_first.set()
        assert sock.makefile("rb").read() == b"data: 2\n\n"


@pytest.mark.filterwarnings("ignore::wsgiref.validate.WSGIWarning")
def test_both_sides_keep_to_the_specification(serve: Callable[..., int]) -> None:
    """`wsgiref.validate` between server and middleware, and between it and the application."""

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        assert environ["wsgi.input"].read(0) == b""
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    port = serve(
        validator(app),
        lambda middleware: wsgiref_serving(validator(middleware)),
        {"request": BODY, "response": RESPONSE_BODY},
        http_request=[DENIES, set_header("x-user", var("txn.waf.user"))],
        http_response=[set_header("x-user", var("txn.waf.user"))],
        max_body=LIMIT,
    )
    assert ask(port, "POST", "/", b"x" * 5000).body == b"x" * 5000
    assert ask(port, "POST", "/", b"attack").status == 403
    assert ask(port, "GET", "/").body == b""


def test_rules_read_the_request_as_it_came(serve: Callable[..., int]) -> None:
    """The application may change its environ."""

    def clears(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["HTTP_X_IS"] = "changed"
        return echo(environ, start_response)

    rules = [set_header("x-was", "%[req.hdr(x-is)]")]
    port = serve(clears, spoe={"events": False}, http_response=rules)
    assert dict(ask(port, headers={"x-is": "kept"}).headers)["X-Was"] == "kept"


def test_exceptions_are_the_servers(serve: Callable[..., int]) -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        raise ZeroDivisionError("of the application's own")

    def catching(middleware: App) -> App:
        def call(environ: Environ, start_response: Any) -> Iterable[bytes]:
            try:
                return middleware(environ, start_response)
            except ZeroDivisionError as error:
                raised.append(error)
                start_response("500 Oh", [("Content-Type", "text/plain")])
                return [b"caught"]

        return call

    port = serve(app, lambda middleware: waitress_serving(catching(middleware)))
    assert ask(port)[0::2] == (500, b"caught")
    assert str(raised[0]) == "of the application's own"


def test_the_result_of_an_application_that_fails_amid_it_is_closed(
    make_engine: Callable[..., Any],
) -> None:
    closed: list[bool] = []

    class Fails:
        def __iter__(self) -> Iterator[bytes]:
            raise ZeroDivisionError("before it has begun")

        def close(self) -> None:
            closed.append(True)

    middleware = WSGIMiddleware(lambda environ, start_response: Fails(), make_engine(Engine))
    environ: Environ = {}
    setup_testing_defaults(environ)
    with pytest.raises(ZeroDivisionError):
        middleware(environ, lambda *started: lambda data: None)
    assert closed == [True]


def test_groups_and_variables(serve: Callable[..., int], waf: Waf) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        found = environ["spop.variables"].get("txn.waf.score")
        environ["spop.variables"]["txn.waf.user"] = "told by the application"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(found).encode()]

    port = serve(
        app,
        spoe={"events": False, "request": BODY},
        http_request=[send_group("request"), deny(when=var("txn.waf.score") < 50), DENIES],
        http_response=[send_group("response")],
    )
    assert ask(port).body == b"80"
    assert ask(port, "POST", "/", b"attack").status == 403
    assert waf.responses[0]["user"] == "told by the application"


def test_an_agent_that_is_slow_and_then_gone(make_engine: Callable[..., Any]) -> None:
    with ScriptedAgent() as agent:
        agent.hold.set()
        engine = make_engine(Engine, to=agent.address, timeout="50ms")
        shown = set_header("x-error", var("txn.waf.error"))
        closed = deny(503, when=agent_failed & "{ path /closed }")
        middleware = WSGIMiddleware(echo, engine, http_request=[closed], http_response=[shown])
        with waitress_serving(middleware) as port:
            open_ = ask(port, "POST", "/", b"goes on")
            assert (open_.body, open_.header("x-error")) == (b"goes on", "1")
            assert ask(port, "POST", "/closed").status == 503
            agent.__exit__()
            assert ask(port, "POST", "/", b"goes on").body == b"goes on"
            assert ask(port, "POST", "/closed").status == 503


def test_two_hundred_at_once(serve: Callable[..., int], waf: Waf) -> None:
    port = serve(echo, spoe={"request": BODY}, http_request=[DENIES])

    def call(number: int) -> Answer:
        return ask(port, "POST", "/", (b"attack %d" if number % 3 else b"fine %d") % number)

    with ThreadPoolExecutor(50) as pool:
        for number, answer in enumerate(pool.map(call, range(200))):
            assert answer.status == (403 if number % 3 else 200)
            assert answer.body == (b"" if number % 3 else b"fine %d" % number)
    assert len(waf.requests) == 200
