"""``batch=``: one call of a handler for many messages."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import batch_agent
import batch_elsewhere
import pytest
from haproxy import wait_until
from serving import served, wait_until_serving

from spop import Ack, Agent, AsyncClient, Batch, Client, Message
from spop.context import current, log_ids

KINDS = ["thread", "async"]


def agent_of(kind: str, function: Callable[[list[Message]], Any], **batch: Any) -> Agent:
    agent = Agent(on_error={"txn.error": True}, on_timeout={"txn.late": True})

    async def asynchronous(messages: list[Message]) -> Any:
        await asyncio.sleep(0)
        return function(messages)

    def plain(messages: list[Message]) -> Any:
        return function(messages)

    settings = {"size": 4, "wait": 0.05, **batch}
    agent.message("m", batch=Batch(**settings))(asynchronous if kind == "async" else plain)
    return agent


def ask(agent: Agent, numbers: range, name: str = "m", **options: Any) -> list[dict[str, Any]]:
    """The answers to messages that are sent at once."""

    async def main() -> list[dict[str, Any]]:
        with agent.serve_in_background(**options) as server:
            async with AsyncClient(str(server.address)) as client:
                acks = await asyncio.gather(*(client.notify(name, n=n) for n in numbers))
                return [ack.variables for ack in acks]

    return asyncio.run(main())


def doubled(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"txn.n": m["n"] * 2, "txn.size": len(messages)} for m in messages]


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_message_gets_its_answer(kind: str, event_loop: str) -> None:
    answers = ask(agent_of(kind, doubled), range(10), event_loop=event_loop)
    assert [each["txn.n"] for each in answers] == [n * 2 for n in range(10)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_size_messages_at_most(kind: str) -> None:
    sizes = [each["txn.size"] for each in ask(agent_of(kind, doubled, wait=0.5), range(8))]
    assert sizes == [4] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_messages_are_handled_after_the_wait(kind: str) -> None:
    assert [each["txn.size"] for each in ask(agent_of(kind, doubled), range(3))] == [3] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_is_an_exception_fails_its_message_alone(kind: str) -> None:
    def function(messages: list[Message]) -> list[Any]:
        return [OSError("no") if m["n"] == 1 else {"txn.n": m["n"]} for m in messages]

    agent = agent_of(kind, function)
    assert ask(agent, range(3)) == [{"txn.n": 0}, {"txn.error": True}, {"txn.n": 2}]
    assert agent.errors == {"m": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda messages: [],
        lambda messages: [None] * 9,
        lambda messages: None,
        lambda messages: {"txn.n": 1},
        lambda messages: 1 // 0,
    ],
    ids=["too few", "too many", "None", "a dict", "raises"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_fails_all_its_messages(
    kind: str, function: Callable[[list[Message]], Any]
) -> None:
    agent = agent_of(kind, function)
    assert ask(agent, range(4)) == [{"txn.error": True}] * 4
    assert agent.errors == {"m": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_none_is_one_of_its_message(kind: str) -> None:
    agent = agent_of(kind, lambda messages: [None, "text", {"txn.n": 1}, {"txn.n": 1.5}])
    error, none = {"txn.error": True}, dict[str, Any]()
    assert ask(agent, range(4)) == [none, error, {"txn.n": 1}, error]


def test_each_message_has_its_timeout() -> None:
    agent = Agent(on_timeout={"txn.late": True})

    @agent.message("m", batch=Batch(size=2, wait=0.01), timeout=0.05)
    async def m(messages: list[Message]) -> list[Any]:
        await asyncio.sleep(60)
        return [None] * len(messages)

    assert ask(agent, range(2), drain_timeout=0) == [{"txn.late": True}] * 2


def test_wraps_are_around_each_message() -> None:
    agent, seen = agent_of("thread", doubled), []

    @agent.wrap
    async def wrap(call: Callable[[], Any], message: Message) -> Any:
        seen.append(message["n"])
        return {**await call(), "txn.size": 0}

    assert ask(agent, range(2)) == [{"txn.n": 0, "txn.size": 0}, {"txn.n": 2, "txn.size": 0}]
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_agent_test_calls_it_with_one_message(kind: str) -> None:
    agent = agent_of(kind, doubled)
    assert agent.test("m", n=4) == {"txn.n": 8, "txn.size": 1}
    agent.close_test()


@pytest.mark.parametrize("kind", KINDS)
def test_agent_test_has_the_wraps_of_a_server(kind: str) -> None:
    agent = agent_of(kind, doubled)

    @agent.wrap
    async def wrap(call: Callable[[], Any], message: Message) -> Any:
        return {**await call(), "txn.size": 0}

    assert agent.test("m", n=4) == {"txn.n": 8, "txn.size": 0}
    agent.close_test()


@pytest.mark.parametrize("kind", KINDS)
def test_agent_test_raises_an_answer_that_is_an_exception(kind: str) -> None:
    agent = agent_of(kind, lambda messages: [ValueError("odd")])
    with pytest.raises(ValueError, match="odd"):
        agent.test("m", n=4)
    agent.close_test()


@pytest.mark.usefixtures("context_filter")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 4], ids=["late", "full"])
def test_its_log_records_are_those_of_no_single_message(
    kind: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    def function(messages: list[Message]) -> list[None]:
        logging.getLogger("mine").warning("%s", current())
        return [None] * len(messages)

    agent = agent_of(kind, function)
    log_ids(agent, "n")
    ask(agent, range(count))
    records = [each for each in caplog.records if each.name == "mine"]
    assert {each.getMessage() for each in records} == {"None"}
    assert [each.spop_ids for each in records] == [{}] * len(records)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_state_of_its_loop(kind: str) -> None:
    agent = agent_of(kind, lambda messages: [{"txn.n": agent.state["n"]} for _ in messages])

    @agent.lifespan
    async def resources() -> AsyncIterator[dict[str, Any]]:
        yield {"n": 7}

    assert ask(agent, range(2), threads=2) == [{"txn.n": 7}] * 2


# --- processes ---


def test_a_process_imports_the_handler_and_runs_the_lifespans() -> None:
    answers = ask(batch_agent.agent, range(8), "double")
    assert [each["txn.n"] for each in answers] == [n * 10 for n in range(8)]
    assert {each["txn.pid"] for each in answers} & {os.getpid()} == set()
    assert {each["txn.size"] for each in answers} == {4}


def test_a_process_has_the_settings_of_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_agent.agent, "config", batch_agent.Settings(factor=3))
    assert ask(batch_agent.agent, range(2, 3), "double")[0]["txn.n"] == 6


def test_a_process_that_can_t_begin_is_a_start_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_agent.agent, "config", batch_agent.Settings(begins=False))
    reason = r"batch_agent\.double could not begin: FileNotFoundError: there is no model"
    with pytest.raises(Exception, match=reason):
        batch_agent.agent.serve_in_background().start()


def test_processes_end_with_the_server() -> None:
    (pid,) = {each["txn.pid"] for each in ask(batch_agent.agent, range(1), "double")}
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/cmdline"), "the end of the process")


def test_a_worker_that_stops_waits_for_the_lifespans_of_its_processes(tmp_path: Path) -> None:
    """A process that it does not wait for is killed, and leaves semaphores, which Python warns of."""
    address, end = f"unix:{tmp_path}/agent.sock", tmp_path / "end"
    target = f"{batch_agent.__file__}:agent"
    with served("--bind", address, target=target, BATCH_END=str(end)) as process:
        wait_until_serving(process)
        with Client(address) as client:
            client.notify("double", n=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert end.exists()
        process._reader.join(15)  # The process that warns ends last.
        assert "resource_tracker" not in process.log


def test_processes_end_with_a_worker_that_is_killed() -> None:
    target = f"{batch_agent.__file__}:agent"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with served("--bind", address, target=target) as process:
        wait_until_serving(process)
        with Client(address) as client:
            pid = client.notify("double", n=1).variables["txn.pid"]
        status = Path(f"/proc/{pid}/status").read_text()
        os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
        wait_until(lambda: ended(pid), "the end of the process")


def ended(pid: Any) -> bool:
    """A process is gone, or nobody has asked how it ended."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_exceptions_come_back_from_a_process() -> None:
    answers = ask(batch_agent.agent, range(12, 14), "double")
    assert answers[0]["txn.n"] == 120
    assert answers[1] == {"txn.error": True}


