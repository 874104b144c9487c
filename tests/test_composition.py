"""Agents made of agents, and functions around handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from spop import Ack, Agent, Client, Message

KINDS = ["inline", "blocking", "async"]


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("inline")
    def inline(n: int = 0) -> dict[str, Any]:
        return {"txn.n": n}

    @agent.message("blocking", blocking=True)
    def blocking(n: int = 0) -> dict[str, Any]:
        return {"txn.n": n}

    @agent.message("async")
    async def asynchronous(n: int = 0) -> dict[str, Any]:
        return {"txn.n": n}

    return agent


def answers(agent: Agent, name: str, **args: Any) -> dict[str, Any]:
    """What a server and `Agent.test` answer: the same."""
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        served = client.notify(name, **args).variables
    assert agent.test(name, **args) == served
    agent.close_test()
    return served


# --- wrap ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrap_gets_the_call_and_the_message(agent: Agent, kind: str) -> None:
    @agent.wrap
    def plain(call: Callable[[], Any], message: Message) -> Any:
        return {**call(), "txn.name": message.name, "txn.arg": message["n"]}

    @agent.wrap
    async def asynchronous(call: Callable[[], Any], message: Message) -> Any:
        return {**await call(), "txn.name": message.name, "txn.arg": message["n"]}

    assert answers(agent, kind, n=7) == {"txn.n": 7, "txn.name": kind, "txn.arg": 7}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_wrap_is_the_outermost(agent: Agent, kind: str) -> None:
    def add(digit: int) -> None:
        @agent.wrap
        def plain(call: Callable[[], Any], message: Message) -> Any:
            return {"txn.n": call()["txn.n"] * 10 + digit}

        @agent.wrap
        async def asynchronous(call: Callable[[], Any], message: Message) -> Any:
            return {"txn.n": (await call())["txn.n"] * 10 + digit}

    for digit in (3, 2, 1):
        add(digit)
    assert answers(agent, kind, n=0) == {"txn.n": 123}


def test_a_wrap_may_answer_without_a_call(agent: Agent) -> None:
    @agent.wrap
    def never(call: Callable[[], Any], message: Message) -> Any:
        return {"txn.n": -1}

    assert answers(agent, "inline", n=7) == {"txn.n": -1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_failure_of_a_wrap_is_one_of_its_message(kind: str) -> None:
    agent = Agent(on_error={"txn.error": True})

    @agent.wrap
    def plain(call: Callable[[], Any], message: Message) -> Any:
        raise OSError("no")

    @agent.wrap
    async def asynchronous(call: Callable[[], Any], message: Message) -> Any:
        raise OSError("no")

    @agent.message("inline")
    def inline() -> None: ...

    @agent.message("blocking", blocking=True)
    def blocking() -> None: ...

    @agent.message("async")
    async def asynchronous_handler() -> None: ...

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify(kind).variables == {"txn.error": True}
    assert agent.errors == {kind: 1}


def test_handlers_with_keyword_only_parameters_and_acks_are_wrapped(agent: Agent) -> None:
    @agent.message("m")
    def m(first: int, ack: Ack, message: Message, *, second: int = 2) -> None:
        ack.set("txn", "sum", first + second)

    @agent.wrap
    def wrap(call: Callable[[], Any], message: Message) -> Any:
        return call()

    assert answers(agent, "m", first=1) == {"txn.sum": 3}


def test_a_wrap_is_a_function() -> None:
    with pytest.raises(TypeError, match="wrap: a function is needed"):
        Agent().wrap(1)  # type: ignore[arg-type]


# --- include ---


@pytest.mark.parametrize("kind", KINDS)
def test_included_handlers_answer_under_the_prefix(agent: Agent, kind: str) -> None:
    outer = Agent()
    outer.include(agent, prefix="in-")
    assert answers(outer, f"in-{kind}", n=3) == {"txn.n": 3}
    assert list(outer.handlers) == ["in-inline", "in-blocking", "in-async"]


def test_an_included_agent_keeps_its_defaults() -> None:
    inner, outer = Agent(on_error={"txn.from": "inner"}), Agent(on_error={"txn.from": "outer"})
    for each, name in ((inner, "i"), (outer, "o")):

        @each.message(name)
        def fails() -> None:
            raise OSError("no")

    outer.include(inner)
    with outer.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("i").variables == {"txn.from": "inner"}
        assert client.notify("o").variables == {"txn.from": "outer"}


def test_what_is_added_to_the_other_later_is_not_included(agent: Agent) -> None:
    outer = Agent()
    outer.include(agent)
    agent.message("later")(lambda: None)
    assert "later" not in outer.handlers


def test_the_others_wraps_are_for_its_handlers_inside_of_ones_own(agent: Agent) -> None:
    outer = Agent()
    outer.message("own")(lambda: {"txn.n": 0})

    @agent.wrap
    def inner(call: Callable[[], Any], message: Message) -> Any:
        return {"txn.n": call()["txn.n"] * 10 + 1}

    outer.include(agent)

    @outer.wrap
    def outermost(call: Callable[[], Any], message: Message) -> Any:
        return {"txn.n": call()["txn.n"] * 10 + 2}

    assert answers(outer, "inline") == {"txn.n": 12}
    assert answers(outer, "own") == {"txn.n": 2}


def test_hooks_and_lifespans_are_included() -> None:
    inner, outer, seen = Agent(), Agent(), []

    @inner.on_connect
    def connected(peer: Any) -> None:
        seen.append("connected")

    @inner.on_disconnect
    def disconnected(peer: Any, reason: Any) -> None:
        seen.append("disconnected")

    @inner.on_error
    def failed(name: str, error: BaseException) -> None:
        seen.append(f"{name} failed")

    @inner.lifespan
    async def resource() -> AsyncIterator[dict[str, Any]]:
        yield {"word": "hello"}

    @inner.message("m")
    def m() -> dict[str, Any]:
        return {"txn.word": inner.state["word"], "txn.same": outer.state["word"]}

    @inner.message("fails")
    def fails() -> None:
        raise OSError("no")

    outer.include(inner)
    outer.include(inner, prefix="again-")
    with outer.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {"txn.word": "hello", "txn.same": "hello"}
        client.notify("fails")
    assert sorted(set(seen)) == ["connected", "disconnected", "fails failed"]


def test_a_message_with_two_handlers_is_refused(agent: Agent) -> None:
    outer = Agent()
    outer.include(agent)
    with pytest.raises(ValueError, match="'inline' has a handler already"):
        outer.include(agent)


def test_an_agent_does_not_include_itself(agent: Agent) -> None:
    with pytest.raises(ValueError, match="can't include itself"):
        agent.include(agent)
