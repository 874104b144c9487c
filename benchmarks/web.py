"""What the ASGI middleware costs a Starlette application under uvicorn.

python benchmarks/web.py [SECONDS]

The same application bare and behind the middleware; uvicorn alone has a processor, the load and
the agent in C share the other. Each round measures all of them in turn, and a ratio is the median of
those of the rounds: uvicorn's CPU time for a request, its kernel's part included, by that of the bare
application in the same round.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from frames import compile_c
from running import HERE, Running, free_port, pin, running, sink_command
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from spop.engine import AsyncEngine
from spop.web import ASGIMiddleware, Rule, deny, set_header, var

CONNECTIONS = 32
REQUEST = (
    b"POST /index.html?page=5 HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: benchmark\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip, br\r\nCookie: session=0123456789abcdef\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"
)
SPOE = """
[benchmark]
spoe-agent benchmark
    messages {messages}
    option var-prefix p
    timeout hello 1s
    timeout idle 30s
    timeout processing 1s
    use-backend agents

spoe-message never
    args path=path
    event on-frontend-http-request if FALSE

spoe-message client
    args ip=src path=path
    event on-frontend-http-request

spoe-message waf-request
    args ip=src method=method path=pathq version=req.ver headers=req.hdrs body=req.body
    event on-frontend-http-request

spoe-message waf-response
    args version=res.ver status=status headers=res.hdrs
    event on-http-response
"""
SCORE = var("sess.p.ip_score")


async def hello(request: Request) -> PlainTextResponse:
    await request.body()
    return PlainTextResponse("Hello, world!")


def bare() -> Starlette:
    """no middleware"""
    return Starlette(routes=[Route("/index.html", hello, methods=["POST"])])


def nothing() -> ASGIMiddleware:
    """nothing to ask"""
    return _behind("never")


def address() -> ASGIMiddleware:
    """address and path"""
    return _behind("client")


def header() -> ASGIMiddleware:
    """address and path, a header set"""
    return _behind("client", set_header("x-score", SCORE))


def waf() -> ASGIMiddleware:
    """request with headers and body"""
    return _behind("waf-request")


def waf_both() -> ASGIMiddleware:
    """the same, and the response"""
    return _behind("waf-request waf-response")


APPS: tuple[Callable[[], object], ...] = (
    bare, nothing, address, header, waf, waf_both,
)  # fmt: skip


def _behind(messages: str, *rules: Rule) -> ASGIMiddleware:
    def engine() -> AsyncEngine:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spoe.cfg"
            path.write_text(SPOE.format(messages=messages))
            return AsyncEngine.from_file(path, backends={"agents": os.environ["AGENT"]})

    return ASGIMiddleware(bare(), engine, http_request=[deny(when=SCORE < 1), *rules])


class Load(asyncio.Protocol):
    """A connection that asks again as soon as it was answered, until a time of `time.monotonic`."""

    def __init__(self, end: float) -> None:
        self._end = end
        self._received = b""
        self.answers = 0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.startswith(b"HTTP/1.1 200 "):
            sys.exit(self._received.decode())
        if self._received.endswith(b"Hello, world!"):
            self._received = b""
            self.answers += 1
            if time.monotonic() < self._end:
                self._transport.write(REQUEST)
            else:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True


async def load(port: int, seconds: float) -> int:
    """How many requests were answered. All that were sent are."""
    loop = asyncio.get_running_loop()
    end = time.monotonic() + seconds
    made = [
        (await loop.create_connection(lambda: Load(end), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    # It never sleeps: to wake it would be the server's work, and more often so for a slower server.
    while not all(connection.closed for connection in made):
        await asyncio.sleep(0)
    return sum(connection.answers for connection in made)


def uvicorn_command(port: int, app: str) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--factory", f"web:{app}",
        "--port", str(port), "--no-access-log", "--log-level", "critical",
    ]  # fmt: skip


def measure(
    seconds: float = 2.0, rounds: int = 2, starts: int = 3
) -> Iterator[tuple[str, float, float, float]]:
    """Application, requests a second, µs of uvicorn's CPU for each, to the bare one: medians.

    Each of `starts` begins with new processes: two of the same program differ by a few percent.
    """
    figures: dict[str, list[tuple[float, float, float]]] = {}
    agent = free_port()
    with running(sink_command(agent), agent) as sink:
        os.sched_setaffinity(sink.session, os.sched_getaffinity(0))
        for _ in range(starts):
            with contextlib.ExitStack() as stack:
                servers = {
                    str(app.__doc__): stack.enter_context(serving(app, agent)) for app in APPS
                }
                for _ in range(rounds):
                    measure_round(servers, seconds, figures)
    for name, results in figures.items():
        yield name, *(statistics.median(each) for each in zip(*results, strict=True))


@contextlib.contextmanager
def serving(app: Callable[[], object], agent: int) -> Iterator[Running]:
    """uvicorn with an application, once it is warm."""
    port = free_port()
    environment = {"AGENT": f"127.0.0.1:{agent}"}
    with running(uvicorn_command(port, app.__name__), port, environment) as server:
        asyncio.run(load(port, 0.3))
        yield server


def measure_round(
    servers: dict[str, Running],
    seconds: float,
    figures: dict[str, list[tuple[float, float, float]]],
) -> None:
    """Measure each once, the bare one first."""
    bare_cost = 0.0
    for name, server in servers.items():
        cpu = server.cpu_seconds()
        count = asyncio.run(load(server.port, seconds))
        cost = (server.cpu_seconds() - cpu) / count * 1e6
        bare_cost = bare_cost or cost
        figures.setdefault(name, []).append((count / seconds, cost, cost / bare_cost))


def table(rows: list[tuple[str, float, float, float]]) -> str:
    lines = ["| | requests/s | CPU per request | to the bare one |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {rate:,.0f} | {cost:.0f} µs | {ratio:.2f} × |"
        for name, rate, cost, ratio in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    compile_c()
    pin(1)
    print(table(list(measure(*map(float, sys.argv[1:2])))))
