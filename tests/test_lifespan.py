"""Lifespans and periodic calls: in every kind of server, and in `Agent.test`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from haproxy import wait_until

from spop import Agent, AsyncClient, Client

WAIT = 30.0


class Log:
    """What happened, in order. Threads write to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def wait_for(self, line: str, count: int = 1) -> None:
        deadline = time.monotonic() + WAIT
        while self.lines.count(line) < count:
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.01)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def agent(log: Log) -> Agent:
    """An agent whose handlers of each kind answer with what its lifespans have yielded."""
    agent = Agent()

    @agent.lifespan
    def worker() -> Iterator[dict[str, Any]]:
        log("worker begins")
        yield {"worker": "w"}
        log("worker ends")

    @agent.lifespan
    async def loop() -> AsyncIterator[dict[str, Any]]:
        log("loop begins")
        yield {"loop": id(asyncio.get_running_loop()), "thread": threading.get_ident()}
        log("loop ends")

    def answer() -> dict[str, Any]:
        return {"txn.worker": agent.state["worker"], "txn.thread": str(agent.state["thread"])}

    @agent.message("inline")
    def inline() -> dict[str, Any]:
        return answer()

    @agent.message("blocking", blocking=True)
    def blocking() -> dict[str, Any]:
        return answer()

    @agent.message("async")
    async def asynchronous() -> dict[str, Any]:
        same = agent.state["loop"] == id(asyncio.get_running_loop())
        return {**answer(), "txn.same": same}

    @agent.on_disconnect
    def gone(*_: object) -> None:
        log("connection ends")

    return agent


KINDS = ["inline", "blocking", "async"]


# --- lifespans ---


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_handlers_see_the_state_of_their_loop(agent: Agent, kind: str, event_loop: str) -> None:
    with (
        agent.serve_in_background(event_loop=event_loop) as server,
        Client(str(server.address)) as client,
    ):
        answer = client.notify(kind).variables
    assert answer["txn.worker"] == "w"
    assert answer.get("txn.same", True) is True


def test_lifespans_end_after_the_last_connection(agent: Agent, log: Log) -> None:
    with agent.serve_in_background() as server:
        client = Client(str(server.address))
        client.notify("inline")
    client.close()
    assert log.lines == [
        "worker begins", "loop begins", "connection ends", "loop ends", "worker ends"
    ]  # fmt: skip


def test_each_loop_has_a_lifespan_of_its_own(agent: Agent, log: Log) -> None:
    with agent.serve_in_background(threads=3):
        pass
    assert sorted(log.lines) == sorted(
        ["worker begins", *["loop begins"] * 3, *["loop ends"] * 3, "worker ends"]
    )


def test_an_agent_without_async_handlers_may_have_async_lifespans() -> None:
    agent = Agent()

    @agent.lifespan
    async def numbers() -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(0)
        yield {"number": 42}

    @agent.message("m")
    def m() -> dict[str, Any]:
        return {"txn.n": agent.state["number"]}

    with agent.serve_in_background() as server, Client(str(server.address)) as client:
        assert client.notify("m").variables == {"txn.n": 42}


def test_lifespans_begin_in_order_and_end_in_the_opposite_one(log: Log) -> None:
    agent = Agent()

    def lifespan(name: str) -> Callable[[], AsyncIterator[None]]:
        async def function() -> AsyncIterator[None]:
            log(f"{name} begins")
            yield
            log(f"{name} ends")

        return function

    for name in "abc":
        agent.lifespan(lifespan(name))
    with agent.serve_in_background():
        pass
    assert log.lines == [
        "a begins", "b begins", "c begins", "c ends", "b ends", "a ends"
    ]  # fmt: skip


def test_task_groups_and_timeouts_may_span_a_lifespan(log: Log) -> None:
    agent = Agent()

    @agent.lifespan
    async def resources() -> AsyncIterator[None]:
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(WAIT))
            yield
            task.cancel()
        log("ends")

    with agent.serve_in_background():
        pass
    assert log.lines == ["ends"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["worker", "loop"])