def test_the_log_has_the_traceback_of_a_process(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(batch_agent.agent, range(1), "fails") == [{"txn.error": True}]
    assert "in fails" in caplog.text
    assert "KeyError: 'nowhere'" in caplog.text


def test_an_exception_that_can_not_be_sent_fails_its_message_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd, even = ask(batch_agent.agent, range(1, 3), "odd")
    assert (odd, even) == ({"txn.error": True}, {"txn.n": 2})
    assert "OddError: 1 is odd" in caplog.text


def test_a_traced_handler_runs_in_a_process_with_its_state() -> None:
    pytest.importorskip("opentelemetry")
    (answer,) = ask(batch_agent.traced, range(1, 2), "triple")
    assert answer == {"txn.n": 3}


def test_a_process_has_the_agent_of_another_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_elsewhere.agent, "config", batch_elsewhere.Settings(factor=5))
    assert ask(batch_elsewhere.agent, range(1, 2)) == [{"txn.n": 5, "txn.begun": True}]


def test_a_process_that_dies_is_replaced() -> None:
    async def main() -> None:
        with batch_agent.agent.serve_in_background() as server:
            async with AsyncClient(str(server.address)) as client:
                for _ in range(2):
                    assert (await client.notify("dies", n=0)).variables == {"txn.error": True}
                    assert (await client.notify("dies", n=1)).variables == {"txn.n": 1}

    asyncio.run(main())


def test_a_handler_that_no_process_can_find_is_a_start_error() -> None:
    with pytest.raises(TypeError, match="needs a function of a module that can be imported"):
        batch_agent.wrong().serve_in_background().start()


# --- what does not fit ---


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 1, "wait": -1}, {"size": 1, "workers": 0},
                {"size": 1, "executor": "fiber"}, {"size": 1, "wait": math.nan},
                {"size": 1, "wait": math.inf}],
)  # fmt: skip
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Batch(**options)


def one(message: Message) -> None: ...


def no_list(messages: list[Message]) -> dict[str, int]:
    return {}


def two(messages: list[Message], ack: Ack) -> list[Any]:
    return []


@pytest.mark.parametrize("function", [one, no_list, two])
def test_signatures_that_take_no_batch(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"handler {function.__name__} "):
        Agent().message("m", batch=Batch(size=1))(function)


@pytest.mark.parametrize("options", [{"blocking": True}, {"ack_first": True}])
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="batch can't be combined with"):
        Agent().message("m", batch=Batch(size=1), **options)(doubled)


def test_an_async_handler_runs_in_no_process() -> None:
    async def m(messages: list[Message]) -> list[Any]:
        return []

    with pytest.raises(TypeError, match="an async handler can't run in a process"):
        Agent().message("m", batch=Batch(size=1, executor="process"))(m)
