"""Starlette, Django and Flask behind the middleware, and the examples as their readers run them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
from servers import (
    BODY,
    RESPONSE_BODY,
    Waf,
    hypercorn_serving,
    listening,
    spoe,
    uvicorn_serving,
    uvloop_serving,
    waitress_serving,
)
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from spop.engine import AsyncEngine, Engine
from spop.web import ASGIMiddleware, WSGIMiddleware, deny, redirect, set_header, var

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = [
    deny(when=var("txn.waf.action") == "deny"),
    redirect(var("txn.waf.to"), when=var("txn.waf.action") == "redirect"),
    set_header("x-user", var("txn.waf.user")),
]


def utf8(header: str) -> str:
    """What frameworks have decoded as latin-1."""
    return header.encode("latin-1").decode()


async def upload(request: Request) -> JSONResponse:
    async with request.form() as form:
        content = await form["file"].read()  # type: ignore[union-attr]
        return JSONResponse({"size": len(content), "user": utf8(request.headers["x-user"])})


async def stream(request: Request) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        for number in range(1000):
            yield f"{number}\n"

    return StreamingResponse(numbers(), media_type="text/plain")


async def crash(request: Request) -> None:
    raise ZeroDivisionError


async def where(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(request.url_for("where")))


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    user = utf8(websocket.headers.get("x-user", "nobody"))
    await websocket.send_text(f"{user}: {await websocket.receive_text()}")
    await websocket.close()


@pytest.fixture
def starlette(make_engine: Callable[..., Any]) -> Iterator[Callable[..., httpx.Client]]:
    """``starlette(rules…, spoe={…})``: a client of a Starlette application."""
    with contextlib.ExitStack() as stack:

        def begin(
            serving: Any = uvicorn_serving, spoe: dict[str, Any] | None = None, **settings: Any
        ) -> httpx.Client:
            engine = make_engine(AsyncEngine, **(spoe or {}))

            @contextlib.asynccontextmanager
            async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
                async with engine:
                    yield {"began": True}

            async def state(request: Request) -> JSONResponse:
                return JSONResponse(request.state.began)

            app = Starlette(
                routes=[
                    Route("/upload", upload, methods=["POST"]),
                    Route("/stream", stream),
                    Route("/crash", crash),
                    Route("/state", state),
                    Mount("/sub", routes=[Route("/where/{x}", where, name="there")]),
                    Route("/where", where, name="where"),
                    WebSocketRoute("/talk", talk),
                    WebSocketRoute("/attack", talk),
                    WebSocketRoute("/moved", talk),
                ],
                lifespan=lifespan,
                middleware=[
                    Middleware(ASGIMiddleware, engine=engine, http_request=RULES, **settings),
                    Middleware(GZipMiddleware, minimum_size=10),
                ],
            )
            port = stack.enter_context(serving(app))
            url = f"http://127.0.0.1:{port}"
            return stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=20))

        yield begin


def test_starlette(starlette: Callable[..., httpx.Client], waf: Waf) -> None:
    client = starlette(spoe={"request": BODY, "response": RESPONSE_BODY})
    files = {"file": ("name", b"x" * 1_000_000)}
    assert client.post("/upload", files=files).json() == {"size": 1_000_000, "user": "zoë"}
    assert client.post("/upload", files={"file": ("name", b"attack")}).status_code == 403
    assert client.get("/stream").text == "".join(f"{n}\n" for n in range(1000))
    assert client.get("/crash").status_code == 500
    assert client.get("/state").json() is True
    assert client.get("/sub/where/x%2Fy").status_code == 404
    assert client.get("/sub/where/x%20y").text == f"{client.base_url}/where"
    assert waf.requests[-1]["path"] == "/sub/where/x%20y"
    assert client.get("/moved").headers["location"].startswith("https://example.com/%C3%A9?q=1")
    assert len(waf.responses) == 5  # That to the crash is made outside of the middleware.


def url_of(client: httpx.Client, path: str) -> str:
    return f"ws://127.0.0.1:{client.base_url.port}{path}"


def test_websockets_are_untouched(starlette: Callable[..., httpx.Client], waf: Waf) -> None:
    client = starlette()
    with connect(url_of(client, "/attack"), proxy=None) as websocket:
        websocket.send("hello")
        assert websocket.recv() == "nobody: hello"
    assert not waf.requests


@pytest.mark.parametrize("serving", [uvicorn_serving, uvloop_serving, hypercorn_serving])
def test_websockets_handshakes(
    starlette: Callable[..., httpx.Client], waf: Waf, serving: Any
) -> None:
    client = starlette(serving, websockets=True)
    with connect(url_of(client, "/talk?a=b"), proxy=None) as websocket:
        websocket.send("hello")
        assert websocket.recv() == "zoë: hello"
    assert (waf.requests[0]["method"], waf.requests[0]["url"]) == ("GET", "/talk?a=b")
    assert "upgrade: websocket\r\n" in waf.requests[0]["headers"]
    with pytest.raises(InvalidStatus) as refused, connect(url_of(client, "/attack"), proxy=None):
        pass
    assert refused.value.response.status_code == 403
    assert not waf.responses


def test_websockets_are_redirected_where_servers_can(
    starlette: Callable[..., httpx.Client],
) -> None:
    client = starlette(websockets=True)
    handshake = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    answer = client.get("/moved", headers=handshake)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("https://example.com/%C3%A9?q=1")


def test_each_event_loop_has_its_engine(make_engine: Callable[..., Any], waf: Waf) -> None:
    """As with test clients that run each request, or each application, in a loop of its own."""
    made: list[AsyncEngine] = []

    def make() -> AsyncEngine:
        made.append(make_engine(AsyncEngine))
        return made[-1]

    app = Starlette(
        routes=[Route("/where", where, name="where")],
        middleware=[Middleware(ASGIMiddleware, engine=make, http_request=RULES)],
    )
    for count in (1, 2):
        with uvicorn_serving(app, lifespan="on") as port:
            url = f"http://127.0.0.1:{port}/where"
            assert httpx.get(url, trust_env=False).status_code == 200
            assert httpx.get(f"{url}?attack", trust_env=False).status_code == 403
        assert len(made) == count
        assert made[-1].traffic.applets == 0  # It is closed.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_of_another_event_loop_is_told_of(make_engine: Callable[..., Any]) -> None:
    only = ASGIMiddleware(where, make_engine(AsyncEngine))  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/", "headers": []}

    def ask() -> None:
        asyncio.run(only(scope, None, None))  # type: ignore[arg-type]

    async def ask_elsewhere() -> None:
        only._engine()
        with pytest.raises(RuntimeError, match=r"one event loop.* a function that makes engines"):
            await asyncio.to_thread(ask)

    asyncio.run(ask_elsewhere())
    asyncio.run(ask_elsewhere())  # The first loop is closed, and this one may have the engine.


def test_flask(make_engine: Callable[..., Any], waf: Waf) -> None:
    app = flask.Flask("test")

    @app.post("/upload")
    def upload() -> dict[str, Any]:
        content = flask.request.files["file"].read()
        return {
            "size": len(content),
            "user": utf8(flask.request.headers["x-user"]),
        }

    @app.get("/stream")
    def stream() -> Any:
        return flask.stream_with_context(f"{flask.request.path}{n}\n" for n in range(1000))

    @app.get("/crash")
    def crash() -> None:
        raise ZeroDivisionError

    engine = make_engine(Engine, request=BODY, response=RESPONSE_BODY)
    app.wsgi_app = WSGIMiddleware(app.wsgi_app, engine, http_request=RULES)  # type: ignore[method-assign]
    with waitress_serving(app) as port, httpx.Client(trust_env=False, timeout=20) as client:
        url = f"http://127.0.0.1:{port}"
        files = {"file": ("name", b"x" * 1_000_000)}
        assert client.post(f"{url}/upload", files=files).json() == {
            "size": 1_000_000,
            "user": "zoë",
        }
        assert client.post(f"{url}/upload", files={"file": ("n", b"attack")}).status_code == 403
        assert client.get(f"{url}/stream").text == "".join(f"/stream{n}\n" for n in range(1000))
        assert client.get(f"{url}/crash").status_code == 500
        assert client.get(f"{url}/moved").status_code == 302
    assert [r["status"] for r in waf.responses] == [200, 200, 500]
    assert waf.responses[1]["body"].startswith(b"/stream0\n/stream1\n")


DJANGO = """
import os
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path