def test_a_lifespan_that_fails_to_begin_is_a_start_error(log: Log, asynchronous: bool) -> None:
    agent = Agent()

    @agent.lifespan
    def outer() -> Iterator[None]:
        yield
        log("outer ends")

    def fails() -> Iterator[None]:
        raise OSError("no database")
        yield

    async def fails_async() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    agent.lifespan(fails_async if asynchronous else fails)
    server = agent.serve_in_background()
    with pytest.raises(OSError, match="no database") as caught:
        server.start()
    assert any(entry.name in ("fails", "fails_async") for entry in caught.traceback)
    assert log.lines == ["outer ends"]


def test_a_key_that_two_lifespans_yield_is_a_start_error() -> None:
    agent = Agent()
    agent.lifespan(_yields_a)
    agent.lifespan(_yields_a_async)
    with pytest.raises(ValueError, match=r"lifespan _yields_a_async .*yields the key 'a'"):
        agent.serve_in_background().start()


def _yields_a() -> Iterator[dict[str, Any]]:
    yield {"a": 1}


async def _yields_a_async() -> AsyncIterator[dict[str, Any]]:
    yield {"a": 1}


def test_a_lifespan_that_yields_no_dict_is_a_start_error() -> None:
    agent = Agent()

    @agent.lifespan
    def wrong() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="yields int; a dict or None is needed"):
        agent.serve_in_background().start()


def test_a_lifespan_that_is_no_generator_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="is no generator"):
        Agent().lifespan(lambda: None)


def test_there_is_no_state_outside_of_handlers(agent: Agent) -> None:
    with agent.serve_in_background(), pytest.raises(RuntimeError, match="in handlers"):
        agent.state  # noqa: B018


def losing(fails: threading.Event) -> Agent:
    """An agent whose lifespan loses its connection then."""
    agent = Agent()

    @agent.lifespan
    async def group() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            yield

    async def fail() -> None:
        await asyncio.to_thread(fails.wait)
        raise OSError("the connection is lost")

    return agent


def test_a_lifespan_that_ends_by_itself_ends_the_server() -> None:
    fails = threading.Event()
    server = losing(fails).serve_in_background()
    server.start()
    fails.set()
    deadline = time.monotonic() + WAIT
    while server.failed is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stop()
    assert isinstance(server.failed, ExceptionGroup)


# --- on an event loop that exists ---


@pytest.mark.parametrize("kind", KINDS)
def test_serve_async_runs_lifespans_on_its_loop(agent: Agent, log: Log, kind: str) -> None:
    async def main() -> dict[str, Any]:
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(agent.serve_async("127.0.0.1:0", ready.set_result))
        server = await ready
        async with AsyncClient(str(server.address)) as client:
            answer = (await client.notify(kind)).variables
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return {**answer, "loop": id(asyncio.get_running_loop())}

    answer = asyncio.run(main())
    assert answer["txn.worker"] == "w"
    assert answer["txn.thread"] == str(threading.get_ident())
    assert log.lines[:2] == ["worker begins", "loop begins"]
    assert log.lines[-2:] == ["loop ends", "worker ends"]


def test_serve_async_raises_what_a_lifespan_raises() -> None:
    agent = Agent()

    @agent.lifespan
    async def fails() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database"):
        asyncio.run(agent.serve_async("127.0.0.1:0"))


def test_serve_async_raises_what_ends_a_lifespan() -> None:
    fails = threading.Event()
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(losing(fails).serve_async("127.0.0.1:0", lambda _: fails.set()))
    assert isinstance(caught.value.exceptions[0], OSError)


ENDS = [SystemExit(3), KeyboardInterrupt()]


def _ends_with(error: BaseException) -> Agent:
    agent = Agent()

    @agent.lifespan
    async def fails() -> AsyncIterator[None]:
        raise error
        yield

    @agent.message("m")
    def m() -> None: ...

    return agent


@pytest.mark.parametrize("error", ENDS, ids=repr)
@pytest.mark.parametrize("server", ["background", "async", "test"])
def test_a_system_exit_of_a_lifespan_is_raised_and_leaves_no_task(
    caplog: pytest.LogCaptureFixture, server: str, error: BaseException
) -> None:
    agent = _ends_with(error)
    with pytest.raises(type(error)):
        if server == "background":
            agent.serve_in_background().start()
        elif server == "async":
            asyncio.run(agent.serve_async("127.0.0.1:0"))
        else:
            agent.test("m")
    gc.collect()
    assert [each.message for each in caplog.records if each.name == "asyncio"] == []


