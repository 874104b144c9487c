"""Whatever is raised in a batch, after an ACK, behind a cache or in a periodic call: it is a failure
of that call alone, counted once, and all go on."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import batch_agent
import pytest
from haproxy import wait_until
from test_failures import every_error

from spop import Agent, Batch, Cache, Client, Message
from spop.server import batches

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


# --- calls that cancel tasks ---


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancel_itself_in_a_batch(messages: list[Message]) -> Any:
    await cancel_itself()


@pytest.mark.parametrize(
    "options",
    [{"batch": Batch(size=1)}, {"cache": Cache(ttl=60, size=9)}, {"ack_first": True}],
    ids=["batch", "cache", "ack_first"],
)
def test_a_call_that_cancels_its_task_fails(options: dict[str, Any]) -> None:
    agent = Agent(on_error=ERROR)
    agent.message("m", **options)(cancel_itself_in_a_batch if "batch" in options else cancel_itself)
    expected = {} if "ack_first" in options else ERROR
    with agent.serve_in_background() as server, Client(str(server.address), timeout=15) as client:
        for _ in range(2):
            assert client.notify("m").variables == expected
        wait_until(lambda: agent.errors == {"m": 2}, "the failures")


def test_a_periodic_call_that_cancels_its_task_is_made_again() -> None:
    agent, again = new_agent(), threading.Event()

    @agent.every(0.005)
    async def periodic() -> None:
        if agent.errors["every periodic"] >= 2:
            again.set()
        await cancel_itself()

    with agent.serve_in_background():
        assert again.wait(15)


class Uneven(list[Any]):
    """It has one element and iterates over none."""

    def __iter__(self) -> Any:
        return iter(())


def test_a_list_of_answers_that_iterates_otherwise_than_it_counts_fails() -> None:
    agent = new_agent()
    agent.message("m", batch=Batch(size=1))(lambda messages: Uneven([None]))
    with agent.serve_in_background() as server, Client(str(server.address), timeout=15) as client:
        assert client.notify("m").variables == ERROR


# --- the system has no thread or process ---


def test_calls_are_made_once_the_system_has_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then they fail, as often as they come, and are not made later."""
    agent, called, refused = new_agent(), Counter[str](), threading.Event()
    start = threading.Thread.start

    def start_none(thread: threading.Thread) -> None:
        if thread.name.startswith(("spop-calls", "spop-batch", "asyncio")):
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def count(name: str) -> dict[str, Any]:
        called[name] += 1
        return {"txn.made": True}

    agent.message("cached", blocking=True, cache=Cache(ttl=60, size=9))(lambda n: count("cached"))
    agent.message("batch", batch=Batch(size=1))(lambda messages: [count("batch")])
    agent.message("later", blocking=True, ack_first=True)(lambda: count("later") and None)
    agent.every(0.005)(lambda: count("every") and None)
    monkeypatch.setattr(threading.Thread, "start", start_none)
    with (
        agent.serve_in_background(pool_size=2) as server,
        Client(str(server.address), timeout=15) as client,
    ):
        for n in range(5):
            assert client.notify("cached", n=n).variables == ERROR
            assert client.notify("batch").variables == ERROR
            client.notify("later")
        every = "every <lambda>"
        wait_until(lambda: agent.errors["later"] == 5 and agent.errors[every] > 1, "the failures")
        assert refused.is_set()
        assert not called
        monkeypatch.setattr(threading.Thread, "start", start)
        for n in range(5):
            assert client.notify("cached", n=n).variables == {"txn.made": True}
            assert client.notify("batch").variables == {"txn.made": True}
            client.notify("later")
        wait_until(lambda: called["later"] == 5 and called["every"] > 0, "the calls")
        assert called["cached"] == called["batch"] == 5


def test_a_pool_of_processes_is_made_as_soon_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with (
        batch_agent.agent.serve_in_background() as server,
        Client(str(server.address), timeout=60) as client,
    ):
        monkeypatch.setattr(batches, "_processes", refuse)
        for _ in range(2):  # In the first a process dies, for the second there is none.
            assert client.notify("dies", n=0).variables == {"txn.error": True}
        monkeypatch.undo()
        assert client.notify("dies", n=1).variables == {"txn.n": 1}
