"""`Agent.serve_async`: an agent as one of the things that an event loop does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from event_loops import agent_of_each_kind
from wire import end_of, hello

from spop import Agent, AsyncClient, Client, Message, SpopError
from spop.connection import EngineConnection

Main = Callable[[], Awaitable[Any]]


def run_plain(main: Main) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


def run_debug(main: Main) -> Any:
    return asyncio.run(main(), debug=True)  # type: ignore[arg-type]


def run_runner(main: Main) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(main())  # type: ignore[arg-type]


def run_uvloop(main: Main) -> Any:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())  # type: ignore[arg-type]


@pytest.fixture(params=[run_plain, run_debug, run_runner, run_uvloop])
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Runs a coroutine function in each way to do so."""
    function: Callable[[Main], Any] = request.param
    return function


@pytest.fixture
def agent() -> Agent:
    return agent_of_each_kind()


async def started(
    agent: Agent, bind: str = "127.0.0.1:0", **options: Any
) -> tuple[asyncio.Task[None], Any]:
    """The task that serves an agent, and its server, once it listens."""
    ready = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(agent.serve_async(bind, ready.set_result, **options))
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    return task, await ready


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def ask(server: Any, *names: str, n: int = 1) -> dict[str, Any]:
    async with AsyncClient(str(server.address)) as client:
        answer = await client.notify([Message(name, n=n) for name in names])
        return dict(answer.variables)


ALL = ("inline", "blocking", "async")
ANSWERS = {"txn.inline": 1, "txn.blocking": 1, "txn.async": 1}


def test_its_end_leaves_nothing_behind_and_warns_of_nothing(
    run: Callable[[Main], Any], agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task, server = await started(agent)
        assert await ask(server, *ALL) == ANSWERS
        await ended(task)

    run(main)
    spoken = [each.getMessage() for each in caplog.records if each.levelname != "DEBUG"]
    assert [each for each in spoken if "left behind" in each] == []


def test_it_serves_on_the_event_loop_that_runs(run: Callable[[Main], Any], agent: Agent) -> None:
    @agent.message("where")
    async def where() -> dict[str, Any]:
        same = asyncio.get_running_loop() is loops[0]
        return {"sess.same": same, "sess.thread": threading.current_thread() is threads[0]}

    loops, threads = [], []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        threads.append(threading.current_thread())
        task, server = await started(agent)
        assert await ask(server, *ALL) == ANSWERS
        assert await ask(server, "where") == {"sess.same": True, "sess.thread": True}
        await ended(task)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)
    assert agent.errors == {}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_serves_on_the_event_loop_of_pytest(agent: Agent) -> None:
    task, server = await started(agent)
    assert await ask(server, *ALL) == ANSWERS
    await ended(task)


def test_it_serves_an_agent_without_async_handlers(run: Callable[[Main], Any]) -> None:
    agent = Agent()
    agent.message("inline")(lambda n: {"txn.inline": n})

    async def main() -> None:
        task, server = await started(agent)
        assert await ask(server, "inline") == {"txn.inline": 1}
        await ended(task)

    run(main)


