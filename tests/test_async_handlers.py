"""``async def`` handlers, on every event loop that they may run on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from event_loops import EVENT_LOOPS, Serve, agent_of_each_kind, serve_on
from haproxy import wait_until
from serving import Served, served, wait_until_serving
from wire import ASYNC, assert_acks_leave_on_another_connection, count, end_of, hello

from spop import Ack, Agent, Client, Message, codec
from spop.context import current
from spop.counters import Cell, RouteCell


@pytest.fixture(params=EVENT_LOOPS)
def event_loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def serve(event_loop: str, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves an agent on each kind of event loop."""
    return serve_on(event_loop, monkeypatch)


@pytest.fixture
def agent() -> Agent:
    return agent_of_each_kind()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Handlers wait for it."""
    event = threading.Event()
    yield event
    event.set()


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    # Without a traceback it reports lines that a test before left out, up to 10 s ago.
    errors = (each for each in caplog.records if each.levelno >= logging.ERROR and each.exc_text)
    return [each.getMessage() for each in errors]


def add_slow(agent: Agent, **options: Any) -> list[str]:
    """A handler of "slow" that sleeps until it is cancelled, and tells of that."""
    events: list[str] = []

    @agent.message("slow", **options)
    async def slow() -> None:
        events.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    return events


def add_gated(agent: Agent, gate: threading.Event, **options: Any) -> list[int]:
    """A handler of "gated" that waits for the gate, and tells that it has begun."""
    begun: list[int] = []

    @agent.message("gated", **options)
    async def gated(n: int = 0) -> dict[str, Any]:
        begun.append(n)
        await asyncio.to_thread(gate.wait, 10)
        return {"sess.n": n}

    return begun


# --- what handlers may do, from their first step on ---


async def nothing() -> None: ...


async def suspends() -> None:
    await asyncio.sleep(0)


async def suspends_often() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def sleeps() -> None:
    await asyncio.sleep(0.001)


async def waits_for_a_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 5)
    assert await future == 5


async def stays_within_a_timeout() -> None:
    async with asyncio.timeout(10):
        await asyncio.sleep(0)


async def runs_into_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)


async def runs_into_a_timeout_of_wait_for() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(60), 0.001)


async def has_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
    assert [task.result() for task in tasks] == [0, 1, 2]


async def has_a_task_group_that_fails() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(60))


async def gathers() -> None:
    assert await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(int, "2")) == [1, 2]


async def goes_to_a_thread() -> None:
    thread = await asyncio.to_thread(threading.current_thread)
    assert thread is not threading.current_thread()


async def cancels_itself_and_goes_on() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(60)
    task.uncancel()
    await asyncio.sleep(0)


async def iterates() -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    assert [n async for n in numbers()] == [0, 1, 2]


async def talks_over_tcp() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()


async def runs_a_process() -> None:
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


@pytest.mark.parametrize(
    "does",
    [
        nothing, suspends, suspends_often, sleeps, waits_for_a_future, stays_within_a_timeout,
        runs_into_a_timeout, runs_into_a_timeout_of_wait_for, has_a_task_group,
        has_a_task_group_that_fails, gathers, goes_to_a_thread, cancels_itself_and_goes_on,
        iterates, talks_over_tcp, runs_a_process,
    ],
)  # fmt: skip
def test_a_handler_may_do_what_it_may_in_asyncio(
    serve: Serve, agent: Agent, does: Callable[[], Any]
) -> None:
    @agent.message("first")
    async def first(n: int) -> dict[str, Any]:
        await does()
        return {"sess.n": n}

    @agent.message("later")
    async def later(n: int, ack: Ack) -> None:
        await asyncio.sleep(0)
        await does()
        ack.set("sess", "n", n)

    with serve(agent) as server, Client(str(server.address)) as client:
        for name in ("first", "later"):
            sent = [client.send([Message(name, n=n)]) for n in range(5)]
            for n, stream_id in enumerate(sent):
                assert client.wait(stream_id).variables == {"sess.n": n}
        assert agent.errors == {}
        assert server.totals().in_hand == 0


class _OK(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OK) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_handler_may_ask_with_httpx_in_its_first_step(
    serve: Serve, agent: Agent, web: str
) -> None:
    httpx = pytest.importorskip("httpx")
    clients: list[Any] = []

    @agent.message("ask")
    async def ask() -> dict[str, Any]:
        if not clients:
            clients.append(httpx.AsyncClient())
        answer = await clients[0].get(web, timeout=10)
        return {"sess.status": answer.status_code, "sess.text": answer.text}

    @agent.message("close")
    async def close() -> None:
        await clients[0].aclose()

    with serve(agent) as server, Client(str(server.address)) as client:
        for _ in range(2):  # The second time the connection is used again.
            sent = [client.send([Message("ask")]) for _ in range(5)]
            for stream_id in sent:
                assert client.wait(stream_id).variables == {
                    "sess.status": 200,
                    "sess.text": "ok",
                }
        client.notify("close")
    assert agent.errors == {}


def test_messages_of_a_notify_are_handled_in_order(serve: Serve, agent: Agent) -> None:
    order: list[str] = []

    @agent.message("suspends")
    async def suspending(n: int) -> dict[str, Any]:
        order.append(f"{n} begins")
        await asyncio.sleep(0.001)
        order.append(f"{n} ends")
        return {"txn.n": n}

    @agent.message("does-not")
    async def not_suspending(n: int) -> dict[str, Any]:
        order.append(f"{n}")
        return {"txn.n": n}

    with serve(agent) as server, Client(str(server.address)) as client:
        for first in ("does-not", "suspends", "inline", "blocking"):
            names = [first, "suspends", "does-not", "inline", "suspends", "blocking", "nobody"]
            order.clear()
            answer = client.notify([Message(name, n=n) for n, name in enumerate(names)])
            assert answer.variables == {"txn.n": 4, "txn.inline": answer.variables["txn.inline"],
                                        "txn.blocking": 5}  # fmt: skip
            assert [int(entry.partition(" ")[0]) for entry in order] == sorted(
                int(entry.partition(" ")[0]) for entry in order
            )
            assert order[-2:] == ["4 begins", "4 ends"]


def test_a_handler_of_any_kind_may_stand_behind_any_other(serve: Serve, agent: Agent) -> None:
    add_slow(agent, timeout=0.02, on_timeout={"txn.late": True})
    kinds = {"inline": "txn.inline", "blocking": "txn.blocking", "async": "txn.async",
             "slow": "txn.late"}  # fmt: skip
    with serve(agent) as server, Client(str(server.address)) as client:
        for names in itertools.product(kinds, repeat=3):
            answer = client.notify([Message(name) for name in names])
            assert set(answer.variables) == {kinds[name] for name in names}


@pytest.mark.parametrize("message", ["sleeps", "suspends", "does-not"])
def test_frames_behind_one_in_hand_are_handled_when_it_is_answered(
    serve: Serve, agent: Agent, message: str
) -> None:
    """Without pipelining, and in order then."""

    @agent.message("sleeps")
    async def sleeping(n: int) -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return {"sess.n": n}

    @agent.message("suspends")
    async def suspending(n: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"sess.n": n}

    @agent.message("does-not")
    async def not_suspending(n: int) -> dict[str, Any]:
        return {"sess.n": n}

    with serve(agent) as server:
        sock, _ = hello(server, capabilities=frozenset())
        frames = bytearray()
        for n in range(5):
            codec.encode_notify(n, 1, [Message(message, n=n)], frames)
        with sock:
            sock.sendall(frames)
            data = b""
            while len(acks := codec.decode_frames(data)[0]) < 5:
                data += sock.recv(4096)
    assert [ack.variables for ack in acks if isinstance(ack, Ack)] == [
        {"sess.n": n} for n in range(5)
    ]


def test_slow_handlers_let_others_pass(serve: Serve, agent: Agent, gate: threading.Event) -> None:
    add_gated(agent, gate)
    with serve(agent) as server, Client(str(server.address)) as client:
        slow = [client.send([Message("gated", n=n)]) for n in range(3)]
        for name in ("inline", "blocking", "async"):
            assert client.notify(name, n=9).variables == {f"txn.{name}": 9}
        gate.set()
        for n in (2, 0, 1):
            assert client.wait(slow[n]).variables == {"sess.n": n}


# --- tasks and event loops ---


def test_each_call_is_a_task_of_its_own(serve: Serve, agent: Agent) -> None:
    tasks: list[Any] = []

    @agent.message("task")
    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task in asyncio.all_tasks()
        assert "handler" in repr(task)
        await asyncio.sleep(0)
        assert asyncio.current_task() is task
        tasks.append(task)

    with serve(agent) as server, Client(str(server.address)) as client:
        sent = [client.send([Message("task"), Message("task")]) for _ in range(3)]
        for stream_id in sent:
            client.wait(stream_id)
        assert agent.errors == {}
        assert len(set(map(id, tasks))) == 6
        assert all(isinstance(task, asyncio.Task) for task in tasks)


def test_all_calls_of_a_loop_run_on_one_event_loop(
    serve: Serve, agent: Agent, event_loop: str
) -> None:
    found: set[asyncio.AbstractEventLoop] = set()

    @agent.message("loop")
    async def handler() -> None:
        found.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        found.add(asyncio.get_running_loop())

    with serve(agent) as server:
        for _ in range(3):
            with Client(str(server.address)) as client:
                client.notify([Message("loop"), Message("blocking"), Message("loop")])
    (loop,) = found
    assert loop.get_debug() == (event_loop == "debug")
    assert type(loop).__module__.startswith("uvloop" if event_loop == "uvloop" else "asyncio")
    assert loop.is_closed()


def test_each_loop_has_an_event_loop(serve: Serve, agent: Agent, event_loop: str) -> None:
    if event_loop == "serve_async":
        pytest.skip("it has one loop")
    found: dict[int, set[int]] = {}

    @agent.message("loop")
    async def handler(n: int) -> None:
        found.setdefault(n, set()).add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        found[n].add(id(asyncio.get_running_loop()))

    with serve(agent, threads=2) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(str(server.address))) for _ in range(4)]
        for n, client in enumerate(clients * 3):
            client.notify("loop", n=n % 4)
    assert [len(loops) for loops in found.values()] == [1] * 4
    assert len(set.union(*found.values())) == 2


def test_a_task_that_a_handler_leaves_behind_goes_on(serve: Serve, agent: Agent) -> None:
    ends: list[str] = []
    tasks: list[Any] = []
    begun, goes_on = threading.Event(), threading.Event()

    async def background() -> None:
        begun.set()
        await asyncio.to_thread(goes_on.wait, 10)
        ends.append("done")

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")

    @agent.message("start")
    async def start() -> dict[str, Any]:
        tasks.extend([asyncio.create_task(background()), asyncio.create_task(endless())])
        return {"sess.started": True}

    with serve(agent) as server, Client(str(server.address)) as client:
        assert client.notify("start").variables == {"sess.started": True}
        assert begun.wait(10)
        goes_on.set()
        wait_until(lambda: ends == ["done"], "the task's end")
        assert client.notify("async", n=1).variables == {"txn.async": 1}
    assert ends == ["done", "cancelled"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_task_that_a_handler_leaves_behind_does_not_end_the_loop(
    serve: Serve,
    agent: Agent,
    event_loop: str,
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if event_loop == "serve_async":
        pytest.skip("that is the caller's affair")
    tasks: list[Any] = []

    @agent.message("start")
    async def start() -> None:
        async def later() -> None:
            raise error

        tasks.append(asyncio.create_task(later()))

    with serve(agent) as server, Client(str(server.address)) as client:
        client.notify("start")
        for n in range(2):
            assert client.notify("async", n=n).variables == {"txn.async": n}
    assert failures(caplog) == ["a task of a handler failed"]


# --- contexts ---


def test_each_call_has_context_variables_of_its_own(serve: Serve, agent: Agent) -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)

    def look(n: int) -> dict[str, Any]:
        found = variable.get()
        variable.set(n)
        return {f"txn.v{n}": found}

    @agent.message("suspends")
    async def suspending(n: int) -> dict[str, Any]:
        answer = look(n)
        await asyncio.sleep(0)
        assert variable.get() == n
        assert await asyncio.to_thread(variable.get) == n
        return answer

    @agent.message("does-not")
    async def not_suspending(n: int) -> dict[str, Any]:
        return look(n)

    @agent.message("limited", concurrency=1)
    async def limited(n: int) -> dict[str, Any]:
        return await suspending(n)

    names = ["suspends", "does-not", "limited", "suspends", "limited", "does-not"]
    with serve(agent) as server, Client(str(server.address)) as client:
        for first in range(len(names)):
            turned = names[first:] + names[:first]
            answer = client.notify([Message(name, n=n) for n, name in enumerate(turned, 1)])
            assert answer.variables == {f"txn.v{n}": 0 for n in range(1, 7)}
        sent = [client.send([Message("suspends", n=n)]) for n in range(1, 6)]
        for n, stream_id in enumerate(sent, 1):
            assert client.wait(stream_id).variables == {f"txn.v{n}": 0}
    assert agent.errors == {}


def test_every_handler_knows_its_message(serve: Serve, agent: Agent) -> None:
    """Before and after it was suspended, and in what it starts, whatever ran before it."""

    def look(n: int) -> None:
        running = current()
        assert running is not None
        assert running.connection.engine_id == "e1"
        seen.setdefault(n, set()).add((running.name, running.stream_id))

    seen: dict[int, set[tuple[str, int]]] = {}
    agent.message("look")(look)
    agent.message("look-blocking", blocking=True)(look)

    @agent.message("look-suspending")
    async def suspending(n: int) -> None:
        look(n)
        await asyncio.sleep(0.001)
        look(n)
        await asyncio.create_task(asyncio.to_thread(look, n))

    @agent.message("look-async")
    async def not_suspending(n: int) -> None:
        look(n)

    names = ["look", "look-suspending", "look-async", "look", "look-blocking", "look",
             "look-async", "look-suspending"]  # fmt: skip
    with (
        serve(agent) as server,
        Client(str(server.address), engine_id="e1") as client,
    ):
        for first in range(len(names)):
            seen.clear()
            turned = names[first:] + names[:first]
            ack = client.notify([Message(name, n=n) for n, name in enumerate(turned)])
            assert agent.errors == {}
            assert seen == {n: {(name, ack.stream_id)} for n, name in enumerate(turned)}


# --- failures ---


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        asyncio.CancelledError(),
        SystemExit(1),
        KeyboardInterrupt(),
        StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_handler_raises_is_answered_counted_and_logged_once(
    serve: Serve, agent: Agent, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.message("first", on_error={"sess.failed": 1})
    async def first() -> None:
        raise error

    @agent.message("later", on_error={"sess.failed": 2})
    async def later() -> None:
        await asyncio.sleep(0)
        raise error

    with serve(agent) as server, Client(str(server.address)) as client:
        for number, name in enumerate(["first", "later"], 1):
            answer = client.notify([Message("async"), Message(name), Message("async", n=number)])
            assert answer.variables == {"txn.async": number, "sess.failed": number}
            assert server.totals().routes[name][RouteCell.ERRORS] == 1
        assert agent.errors == {"first": 1, "later": 1}
    assert [message.partition(": ")[0] for message in failures(caplog)] == [
        "message 'first' failed",
        "message 'later' failed",
    ]


# --- limits ---


def test_a_handler_that_takes_too_long_is_answered_for_and_cancelled(
    serve: Serve, agent: Agent
) -> None:
    events = add_slow(agent, timeout=0.05, on_timeout={"txn.late": True})
    with serve(agent) as server, Client(str(server.address)) as client:
        for place in range(3):  # Its time runs wherever it stands.
            messages = [Message("inline", n=5), Message("async", n=6)]
            messages.insert(place, Message("slow"))
            assert client.notify(messages).variables == {
                "txn.late": True, "txn.inline": 5, "txn.async": 6
            }  # fmt: skip
        wait_until(lambda: events == ["begun", "cancelled"] * 3, "the cancellations")
        assert server.totals().routes["slow"][RouteCell.TIMEOUTS] == 3
        assert server.totals().in_hand == 0
        wait_until(lambda: count(server, Cell.RUNNING) == 0, "the tasks' end")
    assert agent.errors == {"slow": 3}


def test_a_timeout_without_on_timeout_is_an_empty_ack(serve: Serve, agent: Agent) -> None:
    add_slow(agent, timeout=0.05, on_error={"txn.failed": True})
    with serve(agent) as server, Client(str(server.address)) as client:
        assert client.notify("slow").actions == []


def test_what_a_handler_returns_too_late_is_dropped(serve: Serve, agent: Agent) -> None:
    ends: list[int] = []

    @agent.message("stubborn", timeout=0.05, on_timeout={"txn.late": True})
    async def stubborn() -> dict[str, Any]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.001)
        ends.append(1)
        return {"txn.late": False}

    with serve(agent) as server, Client(str(server.address)) as client:
        assert client.notify("stubborn").variables == {"txn.late": True}
        wait_until(lambda: ends == [1], "the handler's end")
        assert client.notify("async", n=1).variables == {"txn.async": 1}
        assert count(server, Cell.ACKS) == 2
    assert agent.errors == {"stubborn": 1}


def test_concurrency_limits_how_many_run(serve: Serve, agent: Agent) -> None:
    running, most = 0, 0

    @agent.message("m", concurrency=2, timeout=10)
    async def handler(n: int) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if n % 3:
            await asyncio.sleep(0.001)
        running -= 1
        return {"sess.n": n}

    with serve(agent) as server, Client(str(server.address)) as client:
        sent = [client.send([Message("m", n=n), Message("inline")]) for n in range(20)]
        for n, stream_id in enumerate(sent):
            assert client.wait(stream_id).variables == {"sess.n": n, "txn.inline": 0}
        assert count(server, Cell.QUEUED) == 0
    assert most == 2


def test_those_who_wait_for_their_turn_get_it_from_those_who_are_cancelled(
    serve: Serve, agent: Agent
) -> None:
    events = add_slow(agent, concurrency=1, timeout=0.1, on_timeout={"txn.late": True})
    with serve(agent) as server, Client(str(server.address)) as client:
        sent = [client.send([Message("slow")]) for _ in range(3)]
        for stream_id in sent:
            assert client.wait(stream_id).variables == {"txn.late": True}
        # Those behind the first had no time left when their turn came, or were cancelled too.
        assert client.notify("slow").variables == {"txn.late": True}
        wait_until(lambda: count(server, Cell.RUNNING) == 0, "the tasks' end")
        assert set(events) == {"begun", "cancelled"}
        assert count(server, Cell.QUEUED) == 0


def test_beyond_max_queue_a_message_fails_at_once(
    serve: Serve, agent: Agent, gate: threading.Event
) -> None:
    begun = add_gated(agent, gate, on_error={"txn.overload": True})
    with serve(agent, max_queue=2) as server, Client(str(server.address)) as client:
        first = [client.send([Message("gated", n=n)]) for n in range(2)]
        wait_until(lambda: begun == [0, 1], "the handlers")
        assert client.notify("gated").variables == {"txn.overload": True}
        assert client.notify("inline", n=1).variables == {"txn.inline": 1}
        assert count(server, Cell.REJECTED) == 1
        gate.set()
        for n, stream_id in enumerate(first):
            assert client.wait(stream_id).variables == {"sess.n": n}
        wait_until(lambda: count(server, Cell.RUNNING) == 0, "the tasks' end")
        assert client.notify("gated", n=7).variables == {"sess.n": 7}


def test_a_connection_with_max_in_flight_is_not_read_from(
    serve: Serve, agent: Agent, gate: threading.Event
) -> None:
    begun = add_gated(agent, gate)
    with serve(agent, max_in_flight=2) as server:
        sock, protocol = hello(server)
        with sock:
            for number in range(10):
                protocol.notify(number, 1, [Message("gated", n=number)])
            sock.sendall(protocol.data_to_send())
            wait_until(lambda: len(begun) == 2, "two handlers")
            with Client(str(server.address)) as client:
                assert client.notify("async", n=1).variables == {"txn.async": 1}
            assert server.connections()[0]["in_flight"] <= 2
            assert len(begun) == 2
            assert count(server, Cell.PAUSED_IN_FLIGHT) == 1
            gate.set()
            while protocol.waiting:
                protocol.receive_data(sock.recv(4096))
        assert sorted(begun) == list(range(10))


# --- lost connections ---


def test_handlers_of_a_lost_connection_are_cancelled(serve: Serve, agent: Agent) -> None:
    events = add_slow(agent)
    with serve(agent) as server:
        sock, protocol = hello(server)
        protocol.notify(1, 1, [Message("slow")])
        sock.sendall(protocol.data_to_send())
        wait_until(lambda: events == ["begun"], "the handler")
        sock.close()
        wait_until(lambda: events == ["begun", "cancelled"], "the cancellation")
        wait_until(lambda: count(server, Cell.ACKS_DROPPED) == 1, "the count")
        assert server.totals().in_hand == 0
    assert agent.errors == {}


@pytest.mark.parametrize("threads", [1, 3])
def test_an_ack_leaves_on_another_connection_when_its_own_is_lost(
    serve: Serve, agent: Agent, event_loop: str, gate: threading.Event, threads: int
) -> None:
    if event_loop == "serve_async" and threads > 1:
        pytest.skip("it has one loop")
    add_gated(agent, gate)
    with serve(agent, threads=threads) as server:
        assert_acks_leave_on_another_connection(server, "gated", gate.set)


def test_exchanges_are_cancelled_with_the_last_connection_of_their_engine(
    serve: Serve, agent: Agent
) -> None:
    events = add_slow(agent)
    with serve(agent) as server:
        first, protocol = hello(server, engine_id="e", capabilities=ASYNC)
        second, _ = hello(server, engine_id="e", capabilities=ASYNC)
        protocol.notify(1, 1, [Message("slow")])
        first.sendall(protocol.data_to_send())
        wait_until(lambda: events == ["begun"], "the handler")
        first.close()
        wait_until(lambda: server.admission.connections == 1, "the loss")
        assert events == ["begun"]
        second.close()
        wait_until(lambda: events == ["begun", "cancelled"], "the cancellation")


# --- the end ---


def open_when_draining(server: Any, gate: threading.Event) -> threading.Thread:
    def run() -> None:
        wait_until(lambda: server.draining, "the drain")
        gate.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_handlers_that_run_when_the_server_stops_are_waited_for(
    serve: Serve, agent: Agent, gate: threading.Event
) -> None:
    begun = add_gated(agent, gate)
    with serve(agent) as server:
        sock, protocol = hello(server)
        protocol.notify(1, 1, [Message("gated", n=1), Message("async", n=2), Message("blocking")])
        sock.sendall(protocol.data_to_send())
        wait_until(lambda: begun == [1], "the handler")
        opener = open_when_draining(server, gate)
    opener.join()
    ack, goodbye = end_of(sock, protocol)
    assert ack.variables == {"sess.n": 1, "txn.async": 2, "txn.blocking": 0}
    assert goodbye.code == 0
    assert agent.errors == {}


def test_handlers_that_do_not_end_in_the_drain_timeout_are_cancelled_and_answered_for(
    serve: Serve, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    events = add_slow(agent, on_error={"txn.failed": True})
    with serve(agent, drain_timeout=0.1) as server:
        sock, protocol = hello(server)
        protocol.notify(1, 1, [Message("slow"), Message("async"), Message("blocking")])
        sock.sendall(protocol.data_to_send())
        wait_until(lambda: events == ["begun"], "the handler")
    ack, goodbye = end_of(sock, protocol)
    assert ack.variables == {"txn.failed": True}
    assert goodbye.code == 0
    assert events == ["begun", "cancelled"]
    assert agent.errors == {"slow": 1, "async": 1, "blocking": 1}
    assert count(server, Cell.REJECTED) == 0
    assert any("the agent stops" in message for message in failures(caplog))


SERVED = """
import asyncio, os, pathlib, time
from spop import Agent

