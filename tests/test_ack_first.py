"""``ack_first=True``: the message is acknowledged at once and handled afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from haproxy import wait_until

from spop import Ack, Agent, AsyncClient, Client, Message, StreamState
from spop.context import current
from spop.counters import Cell

WAIT = 30.0
KINDS = ["blocking", "async"]


class Gate:
    """Handlers that wait for a test, and what they were called with."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.handled: list[Any] = []

    def pass_(self, n: int) -> None:
        assert self.opened.wait(WAIT)
        self.handled.append(n)

    async def pass_async(self, n: int) -> None:
        while not self.opened.is_set():
            await asyncio.sleep(0.005)
        self.handled.append(n)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def agent_of(gate: Gate, kind: str, **options: Any) -> Agent:
    agent = Agent()

    async def asynchronous(n: int) -> None:
        await gate.pass_async(n)

    def plain(n: int) -> None:
        gate.pass_(n)

    agent.message("m", ack_first=True, blocking=kind == "blocking", **options)(
        asynchronous if kind == "async" else plain
    )
    return agent


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ack_comes_before_the_handler_has_ended(gate: Gate, kind: str, event_loop: str) -> None:
    with agent_of(gate, kind).serve_in_background(event_loop=event_loop) as server:
        with Client(str(server.address)) as client:
            for n in range(3):
                assert client.notify("m", n=n).variables == {}
        assert gate.handled == []
        gate.opened.set()
        wait_until(lambda: len(gate.handled) == 3, "the handlers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_server_waits_for_the_handlers(gate: Gate, kind: str) -> None:
    with agent_of(gate, kind).serve_in_background() as server:
        with Client(str(server.address)) as client:
            client.notify("m", n=1)
        threading.Timer(0.1, gate.opened.set).start()
    assert gate.handled == [1]


def test_what_does_not_end_in_the_drain_timeout_is_left(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_of(gate, "async")
    with (
        agent.serve_in_background(drain_timeout=0.1) as server,
        Client(str(server.address)) as client,
    ):
        client.notify("m", n=1)
    assert gate.handled == []
    assert "1 messages that were acknowledged first did not end" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_above_the_bound_is_dropped_counted_and_logged(
    gate: Gate, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with agent_of(gate, kind).serve_in_background(max_queue=2) as server:
        with Client(str(server.address)) as client:
            for n in range(5):
                client.notify("m", n=n)
        gate.opened.set()
        wait_until(lambda: len(gate.handled) == 2, "the handlers")
        assert server.totals().cells[Cell.REJECTED] == 3
    assert "message 'm' is dropped" in caplog.text


def test_a_failure_is_counted_and_hooks_are_called() -> None:
    agent = Agent(on_error={"txn.error": True})
    failed = threading.Event()
    agent.on_error(lambda name, error: failed.set())

    @agent.message("m", ack_first=True)
    async def m() -> None:
        raise OSError("no")

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {}
        assert failed.wait(WAIT)
    assert agent.errors == {"m": 1}


def test_a_timeout_is_a_failure(gate: Gate) -> None:
    agent = agent_of(gate, "async", timeout=0.01)
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("m", n=1)
        wait_until(lambda: agent.errors == {"m": 1}, "the failure")


def test_concurrency_limits_calls(gate: Gate) -> None:
    agent, running, most = Agent(), [0], [0]

    @agent.message("m", ack_first=True, concurrency=2)
    async def m() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.01)
        running[0] -= 1
        gate.handled.append(1)

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        for _ in range(6):
            client.notify("m")
        wait_until(lambda: len(gate.handled) == 6, "the handlers")
    assert most == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_returned_value_is_logged_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    agent, handled = Agent(), []

    async def asynchronous() -> Any:
        handled.append(1)
        return {"txn.x": 1}

    def plain() -> Any:
        handled.append(1)
        return {"txn.x": 1}

    agent.message("m", ack_first=True, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        for _ in range(3):
            assert client.notify("m").variables == {}
        wait_until(lambda: len(handled) == 3, "the handlers")
    assert len([line for line in caplog.messages if "is not used" in line]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_handlers_see_state_message_and_wraps(kind: str) -> None:
    agent, seen = Agent(), []

    @agent.lifespan
    async def word() -> AsyncIterator[dict[str, Any]]:
        yield {"word": "hello"}

    @agent.wrap
    def plain_wrap(call: Callable[[], Any], message: Message) -> Any:
        seen.append(message["n"])
        return call()

    @agent.wrap
    async def async_wrap(call: Callable[[], Any], message: Message) -> Any:
        seen.append(message["n"])
        return await call()

    def look() -> None:
        running = current()
        assert running is not None
        seen.extend([agent.state["word"], running.name])

    async def asynchronous(n: int) -> None:
        look()

    def plain(n: int) -> None:
        look()

    agent.message("m", ack_first=True, blocking=kind == "blocking")(
        asynchronous if kind == "async" else plain
    )
    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        client.notify("m", n=7)
        wait_until(lambda: len(seen) == 3, "the handler")
    assert seen == [7, "hello", "m"]


def test_a_notify_with_other_messages_is_answered_when_those_have_ended(gate: Gate) -> None:
    agent = agent_of(gate, "async")

    @agent.message("other")
    async def other() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"txn.n": 1}

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        ack = client.notify([Message("m", n=1), Message("other")])
        assert ack.variables == {"txn.n": 1}
        ack = client.notify([Message("other"), Message("m", n=2)])
        assert ack.variables == {"txn.n": 1}
        assert gate.handled == []
        gate.opened.set()
        wait_until(lambda: sorted(gate.handled) == [1, 2], "the handlers")


def test_serve_async_waits_for_them(gate: Gate) -> None:
    agent = agent_of(gate, "async")

    async def main() -> None:
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(agent.serve_async("127.0.0.1:0", ready.set_result))
        server = await ready
        async with AsyncClient(str(server.address)) as client:
            assert (await client.notify("m", n=1)).variables == {}
        gate.opened.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert gate.handled == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_agent_test_runs_the_handler_to_its_end(gate: Gate, kind: str) -> None:
    gate.opened.set()
    agent = agent_of(gate, kind)
    assert agent.test("m", n=1) == {}
    assert gate.handled == [1]
    agent.close_test()


# --- what does not fit ---


def test_a_plain_inline_handler_is_refused() -> None:
    with pytest.raises(TypeError, match="ack_first needs a handler that is blocking"):
        Agent().message("m", ack_first=True)(lambda: None)


@pytest.mark.parametrize("option", ["on_error", "on_timeout"])
def test_an_answer_in_place_of_the_handlers_is_refused(option: str) -> None:
    async def m() -> None: ...

    options: dict[str, Any] = {option: {"txn.x": 1}}
    with pytest.raises(TypeError, match="with ack_first nothing is answered"):
        Agent().message("m", ack_first=True, **options)(m)


@pytest.mark.parametrize("annotation", [Ack, StreamState])
def test_parameters_that_answer_are_refused(annotation: Any) -> None:
    async def m(x): ...  # type: ignore[no-untyped-def]

    m.__annotations__["x"] = annotation
    with pytest.raises(TypeError, match="with ack_first nothing is answered"):
        Agent().message("m", ack_first=True)(m)


def test_the_agents_defaults_are_passed_over(gate: Gate) -> None:
    agent = Agent(on_error={"txn.x": 1}, on_timeout={"txn.x": 1})

    @agent.message("m", ack_first=True)
    async def m() -> None: ...

    assert agent.handlers["m"].on_error == agent.handlers["m"].on_timeout == b""