def test_it_serves_beside_other_servers_and_itself(
    run: Callable[[Main], Any], agent: Agent, tmp_path: Path
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    async def ask_echo(server: asyncio.Server) -> bytes:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    async def main() -> None:
        first, one = await started(agent)
        second, other = await started(agent, f"unix:{tmp_path}/agent.sock")
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            for _ in range(3):
                answers = await asyncio.gather(
                    *(ask(each, *ALL, n=1) for each in (one, other) for _ in range(5)),
                    *(ask_echo(server) for _ in range(5)),
                )
                assert answers == [ANSWERS] * 10 + [b"hello\n"] * 5
            await ended(first)
            assert await ask(other, *ALL) == ANSWERS
            assert await ask_echo(server) == b"hello\n"
        await ended(second)
        assert not (tmp_path / "agent.sock").exists()

    run(main)


def test_handlers_see_the_context_variables_of_whoever_serves(agent: Agent) -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)

    def look(n: int) -> dict[str, Any]:
        return {f"sess.v{n}": variable.get()}

    async def look_async(n: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return look(n)

    agent.message("look")(look)
    agent.message("look-async")(look_async)

    async def main() -> None:
        variable.set(5)
        task, server = await started(agent)
        variable.set(6)
        assert await ask(server, "look") == {"sess.v1": 5}
        assert await ask(server, "look-async") == {"sess.v1": 5}
        await ended(task)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_child_of_a_handler_ends_when_another_server_has_ended(agent: Agent) -> None:
    children: list[int] = []

    @agent.message("fork")
    def fork() -> dict[str, Any]:
        children.append(os.fork())
        return {"txn.pid": os.getpid()}

    async def main() -> None:
        first, _ = await started(agent)
        second, server = await started(agent)
        await ended(first)
        assert await ask(server, "fork") == {"txn.pid": os.getpid()}
        _, status = await asyncio.to_thread(os.waitpid, children[0], 0)
        assert os.waitstatus_to_exitcode(status) == 1
        await ended(second)

    asyncio.run(main())


# --- the end ---


async def sent(server: Any, *names: str) -> tuple[socket.socket, EngineConnection]:
    """A connection with a NOTIFY on its way."""
    sock, protocol = await asyncio.to_thread(hello, server)
    protocol.notify(1, 1, [Message(name) for name in names])
    sock.sendall(protocol.data_to_send())
    return sock, protocol


def test_cancelled_it_answers_what_is_in_hand_and_says_goodbye(
    run: Callable[[Main], Any], agent: Agent
) -> None:
    async def main() -> None:
        begun, gate = asyncio.Event(), asyncio.Event()

        @agent.message("gated")
        async def gated() -> dict[str, Any]:
            begun.set()
            await gate.wait()
            return {"sess.done": True}

        task, server = await started(agent)
        sock, protocol = await sent(server, "gated", "blocking", "async")
        await begun.wait()
        address = server.address.host, server.address.port
        task.cancel()
        while not server.draining:
            await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        assert not task.done()
        gate.set()
        ack, goodbye = await asyncio.to_thread(end_of, sock, protocol)
        assert ack.variables == {"sess.done": True, "txn.blocking": 0, "txn.async": 0}
        assert goodbye.code == 0
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert agent.errors == {}


def test_cancelled_it_waits_for_the_drain_timeout_at_most(
    run: Callable[[Main], Any], agent: Agent
) -> None:
    async def main() -> None:
        @agent.message("endless", on_error={"sess.failed": True})
        async def endless() -> None:
            begun.set()
            await asyncio.sleep(60)

        begun = asyncio.Event()
        task, server = await started(agent, drain_timeout=0.1)
        sock, protocol = await sent(server, "endless")
        await begun.wait()
        await ended(task)
        ack, goodbye = await asyncio.to_thread(end_of, sock, protocol)
        assert (ack.variables, goodbye.code) == ({"sess.failed": True}, 0)

    run(main)
    assert agent.errors == {"endless": 1}


def test_a_second_cancellation_does_not_wait_for_handlers(
    run: Callable[[Main], Any], agent: Agent
) -> None:
    async def main() -> None:
        ends: list[str] = []

        @agent.message("endless")
        async def endless() -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ends.append("endless")

        begun = asyncio.Event()
        task, server = await started(agent, drain_timeout=60)
        sock, _ = await sent(server, "endless")
        await begun.wait()
        task.cancel()
        while not server.draining:
            await asyncio.sleep(0)
        await ended(task)
        assert ends == ["endless"]
        sock.close()

    run(main)


def test_its_own_tasks_alone_are_cancelled(run: Callable[[Main], Any], agent: Agent) -> None:
    async def main() -> None:
        tasks: list[asyncio.Task[Any]] = []

        @agent.message("endless")
        async def endless() -> None:
            tasks.append(asyncio.create_task(asyncio.sleep(60)))
            begun.set()
            await asyncio.sleep(60)

        begun = asyncio.Event()
        tasks.append(asyncio.create_task(asyncio.sleep(60)))
        other_task, other = await started(agent)
        task, server = await started(agent, drain_timeout=0.1)
        sock, _ = await sent(server, "endless")
        await begun.wait()
        await ended(task)
        sock.close()
        assert not any(each.done() or each.cancelling() for each in tasks)
        assert asyncio.all_tasks() == {asyncio.current_task(), other_task, *tasks}
        assert await ask(other, *ALL) == ANSWERS
        await ended(other_task)
        for each in tasks:
            each.cancel()

    run(main)


def test_a_timeout_and_a_task_group_end_it(run: Callable[[Main], Any], agent: Agent) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await agent.serve_async("127.0.0.1:0")

        async def fail(server: asyncio.Future[Any]) -> None:
            assert await ask(await server, *ALL) == ANSWERS
            raise ValueError("enough")

        ready = asyncio.get_running_loop().create_future()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(agent.serve_async("127.0.0.1:0", ready.set_result))
                group.create_task(fail(ready))
        assert [str(error) for error in caught.value.exceptions] == ["enough"]

    run(main)


class Death(BaseException):
    """Nothing can go on after it."""


def test_a_failure_of_the_loop_is_raised(run: Callable[[Main], Any], agent: Agent) -> None:
    def die() -> None:
        raise Death

    async def main() -> None:
        task, server = await started(agent)
        sock, _ = await asyncio.to_thread(hello, server)
        address = server.address.host, server.address.port
        server.wake_loops(die)
        with pytest.raises(Death):
            await task
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        with sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""

    run(main)


@pytest.mark.parametrize("where", ["inline", "async at once", "async", "on_connect", "on_error"])
def test_a_keyboard_interrupt_in_a_handler_or_hook_passes_on_behind_the_answer(
    run: Callable[[Main], Any], agent: Agent, where: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    @agent.message("async-m", on_error={"txn.failed": True})
    async def asynchronous() -> None:
        if where == "async":
            await asyncio.sleep(0)
        interrupt()

    agent.message("m", on_error={"txn.failed": True})(lambda: interrupt())
    if where.startswith("on_"):
        agent.message("broken", on_error={"txn.failed": True})(lambda: 1 / 0)
        getattr(agent, where)(interrupt)
    name = "async-m" if where.startswith("async") else "m" if where == "inline" else "broken"
    clients: list[threading.Thread] = []
    answers: list[Any] = []

    def ask(address: str) -> None:
        with contextlib.suppress(SpopError, OSError), Client(address, timeout=10) as client:
            answers.append(client.notify(name).variables)

    def ready(server: Any) -> None:
        clients.append(threading.Thread(target=ask, args=[str(server.address)]))
        clients[0].start()

    async def main() -> None:
        await agent.serve_async("127.0.0.1:0", ready)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    clients[0].join()
    assert answers == ([] if where == "on_connect" else [{"txn.failed": True}])


def test_what_cannot_be_served_is_told(agent: Agent) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(OSError, match="in use"),
        ):
            await agent.serve_async(f"127.0.0.1:{taken.getsockname()[1]}")
        for options in ({"threads": 2}, {"processes": 2}, {"event_loop": "uvloop"}):
            with pytest.raises(ValueError, match=next(iter(options))):
                await agent.serve_async("127.0.0.1:0", **options)
        with pytest.raises(TypeError):
            await agent.serve_async("127.0.0.1:0", no_such_option=1)

    asyncio.run(main())


def test_what_ready_raises_ends_it(agent: Agent) -> None:
    addresses: list[Any] = []

    def ready(server: Any) -> None:
        addresses.append(server.address)
        with socket.create_connection((server.address.host, server.address.port)):
            raise ValueError("not so")

    async def main() -> None:
        with pytest.raises(ValueError, match="not so"):
            await agent.serve_async("127.0.0.1:0", ready)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(addresses[0].host, addresses[0].port)

    asyncio.run(main())


def test_its_server_is_not_stopped_but_cancelled(agent: Agent) -> None:
    async def main() -> None:
        task, server = await started(agent)
        with pytest.raises(RuntimeError, match="cancelled"):
            server.stop()
        assert await ask(server, *ALL) == ANSWERS
        await ended(task)

    asyncio.run(main())


def test_its_health_is_that_of_its_rounds(run: Callable[[Main], Any], agent: Agent) -> None:
    async def main() -> None:
        task, server = await started(agent)
        await ask(server, *ALL)
        await asyncio.sleep(1.1)  # As long as a round may take.
        assert server.health().ready
        async with AsyncClient(str(server.address)) as client:
            assert (await client.notify("inline")).variables == {"txn.inline": 0}
        await ended(task)
        assert not server.health().ready

    run(main)


def test_its_server_may_be_asked_on_its_event_loop(agent: Agent) -> None:
    async def main() -> None:
        task, server = await started(agent)
        async with AsyncClient(str(server.address)) as client:
            await client.notify("async")
            assert [each["state"] for each in server.connections()] == ["OPEN"]
        await ended(task)

    asyncio.run(main())


def test_it_has_pages_for_operators(agent: Agent) -> None:
    async def main() -> None:
        task, server = await started(agent, admin="127.0.0.1:0")
        address = server.admin_address
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        await ended(task)

    asyncio.run(main())
