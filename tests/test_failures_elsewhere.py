"""Whatever is raised in a batch, after an ACK, behind a cache or in a periodic call: it is a failure
of that call alone, counted once, and all go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from haproxy import wait_until
from test_failures import every_error

from spop import Agent, Batch, Cache, Client, Message

Fail = Callable[..., Any]
KINDS = ["inline", "blocking", "async"]
ERROR = {"txn.error": True}


def new_agent() -> Agent:
    agent = Agent(on_error=ERROR)
    agent.message("good")(lambda: {"txn.good": True})
    return agent


@every_error
@pytest.mark.parametrize("kind", ["thread", "async"])
def test_a_batch_fails_all_its_messages(kind: str, fail: Fail) -> None:
    agent = new_agent()

    async def asynchronous(messages: list[Message]) -> Any:
        return fail()

    def plain(messages: list[Message]) -> Any:
        return fail()

    agent.message("m", batch=Batch(size=1))(asynchronous if kind == "async" else plain)
    with agent.serve_in_background() as server, Client(str(server.address), timeout=5) as client:
        for _ in range(2):
            assert client.notify("m").variables == ERROR
        assert client.notify("good").variables == {"txn.good": True}
    assert agent.errors == {"m": 2}


@every_error
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_what_is_acknowledged_first_is_counted(kind: str, fail: Fail) -> None:
    agent = new_agent()

    async def asynchronous() -> Any:
        return fail()

    def plain() -> Any:
        return fail()

    agent.message("m", ack_first=True, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with agent.serve_in_background() as server, Client(str(server.address), timeout=5) as client:
        for _ in range(2):
            assert client.notify("m").variables == {}
        wait_until(lambda: agent.errors == {"m": 2}, "the failures")
        assert client.notify("good").variables == {"txn.good": True}


@every_error
@pytest.mark.parametrize("kind", KINDS)
def test_the_call_of_a_cached_handler_is_answered_with_on_error(kind: str, fail: Fail) -> None:
    agent = new_agent()

    async def asynchronous(n: int) -> Any:
        return fail()

    def plain(n: int) -> Any:
        return fail()

    agent.message("m", cache=Cache(ttl=60, size=9), blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with agent.serve_in_background() as server, Client(str(server.address), timeout=5) as client:
        for _ in range(2):
            assert client.notify("m", n=1).variables == ERROR
        assert client.notify("good").variables == {"txn.good": True}
    assert agent.errors == {"m": 2}


@every_error
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_periodic_call_goes_on(kind: str, fail: Fail) -> None:
    agent, failed = new_agent(), threading.Event()

    async def asynchronous() -> None:
        fail()

    def plain() -> None:
        fail()

    agent.every(0.005)(asynchronous if kind == "async" else plain)
    name = f"every {'asynchronous' if kind == 'async' else 'plain'}"
    agent.on_error(lambda *_: failed.set() if agent.errors[name] >= 3 else None)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert failed.wait(30)
        assert client.notify("good").variables == {"txn.good": True}