# --- every ---


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_periodic_calls_see_the_state(log: Log, asynchronous: bool) -> None:
    agent = Agent()

    @agent.lifespan
    async def word() -> AsyncIterator[dict[str, Any]]:
        yield {"word": "hello"}

    async def say_async() -> None:
        log(agent.state["word"])

    agent.every(0.01)(say_async if asynchronous else lambda: log(agent.state["word"]))
    with agent.serve_in_background():
        log.wait_for("hello", 3)


def test_a_periodic_call_is_never_made_twice_at_once(log: Log) -> None:
    agent = Agent()
    running: list[int] = []

    @agent.every(0.001)
    async def slow() -> None:
        running.append(1)
        log(f"{len(running)} at once")
        await asyncio.sleep(0.02)
        running.pop()

    with agent.serve_in_background():
        log.wait_for("1 at once", 5)
    assert set(log.lines) == {"1 at once"}


def test_failures_of_periodic_calls_are_counted_and_do_not_end_them(log: Log) -> None:
    agent = Agent()

    @agent.on_error
    def failed(name: str, error: BaseException) -> None:
        log(f"{name}: {error}")

    @agent.every(0.01)
    def refresh() -> None:
        raise OSError("no feed")

    with agent.serve_in_background():
        log.wait_for("every refresh: no feed", 3)
    assert agent.errors["every refresh"] >= 3


class Says:
    def __init__(self, log: Log) -> None:
        self._log = log

    async def __call__(self) -> None:
        self._log("said")


def test_an_object_whose_call_is_async_is_called_again_and_again(log: Log) -> None:
    agent = Agent()
    agent.every(0.01)(Says(log))
    with agent.serve_in_background():
        log.wait_for("said", 3)


def test_a_periodic_call_that_gives_a_coroutine_fails(log: Log) -> None:
    agent = Agent()
    agent.on_error(lambda name, error: log(str(error)))
    agent.every(0.01)(lambda: Says(log)())
    with agent.serve_in_background():
        wait_until(lambda: any("returned a coroutine" in line for line in log.lines), "the failure")
    assert "said" not in log.lines


def test_once_is_in_the_first_loop_of_a_worker_alone(log: Log) -> None:
    agent = Agent()

    @agent.every(0.01, once=True)
    async def once() -> None:
        log(f"once in {threading.get_ident()}")

    @agent.every(0.01)
    async def each() -> None:
        log(f"each in {threading.get_ident()}")

    with agent.serve_in_background(threads=2):
        deadline = time.monotonic() + WAIT
        while len({line for line in log.lines if line.startswith("each")}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while not any(line.startswith("once") for line in log.lines):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len({line for line in log.lines if line.startswith("once")}) == 1


@pytest.mark.parametrize(
    "arguments", [{"seconds": 0}, {"seconds": -1}, {"seconds": 1, "jitter": 2}]
)
def test_times_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="every"):
        Agent().every(**arguments)


def test_a_periodic_call_takes_no_arguments() -> None:
    with pytest.raises(TypeError, match="missing a required argument"):
        Agent().every(1.0)(lambda x: None)


# --- Agent.test ---


@pytest.mark.parametrize("kind", KINDS)
def test_agent_test_keeps_one_loop_until_close_test(agent: Agent, log: Log, kind: str) -> None:
    first = agent.test(kind)
    second = agent.test(kind)
    assert first == second
    assert first["txn.worker"] == "w"
    assert log.lines == ["worker begins", "loop begins"]
    agent.close_test()
    assert log.lines[2:] == ["loop ends", "worker ends"]
    agent.close_test()


@pytest.mark.parametrize("kind", KINDS)
def test_test_async_uses_the_loop_of_test(agent: Agent, kind: str) -> None:
    try:
        answer = asyncio.run(agent.test_async(kind))
        assert answer == agent.test(kind)
    finally:
        agent.close_test()


def test_agent_test_raises_what_a_lifespan_raises() -> None:
    agent = Agent()

    @agent.lifespan
    def fails() -> Iterator[None]:
        raise OSError("no database")
        yield

    @agent.message("m")
    def m() -> None: ...

    with pytest.raises(OSError, match="no database"):
        agent.test("m")