from spop.engine import AsyncEngine, Engine
from spop.web import ASGIMiddleware, WSGIMiddleware, deny, set_header, var

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DATA_UPLOAD_MAX_MEMORY_SIZE=None)

def upload(request):
    return JsonResponse({"size": request.FILES["file"].size, "user": request.headers["x-user"]})

def body(request):
    return JsonResponse({"size": len(request.body)})

def stream(request):
    return StreamingHttpResponse(f"{n}\\n" for n in range(1000))

async def astream(request):
    async def numbers():
        for n in range(1000):
            yield f"{n}\\n"
    return StreamingHttpResponse(numbers())

urlpatterns = [path(f.__name__, f) for f in (upload, body, stream, astream)]
agents = {"agents": os.environ["AGENT"]}
rules = [deny(when=var("txn.waf.action") == "deny"), set_header("x-user", "u")]
asgi = ASGIMiddleware(
    get_asgi_application(),
    AsyncEngine.from_file(os.environ["SPOE"], backends=agents),
    http_request=rules,
)
wsgi = WSGIMiddleware(
    get_wsgi_application(),
    Engine.from_file(os.environ["SPOE"], backends=agents),
    http_request=rules,
)
"""


def gunicorn(folder: Path, target: str, fd: int) -> list[str]:
    return ["gunicorn", "--chdir", str(folder), "--threads", "8", "--bind", f"fd://{fd}", target]


def uvicorn(folder: Path, target: str, fd: int) -> list[str]:
    return ["uvicorn", "--app-dir", str(folder), "--fd", str(fd), "--log-level", "error", target]


@contextlib.contextmanager
def running(command: Callable[..., list[str]], *target: Any, **environment: str) -> Iterator[int]:
    """A web server in a process; its port, whose backlog has what comes before it is ready."""
    with listening() as sock:
        process = subprocess.Popen(
            [sys.executable, "-m", *command(*target, sock.fileno())],
            pass_fds=[sock.fileno()],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
        )
        try:
            yield sock.getsockname()[1]
        finally:
            process.terminate()
            process.communicate(timeout=20)


@pytest.mark.parametrize("command, name", [(uvicorn, "asgi"), (gunicorn, "wsgi")])
def test_django(
    address: str, tmp_path: Path, waf: Waf, command: Callable[..., list[str]], name: str
) -> None:
    path = spoe(tmp_path, request=BODY, response=RESPONSE_BODY)
    (tmp_path / "project.py").write_text(DJANGO)
    environment = {"AGENT": address, "SPOE": str(path)}
    with (
        running(command, tmp_path, f"project:{name}", **environment) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client,
    ):
        files = {"file": ("name", b"x" * 3_000_000)}  # Django has it in a file.
        assert client.post("/upload", files=files).json() == {"size": 3_000_000, "user": "u"}
        assert client.post("/body", content=b"x" * 200_000).json() == {"size": 200_000}
        assert client.post("/body", content=iter([b"x" * 100, b"attack"])).status_code == 403
        numbers = "".join(f"{n}\n" for n in range(1000))
        assert client.get("/astream" if name == "asgi" else "/stream").text == numbers
        assert client.get("/none").status_code == 404
    assert [r["status"] for r in waf.responses] == [200, 200, 200, 404]


@pytest.mark.parametrize(
    "command, target",
    [
        (uvicorn, "web_starlette:app"),
        (uvicorn, "web_django:asgi"),
        (gunicorn, "web_django:wsgi"),
        (gunicorn, "web_flask:app"),
    ],
)
def test_examples(command: Callable[..., list[str]], target: str) -> None:
    found = importlib.util.spec_from_file_location("ip_reputation", EXAMPLES / "ip_reputation.py")
    assert found is not None and found.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with (
        module.agent.serve_in_background() as server,
        running(command, EXAMPLES, target, AGENT=str(server.address)) as port,
    ):
        url = f"http://127.0.0.1:{port}/"
        good = httpx.get(url, trust_env=False, timeout=20)
        assert (good.status_code, good.text) == (200, "Your score is 99.\n")
        transport = httpx.HTTPTransport(local_address="127.0.0.42")
        with httpx.Client(transport=transport, timeout=20) as client:
            bad = client.get(url, headers={"x-ip-score": "100"})
        assert (bad.status_code, bad.text) == (403, "Not from 127.0.0.42.\n")
