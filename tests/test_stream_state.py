"""`StreamState`: a small dict that travels with the stream, in a variable of HAProxy."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from spop import Ack, Agent, Client, HandlerError, Message, StreamState
from spop.state import States

KINDS = ["inline", "blocking", "async"]


def agent_of(kind: str, function: Callable[..., Any]) -> Agent:
    """An agent whose handler of message "m" is given a state and an integer."""
    agent = Agent()

    async def asynchronous(state: StreamState, n: int = 0) -> Any:
        return function(state, n)

    def plain(state: StreamState, n: int = 0) -> Any:
        return function(state, n)

    agent.message("m", blocking=kind == "blocking")(asynchronous if kind == "async" else plain)
    return agent


def answer(agent: Agent, **args: Any) -> dict[str, Any]:
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        return client.notify("m", **args).variables


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_message_puts_in_the_next_one_finds(kind: str) -> None:
    def count(state: StreamState, n: int) -> dict[str, Any]:
        state["n"] = state.get("n", 0) + 1
        return {"txn.n": state["n"]}

    agent = agent_of(kind, count)
    first = answer(agent)
    assert first["txn.n"] == 1
    second = answer(agent, state=first["txn.state"], n=1)
    assert second["txn.n"] == 2


def test_values_are_those_of_spop() -> None:
    values: dict[str, Any] = {
        "null": None, "bool": True, "int": -5, "text": "ä", "bytes": b"\0", "ip": IPv4Address(1),
    }  # fmt: skip

    def put(state: StreamState, n: int) -> None:
        state.update(values)

    packed = answer(agent_of("inline", put))["txn.state"]
    assert StreamState.unpack(packed) == values
    assert StreamState(values).pack() == packed


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_does_not_change_is_not_answered(kind: str) -> None:
    agent = agent_of(kind, lambda state, n: {"txn.n": len(state)})
    assert answer(agent) == {"txn.n": 0}
    assert answer(agent, state=StreamState(a=1).pack()) == {"txn.n": 1}


@pytest.mark.parametrize("value", [None, b""], ids=["NULL", "empty"])
def test_null_and_nothing_are_an_empty_state(value: Any) -> None:
    assert answer(agent_of("inline", lambda state, n: {"txn.n": len(state)}), state=value) == {
        "txn.n": 0
    }


@pytest.mark.parametrize("value", ["text", 5, True, b"\xff\xff", b"\x05a"], ids=repr)
def test_what_can_t_be_read_is_an_empty_state_counted_and_logged(
    value: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = States()
    monkeypatch.setattr("spop.handlers.STATES", states)
    assert answer(agent_of("inline", lambda state, n: {"txn.n": len(state)}), state=value) == {
        "txn.n": 0
    }
    assert states.unreadable == 1
    assert "message 'm': argument state is no state" in caplog.text


def test_a_state_that_is_emptied_is_answered() -> None:
    agent = agent_of("inline", lambda state, n: state.clear())
    assert answer(agent, state=StreamState(a=1).pack()) == {"txn.state": b""}


@pytest.mark.parametrize("value", [{"a": 1}, [1], 1.5, object()], ids=str)
def test_a_value_that_is_none_of_spop_is_a_failure_of_the_message(value: Any) -> None:
    def put(state: StreamState, n: int) -> None:
        state["x"] = value

    with pytest.raises(TypeError):
        agent_of("inline", put).test("m")


def test_a_handler_that_fails_answers_no_state() -> None:
    agent = Agent(on_error={"txn.error": True})

    @agent.message("m")
    def m(state: StreamState) -> None:
        state["a"] = 1
        raise OSError("no")

    assert answer(agent) == {"txn.error": True}


def test_other_parameters_keep_their_places() -> None:
    agent = Agent()

    @agent.message("m")
    def m(a: int, first: StreamState, b: int, ack: Ack, second: StreamState, *, c: int = 3) -> None:
        first["n"], second["n"] = a * 10 + b, c
        ack.set("txn", "done", True)

    answered = agent.test("m", b=2, a=1)
    assert answered.pop("txn.done") is True
    assert StreamState.unpack(answered.pop("txn.first")) == {"n": 12}  # type: ignore[arg-type]
    assert StreamState.unpack(answered.pop("txn.second")) == {"n": 3}  # type: ignore[arg-type]
    assert not answered


def test_arguments_are_checked_as_without_a_state() -> None:
    agent = agent_of("inline", lambda state, n: None)
    with pytest.raises(HandlerError, match="argument n is STRING"):
        agent.test("m", n="x")


def test_the_variable_is_one_that_the_handler_sets() -> None:
    agent = Agent()

    @agent.message("m", sets=["txn.score"])
    def m(state: StreamState) -> None: ...

    assert agent.handlers["m"].sets == ("txn.score", "txn.state")


def test_of_several_messages_the_last_answer_stands() -> None:
    agent = Agent()

    @agent.message("a")
    def a(state: StreamState) -> None:
        state["n"] = 1

    @agent.message("b")
    def b(state: StreamState) -> None:
        state["n"] = 2

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        ack = client.notify([Message("a"), Message("b")])
    assert StreamState.unpack(ack.variables["txn.state"]) == {"n": 2}  # type: ignore[arg-type]
