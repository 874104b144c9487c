"""The ASGI middleware under real servers: events, bodies, streams, failures."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
import trustme
from scripted_agent import ScriptedAgent
from servers import (
    BODY,
    RESPONSE_BODY,
    Waf,
    ask,
    hypercorn_serving,
    uvicorn_serving,
    uvloop_serving,
)

from spop.engine import AsyncEngine
from spop.engine.stream import HeaderFields, header_fields
from spop.web import ASGIMiddleware, agent_failed, deny, send_group, set_header, set_var, var
from spop.web.asgi import ASGIScope, Receive, Send
from spop.web.received import ReceivedRequest, when_read

LIMIT = 1000
DENIES = deny(when=var("txn.waf.action") == "deny")


class App:
    """An application that remembers all scopes and messages it got."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.scopes: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.ended = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
            return
        self.scopes.append(scope)
        try:
            await getattr(self, scope["path"].strip("/").partition("/")[0] or "echo", self.echo)(
                scope, receive, send
            )
        finally:
            self.ended.set()

    async def lifespan(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await self.engine.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            self.received.append(message)
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await send(start((b"X-Length", str(len(body)).encode())))
        await send({"type": "http.response.body", "body": body})

    async def deaf(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send({"type": "http.response.body", "body": b"never read it"})

    async def clears(self, scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].clear()
        await self.whole(scope, receive, send)

    async def late(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send({"type": "http.response.body", "body": b"first,", "more_body": True})
        await self.echo(scope, receive, lambda m: send(m) if "body" in m else asyncio.sleep(0))

    async def events(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-type", b"text/event-stream")))
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"  # Only then has the client read it.

    async def endless(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"x-secret", b"1")))
        while True:
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0)

    async def parts(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for part in (b"a" * 600, b"b" * 600, b"secret"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async def whole(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send({"type": "http.response.body", "body": b"a secret"})

    async def unfinished(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send({"type": "http.response.body", "body": b"a part", "more_body": True})

    async def raises(self, scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        raise ZeroDivisionError("of the application's own")

    async def user(self, scope: Any, receive: Any, send: Any) -> None:
        found = dict(scope["spop.variables"])
        scope["spop.variables"]["txn.waf.user"] = "told by the application"
        await send(start())
        await send({"type": "http.response.body", "body": json.dumps(found).encode()})


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


@pytest.fixture
def serve(make_engine: Callable[..., Any]) -> Iterator[Callable[..., tuple[int, App]]]:
    """``serve(rules…, spoe={…})``: an `App` behind the middleware; its port, and itself."""
    with contextlib.ExitStack() as stack:

        def begin(
            serving: Any = uvicorn_serving, spoe: dict[str, Any] | None = None, **settings: Any
        ) -> tuple[int, App]:
            engine = make_engine(AsyncEngine, **(spoe or {}))
            app = App(engine)
            middleware = ASGIMiddleware(app, engine, **settings)
            return stack.enter_context(serving(middleware)), app

        yield begin


def chunks(body: bytes, size: int = 700) -> Iterator[bytes]:
    for begin in range(0, len(body), size):
        yield body[begin : begin + size]


SIZES = [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 5 << 20]


SERVERS = [
    pytest.param(uvicorn_serving, id="uvicorn"),
    pytest.param(uvloop_serving, id="uvloop"),
    pytest.param(hypercorn_serving, id="hypercorn"),
]


@pytest.mark.parametrize("serving", SERVERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_reach_the_application_whole(
    serve: Callable[..., tuple[int, App]], waf: Waf, serving: Any, chunked: bool
) -> None:
    port, app = serve(serving, {"request": BODY}, max_body=LIMIT)
    for size in SIZES:
        body = bytes(n % 251 for n in range(size))
        app.received.clear()
        sent = chunks(body, 65536 if size > LIMIT * 2 else 700) if chunked else body
        assert ask(port, "POST", "/", sent).body == body
        assert b"".join(message["body"] for message in app.received) == body
        assert all(message["type"] == "http.request" for message in app.received)
        assert (waf.requests[-1]["body"], waf.requests[-1]["length"]) == (
            body[:LIMIT], min(size, LIMIT),
        )  # fmt: skip


def test_what_agents_see_of_a_request(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    port, app = serve(unique_id_header="X-Request-ID")
    ask(port, "OPTIONS", "/a%2Fb%20%C3%A9?x=%31&y", headers={"X-Mixed": "é"})
    seen = waf.requests[0]
    assert seen["url"] == "/a%2Fb%20%C3%A9?x=%31&y"
    assert (seen["path"], seen["query"]) == ("/a%2Fb%20%C3%A9", "x=%31&y")
    assert (seen["method"], seen["version"], seen["tls"]) == ("OPTIONS", "1.1", False)
    assert (str(seen["src"]), seen["dst_port"]) == ("127.0.0.1", port)
    assert "x-mixed: \udce9\r\n" in seen["headers"]  # http.client sends latin-1, which is no UTF-8.
    scope = app.scopes[0]
    assert dict(scope["headers"])[b"x-request-id"].decode() == seen["id"]
    assert (b"x-mixed", b"\xe9") in scope["headers"]
    assert scope["path"] == "/a/b é"

    ask(port, headers={"x-request-id": "given"})
    assert waf.requests[1]["id"] == waf.responses[1]["id"] == "given"


def test_targets_that_are_no_path(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    port, _ = serve()
    ask(port, "OPTIONS", "*")
    ask(port, "GET", "http://example.com/x?y")
    assert [(r["url"], r["path"]) for r in waf.requests] == [
        ("*", None),
        ("http://example.com/x?y", "/x"),
    ]


def test_a_unix_socket(make_engine: Callable[..., Any], waf: Waf, tmp_path: Path) -> None:
    """It has no addresses, and the servers' words for that differ."""
    engine = make_engine(AsyncEngine)
    path = tmp_path / "web.sock"
    with (
        uvicorn_serving(ASGIMiddleware(App(engine), engine), path=path),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=20) as client,
    ):
        assert client.get("http://a/").status_code == 200
    assert (waf.requests[0]["src"], waf.requests[0]["dst_port"]) == (None, None)


def test_tls(make_engine: Callable[..., Any], waf: Waf, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    certificate.write_to_path(tmp_path / "web.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    engine = make_engine(AsyncEngine)
    app = ASGIMiddleware(App(engine), engine)
    with (
        uvicorn_serving(app, ssl_certfile=tmp_path / "web.pem") as port,
        httpx.Client(verify=trusting, trust_env=False, timeout=20) as client,
    ):
        assert client.get(f"https://127.0.0.1:{port}/").status_code == 200
    assert waf.requests[0]["tls"] is True


class Spy:
    """Between a server and an application: what came by, in both directions.

    `under_server`: the server, which knows no extension, is not told of any.
    """

    def __init__(self, app: Any, under_server: bool = False) -> None:
        self.app = app
        self.under_server = under_server
        self.scopes: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def spied_receive() -> Any:
            self.received.append(await receive())
            return self.received[-1]

        async def spied_send(message: Any) -> None:
            self.sent.append(message)
            if not self.under_server:
                await send(message)
            elif message["type"] in ("http.response.start", "http.response.body"):
                await send({key: value for key, value in message.items() if key != "trailers"})

        self.scopes.append(dict(scope))
        await self.app(scope, spied_receive, spied_send)


@pytest.mark.parametrize("response", ["", RESPONSE_BODY])
def test_nothing_is_changed_on_the_way(
    make_engine: Callable[..., Any], waf: Waf, response: str
) -> None:
    """Of all scopes and messages, but for the variables."""
    messages = [
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        start((b"X-Upper", b"\xff"), (b"set-cookie", b"a"), (b"set-cookie", b"b"))
        | {"trailers": True},
        {"type": "http.response.body", "body": b"", "more_body": True},
        {"type": "http.response.body", "body": b"\0\xff", "more_body": True},
        {"type": "http.response.body"},
        {"type": "http.response.trailers", "headers": [(b"digest", b"1")]},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        for message in messages:
            await send(message)
        await receive()

    engine = make_engine(AsyncEngine, request=BODY, response=response)
    lifespan = App(engine).lifespan
    inner = Spy(app)
    outer = Spy(ASGIMiddleware(inner, engine, http_request=[DENIES], http_response=[DENIES]), True)
    with uvicorn_serving(outer) as port:
        answer = ask(port, "POST", "/a%2F?b", [b"\xff", b"12", b"3" * 5000])
    assert answer.body == b"\0\xff"
    assert outer.sent == inner.sent == messages
    assert outer.received == inner.received
    assert outer.received[-1]["type"] == "http.disconnect"
    assert inner.scopes[0].pop("spop.variables") is not None
    assert outer.scopes == inner.scopes
    assert len(waf.requests) == len(waf.responses) == 1


def test_http_2(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    port, _ = serve(hypercorn_serving, {"request": BODY}, http_request=[DENIES])
    with httpx.Client(http1=False, http2=True) as client:
        answer = client.post(f"http://127.0.0.1:{port}/a?b", content=b"x" * 100_000)
        assert (answer.status_code, answer.headers["x-length"]) == (200, "100000")
        assert client.post(f"http://127.0.0.1:{port}/", content=b"attack").status_code == 403
    assert (waf.requests[0]["version"], waf.requests[0]["url"]) == ("2.0", "/a?b")
    assert waf.requests[0]["length"] == 65536


def test_a_body_is_not_waited_for_where_nobody_reads_it(
    serve: Callable[..., tuple[int, App]], waf: Waf
) -> None:
    """The answer comes although the body does not."""
    port, _ = serve()
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as sock:
        sock.sendall(b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert "body" not in waf.requests[0]


def test_expect_100_continue(serve: Callable[..., tuple[int, App]]) -> None:
    port, _ = serve(spoe={"request": BODY}, http_request=[DENIES])
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as sock:
        head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"attack")
        assert sock.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_a_client_that_leaves_amid_its_body(
    serve: Callable[..., tuple[int, App]], waf: Waf
) -> None:
    """Nobody is asked, and the application, which agents have not admitted it to, isn't called."""
    port, app = serve(spoe={"request": BODY})
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 20)) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nattack")
    assert ask(port, "GET", "/").status == 200
    assert len(waf.requests) == len(app.scopes) == 1


def test_an_application_may_not_read_or_read_late(serve: Callable[..., tuple[int, App]]) -> None:
    port, _ = serve(spoe={"request": BODY, "response": RESPONSE_BODY}, max_body=LIMIT)
    assert ask(port, "POST", "/deaf", b"x" * 10).body == b"never read it"
    assert ask(port, "POST", "/late", b"x" * 5000).body == b"first," + b"x" * 5000


def test_events_of_a_response(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    port, _ = serve(http_response=[set_header("X-Checked", var("res.waf.checked"))])
    answer = ask(port, "POST", "/", b"12345")
    assert (answer.header("x-checked"), answer.header("x-length")) == ("200", "5")
    assert waf.responses[0]["status"] == 200
    assert waf.responses[0]["headers"].startswith("x-length: 5\r\n")
    assert waf.responses[0]["id"] == waf.requests[0]["id"]


def test_server_sent_events_flow(serve: Callable[..., tuple[int, App]]) -> None:
    """Even where a response's body is to be seen: the stream ends only when it was read."""
    port, app = serve(spoe={"response": RESPONSE_BODY}, http_response=[DENIES])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/events")
        assert connection.getresponse().read(9) == b"data: 1\n\n"
        assert not app.ended.is_set()
    assert app.ended.wait(20)


def test_a_denied_stream_ends(serve: Callable[..., tuple[int, App]]) -> None:
    port, app = serve(http_response=[DENIES])
    answer = ask(port, "GET", "/endless")
    assert (answer.status, answer.body, answer.header("x-secret")) == (502, b"", None)
    assert app.ended.wait(20)


def test_bodies_of_responses(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    port, _ = serve(spoe={"response": RESPONSE_BODY}, http_response=[DENIES], max_body=LIMIT)
    assert ask(port, "GET", "/whole").status == 502
    parts = ask(port, "GET", "/parts")  # Its secret is beyond the limit.
    assert parts.body == b"a" * 600 + b"b" * 600 + b"secret"
    assert [r["body"] for r in waf.responses] == [b"a secret", b"a" * 600 + b"b" * 400]


def test_groups_are_sent_by_rules(serve: Callable[..., tuple[int, App]], waf: Waf) -> None:
    spoe = {"events": False, "request": BODY, "response": RESPONSE_BODY}
    port, _ = serve(
        spoe=spoe,
        http_request=[send_group("request", when="!{ path /whole }"), DENIES],
        http_response=[send_group("response"), DENIES],
    )
    assert ask(port, "POST", "/", b"an attack").status == 403
    assert ask(port, "POST", "/", b"fine").body == b"fine"
    assert ask(port, "GET", "/whole").status == 502
    assert [r["body"] for r in waf.requests] == [b"an attack", b"fine"]
    assert [r["body"] for r in waf.responses] == [b"fine", b"a secret"]


def test_without_rules_and_messages_of_responses_they_are_not_held_back(
    serve: Callable[..., tuple[int, App]], waf: Waf
) -> None:
    port, _ = serve(
        spoe={"events": False, "request": BODY}, http_request=[send_group("request"), DENIES]
    )
    assert ask(port, "POST", "/", b"fine").body == b"fine"
    assert ask(port, "POST", "/", b"an attack").status == 403
    assert waf.responses == []


def handshake(engine: AsyncEngine, message: str) -> list[dict[str, Any]]:
    """What is sent where a server that has no answers for WebSockets receives a message."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": message}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": [], "scheme": "ws"}
    middleware = ASGIMiddleware(App(engine), engine, http_request=[deny(403)], websockets=True)
    asyncio.run(middleware(scope, receive, send))
    return sent


def test_a_denied_websocket_is_closed_where_the_server_has_no_answer_for_it(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine(AsyncEngine, events=False)
    assert handshake(engine, "websocket.connect") == [{"type": "websocket.close"}]
    assert handshake(engine, "websocket.disconnect") == []


def test_variables_are_shared_with_the_application(
    serve: Callable[..., tuple[int, App]], waf: Waf
) -> None:
    port, _ = serve(http_request=[deny(when=var("txn.waf.score") < 50), DENIES])
    assert json.loads(ask(port, "GET", "/user").body) == {
        "txn.waf.score": 80,
        "txn.waf.user": "zoë",
    }
    assert waf.responses[0]["user"] == "told by the application"


def test_exceptions_are_the_servers(serve: Callable[..., tuple[int, App]]) -> None:
    """A response that was not decided upon is none, so that the server can say 500."""
    port, _ = serve(spoe={"response": RESPONSE_BODY})
    assert ask(port, "GET", "/raises").status == 500


def test_an_agent_that_is_not_there(make_engine: Callable[..., Any]) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    engine = make_engine(AsyncEngine, to=address)
    app = App(engine)
    open_, closed = (
        ASGIMiddleware(app, engine),
        ASGIMiddleware(app, engine, http_request=[deny(503, when=agent_failed)]),
    )

    async def either(scope: Any, receive: Any, send: Any) -> None:
        chosen = closed if scope.get("path") == "/closed" else open_
        await chosen(scope, receive, send)

    with uvicorn_serving(either) as port:
        assert ask(port, "POST", "/", b"goes on").body == b"goes on"
        assert ask(port, "GET", "/closed").status == 503


def test_an_agent_that_is_killed_amid_requests(make_engine: Callable[..., Any], waf: Waf) -> None:
    fail_closed = deny(503, when=~var("txn.waf.score").is_set())
    with ScriptedAgent() as agent:
        agent.hold.set()
        engine = make_engine(AsyncEngine, to=agent.address)
        middleware = ASGIMiddleware(App(engine), engine, http_request=[fail_closed])
        with uvicorn_serving(middleware) as port, ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(ask, port) for _ in range(5)]
            agent.wait_for(5)
            agent.__exit__()
            assert {future.result().status for future in asked} == {503}


def test_an_agent_that_is_slow(make_engine: Callable[..., Any]) -> None:
    with ScriptedAgent() as agent:
        agent.hold.set()
        engine = make_engine(AsyncEngine, to=agent.address, timeout="50ms")
        app = App(engine)
        show = set_header("x-error", var("txn.waf.error"))
        middleware = ASGIMiddleware(app, engine, http_request=[show])
        with uvicorn_serving(middleware) as port:
            assert ask(port, "POST", "/", b"goes on").body == b"goes on"
        assert dict(app.scopes[0]["headers"])[b"x-error"] == b"1"


@pytest.mark.parametrize("serving", SERVERS)
def test_two_hundred_at_once(serve: Callable[..., tuple[int, App]], waf: Waf, serving: Any) -> None:
    port, _ = serve(serving, spoe={"request": BODY}, http_request=[DENIES])

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=30, limits=limits, trust_env=False) as client:
            url = f"http://127.0.0.1:{port}/"
            bodies = [(b"attack %d" if n % 3 else b"fine %d") % n for n in range(200)]
            return await asyncio.gather(*(client.post(url, content=body) for body in bodies))

    for number, answer in enumerate(asyncio.run(all_of_them())):
        assert answer.status_code == (403 if number % 3 else 200)
        assert answer.content == (b"" if number % 3 else b"fine %d" % number)
    assert len(waf.requests) == 200


def test_two_engines_share_variables(make_engine: Callable[..., Any], waf: Waf) -> None:
    first, second = make_engine(AsyncEngine), make_engine(AsyncEngine, events=False)
    app = App(first)
    inner = ASGIMiddleware(app, second, http_request=[deny(429, when=var("txn.waf.score") == 80)])
    outer = ASGIMiddleware(inner, first, http_request=[set_header("x", var("txn.waf.score"))])
    with uvicorn_serving(outer) as port:
        assert ask(port).status == 429


def test_names_that_differ_in_underscores_are_one(serve: Callable[..., tuple[int, App]]) -> None:
    """An application may see them so, and a client would have its way."""
    port, app = serve(http_request=[set_header("X-User", var("txn.waf.user"))])
    ask(port, headers={"x_user": "admin", "X-USER": "admin"})
    found = [value for name, value in app.scopes[0]["headers"] if name.startswith(b"x")]
    assert found == ["zoë".encode()]


def test_variables_of_the_request_end_with_it(serve: Callable[..., tuple[int, App]]) -> None:
    """Even where no event says that the response begins."""
    port, _ = serve(
        spoe={"events": False},
        http_request=[set_var("req.a", "path"), set_var("txn.a", "path")],
        http_response=[set_header("x-req", var("req.a")), set_header("x-txn", var("txn.a"))],
    )
    answer = ask(port)
    assert (answer.header("x-req"), answer.header("x-txn")) == (None, "/")


def test_header_fields_are_made_when_something_reads_them() -> None:
    reads: list[object] = []

    def read(source: object) -> list[tuple[str, str]]:
        reads.append(source)
        return [("host", "www.example.org")]

    class Fields(ReceivedRequest):
        headers: HeaderFields = when_read(lambda self: read(self.received))

    request = Fields()
    request.received = "what the server gave"
    assert reads == []
    assert header_fields(request, "host") == ["www.example.org"]
    assert request.headers is request.headers
    assert reads == ["what the server gave"]
    request.headers = []
    assert header_fields(request, "host") == ()


def test_an_application_has_a_scope_of_its_own(make_engine: Callable[..., Any]) -> None:
    """What the server has keeps its keys and its list of header fields."""

    async def app(scope: ASGIScope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        scope["headers"].append((b"x-app", b"1"))

    scopes: list[ASGIScope] = []
    headers = [(b"host", b"www.example.org")]
    server = {"type": "http", "path": "/", "headers": headers}
    given = {**server}
    rules = [set_header("x-was", "%[req.hdr(host)]")]
    middleware = ASGIMiddleware(app, make_engine(AsyncEngine, events=False), http_response=rules)

    async def serve() -> None:
        await middleware(given, AsyncMock(), AsyncMock())

    asyncio.run(serve())
    assert (given, headers) == (server, [(b"host", b"www.example.org")])
    assert scopes[0]["spop.variables"] == {}


def test_rules_read_the_request_as_it_came(serve: Callable[..., tuple[int, App]]) -> None:
    """The application may change the list in its scope."""
    port, _ = serve(spoe={"events": False}, http_response=[set_header("x-was", "%[req.hdr(x-is)]")])
    assert dict(ask(port, target="/clears", headers={"x-is": "kept"}).headers)["x-was"] == "kept"


@pytest.mark.parametrize("limit, told", [(4, 5), (LIMIT, 0)])
@pytest.mark.parametrize("denied", [False, True])
def test_an_application_may_send_from_several_tasks(
    make_engine: Callable[..., Any], denied: bool, limit: int, told: int
) -> None:
    """What comes while agents are asked waits, in order; the rest of a denied one is refused."""
    raised: list[BaseException] = []
    failures: list[BaseException] = []
    parts = [{"type": "http.response.body", "body": b"%d" % n, "more_body": True} for n in range(9)]
    parts.append({"type": "http.response.body"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = start((b"x-secret", b"1")) if denied else start()
        found = await asyncio.gather(*map(send, [head, *parts]), return_exceptions=True)
        raised.extend(error for error in found if isinstance(error, BaseException))
        for error in raised:
            raise error

    engine = make_engine(AsyncEngine, response=RESPONSE_BODY)
    spy = Spy(ASGIMiddleware(app, engine, http_response=[DENIES], max_body=limit), True)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await App(engine).lifespan(receive, send)
            return
        try:
            await spy(scope, receive, send)
        except Exception as error:
            failures.append(error)

    with uvicorn_serving(watched) as port:
        assert ask(port).body == (b"" if denied else b"012345678")
    assert not failures
    assert len(raised) == (told if denied else 0)
    assert [m.get("status") for m in spy.sent[:2]] == [502 if denied else 200, None]
    assert denied or spy.sent[1:] == parts


def test_a_response_that_is_left_unfinished(serve: Callable[..., tuple[int, App]]) -> None:
    """What there is of it goes out, as it would without the middleware."""
    port, _ = serve(spoe={"response": RESPONSE_BODY})
    with pytest.raises(http.client.IncompleteRead) as found:
        ask(port, "GET", "/unfinished")
    assert found.value.partial == b"a part"
