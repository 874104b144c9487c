"""The agent behind real HAProxy, in each version that there is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from haproxy import HAProxy, Load, those, version, wait_until

from spop import Ack, Agent, Message
from spop.counters import Cell
from spop.server import Server

SPOE = """
spoe-agent test-agent
    messages check
    option var-prefix test
    {options}
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message check
    args ip=src method=method path=path body=req.body
    event on-frontend-http-request
"""

RULES = "http-request redirect location /%[var(txn.test.score)]"
ASK = {"spoe": SPOE.format(options=""), "rules": RULES}


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address, method: str, path: str) -> dict[str, int]:
        assert (method, path) == ("GET", "/")
        return {"txn.score": ip.packed[-1]}

    return agent


def test_the_check_goes_up_and_every_request_gets_its_variable(
    haproxy_binary: str, agent: Agent, tmp_path: Path
) -> None:
    with (
        agent.serve_in_background(threads=2) as server,
        HAProxy(haproxy_binary, tmp_path, agent=str(server.address), **ASK) as proxy,
    ):
        proxy.wait_until_up()
        answers = list(proxy.requests(2000, concurrency=32))
    wrong = [a for a in answers if a.location != f"/{a.source.rpartition('.')[2]}"]
    assert not wrong
    assert Counter(a.status for a in answers) == {302: 2000}
    assert max(a.seconds for a in answers) < 10, "a request waited for its processing timeout"
    assert not agent.errors


def test_a_unix_socket_serves_as_well(haproxy_binary: str, agent: Agent, tmp_path: Path) -> None:
    with (
        agent.serve_in_background(f"unix:{tmp_path}/agent.sock"),
        HAProxy(haproxy_binary, tmp_path, agent=f"unix@{tmp_path}/agent.sock", **ASK) as proxy,
    ):
        proxy.wait_until_up()
        assert proxy.request("127.0.0.9").location == "/9"


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_deferred_handlers_answer_out_of_order(
    haproxy_binary: str, tmp_path: Path, kind: str
) -> None:
    agent = Agent()
    if kind == "blocking":

        @agent.message("check", blocking=True)
        def check(ip: IPv4Address) -> dict[str, int]:
            time.sleep(0.02 if ip.packed[-1] % 2 else 0)
            return {"txn.score": ip.packed[-1]}
    else:

        @agent.message("check")
        async def check_async(ip: IPv4Address) -> dict[str, int]:
            await asyncio_sleep(0.02 if ip.packed[-1] % 2 else 0)
            return {"txn.score": ip.packed[-1]}

    with (
        agent.serve_in_background(threads=2) as server,
        HAProxy(haproxy_binary, tmp_path, agent=str(server.address), **ASK) as proxy,
    ):
        proxy.wait_until_up()
        answers = list(proxy.requests(500, concurrency=32))
    assert not [a for a in answers if a.location != f"/{a.source.rpartition('.')[2]}"]


async def asyncio_sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


@pytest.fixture
def body_agent() -> Agent:
    agent = Agent()

    @agent.message("check")
    def check(body: bytes) -> dict[str, str]:
        return {"txn.score": hashlib.md5(body).hexdigest()}

    return agent


@pytest.mark.parametrize("size", [5000, 12_000])
def test_a_large_body_arrives_whole(
    haproxy_binary: str, body_agent: Agent, tmp_path: Path, size: int
) -> None:
    """Through fragments where HAProxy has them (1.8 to 3.0), else in one frame."""
    fragments = version(haproxy_binary) < (3, 1)
    body = bytes(range(256)) * (size // 256)
    with (
        body_agent.serve_in_background() as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=str(server.address),
            spoe=SPOE.format(options="max-frame-size 1024" if fragments else ""),
            rules=RULES,
            frontend_options="option http-buffer-request",
        ) as proxy,
    ):
        proxy.wait_until_up()
        # HAProxy 1.8.0 fragments nothing before a first HELLO told it that it may.
        proxy.request(body=b"small")
        for _ in range(20):
            assert proxy.request(body=body).location == f"/{hashlib.md5(body).hexdigest()}"
    assert not body_agent.errors


def test_frames_larger_than_64_kib_need_no_setting(
    haproxy_binary: str, body_agent: Agent, tmp_path: Path
) -> None:
    body = bytes(range(256)) * 400
    with (
        body_agent.serve_in_background() as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=str(server.address),
            **ASK,
            frontend_options="option http-buffer-request",
            global_options="tune.bufsize 131072",
        ) as proxy,
    ):
        proxy.wait_until_up()
        assert proxy.request(body=body).location == f"/{hashlib.md5(body).hexdigest()}"


def test_the_agent_says_goodbye_and_haproxy_goes_on_with_the_next(
    haproxy_binary: str, agent: Agent, tmp_path: Path
) -> None:
    """A restart of the agent costs no request its variable once it is up again."""
    address = f"unix:{tmp_path}/agent.sock"
    with HAProxy(haproxy_binary, tmp_path, agent=f"unix@{tmp_path}/agent.sock", **ASK) as proxy:
        for _ in range(3):
            with agent.serve_in_background(address):
                proxy.wait_until_up()
                assert proxy.request("127.0.0.7").location == "/7"
            wait_until(lambda: proxy.server_state()[0] == "DOWN", "the check going DOWN")


def test_a_handler_that_fails_costs_no_timeout(haproxy_binary: str, tmp_path: Path) -> None:
    agent = Agent()

    @agent.message("check", on_error={"txn.score": "failed"})
    def check(message: Message) -> None:
        raise ValueError("broken")

    with (
        agent.serve_in_background() as server,
        HAProxy(haproxy_binary, tmp_path, agent=str(server.address), **ASK) as proxy,
    ):
        proxy.wait_until_up()
        answer = proxy.request()
    assert answer.location == "/failed"
    assert answer.seconds < 5
    assert agent.errors == {"check": 1}


def test_none_removes_a_variable(haproxy_binary: str, tmp_path: Path) -> None:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address, ack: Ack) -> dict[str, None]:
        ack.set("txn", "score", ip.packed[-1])
        return {} if ip.packed[-1] == 1 else {"txn.score": None}

    with (
        agent.serve_in_background() as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=str(server.address),
            spoe=SPOE.format(options=""),
            rules="http-request redirect location /set if { var(txn.test.score) -m found }\n"
            "    http-request redirect location /unset if !{ var(txn.test.score) -m str 1 }",
        ) as proxy,
    ):
        proxy.wait_until_up()
        assert proxy.request("127.0.0.1").location == "/set"
        assert proxy.request("127.0.0.2").location == "/unset"


def test_requests_during_the_stop_of_an_agent_are_answered(
    haproxy_binary: str, tmp_path: Path
) -> None:
    agent = Agent()
    running, release = threading.Event(), threading.Event()

    @agent.message("check", blocking=True)
    def check(ip: IPv4Address) -> dict[str, int]:
        running.set()
        release.wait(5)
        return {"txn.score": ip.packed[-1]}

    with HAProxy(haproxy_binary, tmp_path, agent=f"unix@{tmp_path}/agent.sock", **ASK) as proxy:
        answers = []
        with agent.serve_in_background(f"unix:{tmp_path}/agent.sock"):
            proxy.wait_until_up()
            client = threading.Thread(target=lambda: answers.append(proxy.request("127.0.0.5")))
            client.start()
            assert running.wait(5)
            threading.Timer(0.2, release.set).start()
        client.join()
    assert answers[0].location == "/5"


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_haproxys_reload_under_load_leaves_no_request_waiting(
    haproxy_binary: str, tmp_path: Path, kind: str
) -> None:
    agent = Agent()

    @agent.message("check", blocking=kind == "blocking")
    def check(ip: IPv4Address) -> dict[str, int]:
        return {"txn.score": ip.packed[-1]}

    with (
        agent.serve_in_background(threads=2) as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=str(server.address),
            global_options="hard-stop-after 1s",
            **ASK,
        ) as proxy,
    ):
        proxy.wait_until_up()
        with Load(proxy) as load:
            for _ in range(3):
                load.wait_for(50)
                proxy.reload()
                # A HAProxy that stops takes leave of the agent while it still has streams of its
                # own: those go without. After that, and in the new one, none does.
                load.wait_until_right()
    assert max(a.seconds for a in load.answers) < 10, "a request waited for its processing timeout"


@those((2, 0), below=(3, 1))
def test_an_ack_reaches_haproxy_on_another_connection_of_its_engine(
    haproxy_binary: str, tmp_path: Path
) -> None:
    """``option async``: the NOTIFY's connection is lost while its handler works."""
    lost = threading.Event()
    agent = Agent()

    @agent.message("check", blocking=True)
    def check(ip: IPv4Address) -> dict[str, int]:
        if ip.packed[-1] == 66:
            assert lost.wait(10)
        return {"txn.score": ip.packed[-1]}

    with (
        agent.serve_in_background() as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=str(server.address),
            spoe=SPOE.format(
                options="option async\n    option pipelining\n    max-waiting-frames 1"
            ),
            rules=RULES,
            global_options="nbthread 1" if version(haproxy_binary) >= (1, 8, 1) else "",
        ) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        proxy.wait_until_up()
        waiting = pool.submit(proxy.request, "127.0.0.66")
        wait_until(lambda: server.executor.busy == 1, "the handler")
        # With one frame for each connection, the others open connections of their own.
        assert [a.location for a in pool.map(proxy.request, ["127.0.0.5"] * 20)] == ["/5"] * 20
        with busy_connection(server) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        wait_until(
            lambda: not any(c["in_flight"] for c in server.connections()), "the connection's end"
        )
        lost.set()
        assert waiting.result().location == "/66"
        assert server.totals().cells[Cell.ACKS_ELSEWHERE] == 1


@contextlib.contextmanager
def busy_connection(server: Server) -> Iterator[socket.socket]:
    """The socket of the connection that has a frame in hand, as somebody else might have it."""
    (address,) = (c["address"] for c in server.connections() if c["in_flight"])
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            peer = ":".join(map(str, sock.getpeername()[:2]))
            if peer == address and sock.getsockname()[1] == server.address.port:
                yield sock
                return
    raise AssertionError(address)