agent = Agent()

@agent.message("hang")
async def hang():
    await asyncio.sleep(0.01)
    time.sleep(60)

@agent.message("gated")
async def gated():
    path = pathlib.Path({folder!r})
    (path / "begun").touch()
    while not (path / "gate").exists():
        await asyncio.sleep(0.01)
    return {{"txn.pid": os.getpid()}}
"""


@contextlib.contextmanager
def served_on(event_loop: str, folder: Path, *options: str) -> Iterator[tuple[Served, Client]]:
    """``spop serve`` and a client."""
    if event_loop == "serve_async":
        pytest.skip("it has no supervisor")
    if event_loop == "uvloop":
        pytest.importorskip("uvloop")
    (folder / "served_agent.py").write_text(SERVED.format(folder=str(folder)))
    address = f"unix:{folder}/agent.sock"
    kind = "uvloop" if event_loop == "uvloop" else "asyncio"
    environment = {"PYTHONASYNCIODEBUG": "1"} if event_loop == "debug" else {}
    with served(
        "--bind", address, "--event-loop", kind, *options,
        target=f"{folder}/served_agent.py:agent", **environment,
    ) as process:  # fmt: skip
        wait_until_serving(process)
        with Client(address) as client:
            yield process, client


def test_a_worker_whose_handler_hangs_in_a_later_step_is_replaced(
    event_loop: str, tmp_path: Path
) -> None:
    with served_on(event_loop, tmp_path, "--stuck-timeout", "1") as (process, client):
        (old,) = process.workers()
        client.send([Message("hang")])
        wait_until(lambda: process.workers() not in ([old], []), "another worker")
        assert "in hang" in process.log


def test_sighup_waits_for_handlers_and_keeps_their_connections(
    event_loop: str, tmp_path: Path
) -> None:
    with served_on(event_loop, tmp_path) as (process, client):
        (old,) = process.workers()
        sent = client.send([Message("gated")])
        wait_until((tmp_path / "begun").exists, "the handler")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(process.workers()) == 2, "the new worker")
        (tmp_path / "gate").touch()
        assert client.wait(sent).variables == {"txn.pid": old}
        wait_until(lambda: old not in process.workers(), "the old worker's end")
        (new,) = process.workers()
        assert client.notify("gated").variables == {"txn.pid": new}
        assert "ERROR" not in process.log, process.log


def test_an_idle_server_does_nothing(serve: Serve, agent: Agent) -> None:
    with serve(agent) as server, Client(str(server.address)) as client:
        for name in ("inline", "async", "blocking"):
            client.notify(name)
        used = time.process_time()
        time.sleep(1)
        assert time.process_time() - used < 0.5


# --- handlers that hold up their loop ---


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "spop.server" and "without a pause" in record.getMessage()
    ]


@pytest.mark.parametrize("name", ["inline-slow", "first-step", "later-step", "last-step"])
@pytest.mark.parametrize("before", [None, "async"])
def test_a_handler_that_holds_up_its_loop_is_logged_once(
    serve: Serve, agent: Agent, caplog: pytest.LogCaptureFixture, name: str, before: str | None
) -> None:
    agent.message("inline-slow")(functools.partial(busy, 0.02))

    @agent.message("first-step")
    async def first_step() -> None:
        busy(0.02)
        await asyncio.sleep(0)

    @agent.message("later-step")
    async def later_step() -> None:
        await asyncio.sleep(0)
        busy(0.02)
        await asyncio.sleep(0)

    @agent.message("last-step")
    async def last_step() -> None:
        await asyncio.sleep(0)
        busy(0.02)

    messages = [Message(each) for each in (before, name) if each]
    with serve(agent, slow_handler=0.01) as server, Client(str(server.address)) as client:
        for _ in range(3):
            client.notify(messages)
    (line,) = (line for line in slow_lines(caplog) if repr(name) in line)
    seconds = re.match(rf"the handler of message {name!r} ran for ([\d.]+) s without", line)
    assert seconds is not None
    assert 0.02 <= float(seconds[1]) < 10
    assert "all connections of its loop waited" in line
    assert agent.errors == {}


def test_a_handler_that_only_waits_is_not_logged(
    serve: Serve, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.message("busy-elsewhere", blocking=True)(lambda: time.sleep(1.1))

    @agent.message("waits")
    async def waits() -> None:
        await asyncio.sleep(1.1)

    with serve(agent, slow_handler=1) as server, Client(str(server.address)) as client:
        for sent in [client.send([Message(name)]) for name in ("busy-elsewhere", "waits")]:
            client.wait(sent)
    assert slow_lines(caplog) == []


def test_a_slow_handler_of_0_logs_nothing(
    serve: Serve, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.message("slow")(functools.partial(busy, 0.15))
    with serve(agent, slow_handler=0) as server, Client(str(server.address)) as client:
        client.notify("slow")
    assert slow_lines(caplog) == []
