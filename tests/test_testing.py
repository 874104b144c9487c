"""What authors of agents are given for their tests."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spop import UNSET, Ack, Agent, Client, HandlerError, Message
from spop.server import Server
from spop.testing import HAProxy, assert_actions


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("plain")
    def plain(n: int, ack: Ack) -> dict[str, Any]:
        ack.unset("txn", "old")
        return {"sess.n": n}

    @agent.message("blocking", blocking=True)
    def blocking(message: Message) -> dict[str, Any]:
        time.sleep(0)
        return {"sess.names": ",".join(message.names)}

    @agent.message("async", on_error={"sess.failed": True})
    async def asynchronous(n: int = 7) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"sess.n": 10 // n}

    return agent


def test_handlers_of_all_kinds_are_called_without_a_server(agent: Agent) -> None:
    assert agent.test("plain", n=5) == {"txn.old": UNSET, "sess.n": 5}
    assert agent.test("blocking", **{"a": 1, "b-c": "x"}) == {"sess.names": "a,b-c"}
    assert agent.test("async", n=5) == {"sess.n": 2}
    assert agent.test("async") == {"sess.n": 1}


def test_inside_of_a_running_loop_too(agent: Agent) -> None:
    async def run() -> dict[str, Any]:
        return agent.test("async", n=2)

    assert asyncio.run(run()) == {"sess.n": 5}


def test_a_handlers_error_is_raised(agent: Agent) -> None:
    with pytest.raises(ZeroDivisionError):
        agent.test("async", n=0)
    with pytest.raises(HandlerError, match="no argument n"):
        agent.test("plain")
    with pytest.raises(LookupError, match="'nobody'"):
        agent.test("nobody")
    assert not agent.errors


def test_assert_actions_names_what_differs(agent: Agent) -> None:
    ack = Ack().set("sess", "n", 1).set("sess", "b", True).set("txn", "x", "y")
    assert_actions(ack, {"sess.n": 1, "sess.b": True, "txn.x": "y"})
    with pytest.raises(AssertionError) as caught:
        assert_actions(ack, {"sess.n": 2, "sess.b": 1, "sess.z": UNSET})
    assert str(caught.value).splitlines()[1:] == [
        "  sess.b: expected 1, got True",
        "  sess.n: expected 2, got 1",
        "  sess.z: expected UNSET, not set",
        "  txn.x: set to 'y', not expected",
    ]
    assert_actions(agent.test("async", n=5), {"sess.n": 2})


def test_fixtures_serve_and_ask(
    agent: Agent, serve_agent: Callable[..., Server], agent_client: Callable[..., Client]
) -> None:
    server = serve_agent(agent, threads=2)
    with Client(str(server.address)) as client:
        assert_actions(client.notify("async", n=5), {"sess.n": 2})
    client = agent_client(agent, timeout=5.0)
    assert_actions(client.notify("plain", n=1), {"txn.old": UNSET, "sess.n": 1})


@pytest.mark.usefixtures("haproxy_in_path")
def test_fixture_runs_haproxy(agent: Agent, run_haproxy: Callable[..., HAProxy]) -> None:
    haproxy = run_haproxy(
        agent,
        spoe="""
[test]
spoe-agent a
    messages plain
    option var-prefix t
    timeout hello 20s
    timeout idle 1m
    timeout processing 20s
    use-backend agents

spoe-message plain
    args n=int(42)
    event on-frontend-http-request
""",
        rules="    http-request redirect location /%[var(sess.t.n)]",
    )
    connection = http.client.HTTPConnection("127.0.0.1", haproxy.port, timeout=10)
    connection.request("GET", "/")
    assert connection.getresponse().getheader("Location") == "/42"
    connection.close()


def test_haproxy_that_refuses_its_configuration_says_why(
    haproxy_binary: str, tmp_path: Path
) -> None:
    spoe = "[test]\nspoe-agent a\n    nonsense\n"
    with (
        pytest.raises(RuntimeError, match="unknown keyword 'nonsense'"),
        HAProxy(haproxy_binary, tmp_path, "127.0.0.1:1", spoe, ""),
    ):
        pass


def test_haproxy_is_run_without_pytest() -> None:
    code = "import sys, spop.testing.haproxy; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
