"""Both clients over real sockets: exchanges, limits, failures, and nobody gets another's ACK."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import odd_agents
import pytest
from haproxy import wait_until
from odd_agents import Odd, OddAgent
from scripted_agent import ChaoticAgent, ScriptedAgent, Told, Wire, echoes

from spop import (
    Ack,
    Agent,
    AsyncClient,
    Client,
    DisconnectedError,
    LocalProtocolError,
    Message,
    RefusedError,
    SpopError,
    SpopTimeoutError,
    UnreachableError,
)
from spop.connection import ALL_CAPABILITIES
from spop.constants import Capability, Status
from spop.errors import FrameTooBigError

LOCKSTEP = frozenset({Capability.FRAGMENTATION})


class AwaitedClient:
    """`AsyncClient` on a loop of its own, called as `Client` is, so that a test says both."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def connect(self) -> Any:
        return self._run(self._client.connect())

    def notify(self, *args: Any, **kwargs: Any) -> Ack:
        return self._run(self._client.notify(*args, **kwargs))

    def notify_many(self, notifies: Any) -> list[Ack]:
        return self._run(self._client.notify_many(notifies))

    def close(self) -> None:
        self._run(self._client.close())

    def end(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> AwaitedClient:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@pytest.fixture(params=["blocking", "async"])
def new_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **settings: Any) -> Any:
            if request.param == "blocking":
                client = Client(*args, **settings)
                stack.callback(client.close)
                return client
            awaited = AwaitedClient(*args, **settings)
            stack.callback(awaited.end)
            return awaited

        yield make


def refused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A certificate for that name, as contexts of the agent and of its client."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    agent = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    agent.load_cert_chain(cert, key)
    return agent, ssl.create_default_context(cafile=str(cert))


# --- exchanges ---


def test_an_exchange(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as agent, new_client(agent.address) as client:
        assert client.notify("m", n=5).variables == {"sess.n": 5, "sess.size": 0}
        assert client.notify(Message("m", n=6)).variables["sess.n"] == 6
        assert client.notify([Message("m", n=7)]).variables["sess.n"] == 7
        assert agent.accepted == 1
        assert client.peer.max_frame_size == 16380


def test_the_client_connects_by_itself(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as agent:
        assert new_client(agent.address).notify("m", n=1).variables["sess.n"] == 1


def test_a_unix_socket(new_client: Callable[..., Any], tmp_path: Path) -> None:
    with (
        ScriptedAgent(echoes, path=tmp_path / "sock") as agent,
        new_client(agent.address) as client,
    ):
        assert client.notify("m", n=1).variables["sess.n"] == 1


def test_tls(new_client: Callable[..., Any], tmp_path: Path) -> None:
    ours, theirs = certificate(tmp_path, "agent.test")
    with ScriptedAgent(echoes, tls=ours, path=tmp_path / "sock") as agent:
        with new_client(agent.address, tls=theirs, server_name="agent.test") as client:
            for size in (1, 200_000):
                ack = client.notify("m", body=bytes(size))
                assert ack.variables["sess.size"] in (size, 0)
            assert [ack.variables["sess.n"] for ack in many(client, 50)] == list(range(50))
        with pytest.raises(UnreachableError, match="certificate"):
            new_client(agent.address, tls=theirs, server_name="other.test").connect()
    with pytest.raises(ValueError, match="server_name"):
        new_client(agent.address, tls=theirs)


def many(client: Any, count: int) -> list[Ack]:
    return client.notify_many(Message("m", n=number) for number in range(count))


@pytest.mark.parametrize(
    "capabilities", [ALL_CAPABILITIES, LOCKSTEP], ids=["pipelined", "lockstep"]
)
def test_many_at_once_keep_their_order(
    new_client: Callable[..., Any], capabilities: frozenset[str]
) -> None:
    with (
        ScriptedAgent(echoes, capabilities=capabilities) as agent,
        new_client(agent.address, maximum=2, max_waiting_frames=10) as client,
    ):
        assert [ack.variables["sess.n"] for ack in many(client, 100)] == list(range(100))
        assert agent.accepted <= 2


def test_a_client_waits_where_its_agent_stops_reading_and_goes_on(
    new_client: Callable[..., Any], tmp_path: Path
) -> None:
    """Frames of 16 MB are more than a socket takes."""

    def move(wire: Wire, told: Told) -> None:
        if len(agent.told) == 1:
            wait_until(lambda: any(link.blocked for link in links), "a connection that is full")
        echoes(wire, told)

    count, body = 1000, bytes(16_000)
    with (
        ScriptedAgent(move, path=tmp_path / "sock") as agent,
        new_client(agent.address, maximum=1, max_waiting_frames=count, timeout=30) as client,
    ):
        links = client.pool.links
        acks = client.notify_many(Message("m", n=number, body=body) for number in range(count))
        assert [ack.variables["sess.n"] for ack in acks] == list(range(count))
        assert {ack.variables["sess.size"] for ack in acks} == {len(body)}
        assert [link.blocked for link in links] == [False]


def test_many_at_once_raise_the_first_error_and_leave_nothing_behind(
    new_client: Callable[..., Any],
) -> None:
    def move(wire: Wire, told: Told) -> None:
        if told.notify.messages[0].get("n") == 3:
            wire.disconnect(Status.UNKNOWN)
        elif agent.accepted > 1:
            echoes(wire, told)

    with (
        ScriptedAgent(move) as agent,
        new_client(agent.address, maximum=1, max_waiting_frames=10) as client,
    ):
        with pytest.raises(DisconnectedError, match="so be it"):
            many(client, 5)
        assert client.notify("m", n=7).variables["sess.n"] == 7
        assert (client.pool.waiting, client.pool.queued) == (0, 0)


def test_big_payloads_go_in_fragments(new_client: Callable[..., Any]) -> None:
    agent = Agent()

    @agent.message("m")
    def handler(body: bytes) -> dict[str, Any]:
        return {"sess.size": len(body)}

    with agent.serve_in_background() as server, new_client(str(server.address)) as client:
        assert client.notify("m", body=bytes(1_000_000)).variables == {"sess.size": 1_000_000}


def test_they_are_too_big_where_the_agent_takes_no_fragments(
    new_client: Callable[..., Any],
) -> None:
    with (
        ScriptedAgent(echoes, capabilities=frozenset({Capability.PIPELINING})) as agent,
        new_client(agent.address) as client,
    ):
        with pytest.raises(FrameTooBigError, match="no fragments"):
            client.notify("m", body=bytes(20_000))
        assert client.notify("m", n=1).variables["sess.n"] == 1


def test_what_cannot_be_encoded_is_the_callers_error(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as agent, new_client(agent.address) as client:
        with pytest.raises(OverflowError):
            client.notify("m", n=2**70)
        with pytest.raises(TypeError):
            client.notify(Message("m"), n=1)
        assert client.notify("m", n=1).variables["sess.n"] == 1


# --- failures ---


def test_a_with_statement_that_cannot_connect_closes_the_client() -> None:
    async def enter(client: AsyncClient) -> None:
        with pytest.raises(RefusedError):
            await client.__aenter__()
        with pytest.raises(LocalProtocolError, match="closed"):
            await client.notify("m")

    asyncio.run(enter(AsyncClient(refused_address())))
    client = Client(refused_address())
    with pytest.raises(RefusedError):
        client.__enter__()
    with pytest.raises(LocalProtocolError, match="closed"):
        client.notify("m")


def test_a_client_of_health_checks_takes_no_calls(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as agent, new_client(agent.address, healthcheck=True) as client:
        with pytest.raises(LocalProtocolError, match="health check"):
            client.notify("m")
        assert client.peer.healthcheck


def test_refused_and_unreachable(new_client: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"127\.0\.0\.1:\d+: "):
        new_client(refused_address()).notify("m")
    with pytest.raises(UnreachableError, match="No such file"):
        new_client(f"unix:{tmp_path}/nothing").notify("m")


def test_another_address_is_taken_where_one_fails(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as first, ScriptedAgent(echoes) as second:
        client = new_client([refused_address(), first.address, second.address], minimum=2)
        assert client.notify("m", n=1).variables["sess.n"] == 1
        second.wait_until(lambda _: first.accepted == second.accepted == 1)


def test_a_killed_agent_is_replaced(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as second:
        with ScriptedAgent(echoes) as first:
            client = new_client([first.address, second.address])
            client.notify("m", n=1)
            assert (first.accepted, second.accepted) == (1, 0)
        assert calls_until_one_succeeds(client) == 2
        assert second.accepted == 1


def calls_until_one_succeeds(client: Any) -> Any:
    """At most one call can have been sent to an agent that has gone."""
    try:
        return client.notify("m", n=2).variables["sess.n"]
    except DisconnectedError:
        return client.notify("m", n=2).variables["sess.n"]


def test_a_call_whose_connection_is_lost_is_not_sent_again(
    new_client: Callable[..., Any],
) -> None:
    with (
        ScriptedAgent(echoes) as agent,
        new_client(agent.address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        agent.hold.set()
        call = pool.submit(client.notify, "m", n=1)
        agent.wait_until(lambda agent: len(agent.told) == 1)
        for wire in agent.connections:
            wire.sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(DisconnectedError, match="closed") as caught:
            call.result(10)
        assert caught.value.code == Status.IO
        agent.hold.clear()
        assert client.notify("m", n=2).variables["sess.n"] == 2
        assert len(agent.told) == 2


@pytest.mark.parametrize(
    "capabilities", [ALL_CAPABILITIES, LOCKSTEP], ids=["pipelined", "lockstep"]
)
def test_a_late_ack_is_dropped(
    new_client: Callable[..., Any], capabilities: frozenset[str]
) -> None:
    with (
        ScriptedAgent(echoes, capabilities=capabilities) as agent,
        new_client(agent.address, timeout=0.2, maximum=1) as client,
    ):
        agent.hold.set()
        with pytest.raises(SpopTimeoutError, match=r"no ACK in 0\.2 s"):
            client.notify("m", n=1)
        agent.hold.clear()
        for number in range(2, 5):
            wait_until(partial(answers_right, client, number), "an answer in 0.2 s")
        assert agent.accepted == 1


def answers_right(client: Any, number: int) -> bool:
    """Whether a call is answered in time. The answer must be its own."""
    with contextlib.suppress(SpopTimeoutError):
        assert client.notify("m", n=number).variables["sess.n"] == number
        return True
    return False


def test_an_ack_on_another_connection_ends_no_call_of_a_connection_without_async(
    new_client: Callable[..., Any],
) -> None:
    wires: list[odd_agents.Wire] = []
    held: list[tuple[odd_agents.Wire, odd_agents.Ids]] = []

    def greet(wire: odd_agents.Wire, request: bytes) -> None:
        capabilities = "pipelining,async" if wires else "pipelining"
        wires.append(wire)
        wire.send(odd_agents.hello(request, capabilities=capabilities))

    def answer(wire: odd_agents.Wire, ids: odd_agents.Ids) -> None:
        if wire is wires[0]:
            held.append((wire, ids))
        else:
            wire.send(odd_agents.ack(held[0][1], odd_agents.MORE) + odd_agents.ack(ids))

    with (
        OddAgent(Odd(greet, answer)) as agent,
        new_client(agent.address, max_waiting_frames=1, timeout=30, engine_id="e") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.notify, "check")
        wait_until(lambda: held, "the first call")
        assert client.notify("check").variables == {odd_agents.VARIABLE: True}
        held[0][0].send(odd_agents.ack(held[0][1]))
        assert first.result().variables == {odd_agents.VARIABLE: True}


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def run(agent: ScriptedAgent) -> None:
        async with AsyncClient(agent.address) as client:
            agent.hold.set()
            task = asyncio.create_task(client.notify("m", n=1))
            await asyncio.to_thread(agent.wait_until, lambda agent: len(agent.told) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            agent.hold.clear()
            assert (await client.notify("m", n=2)).variables["sess.n"] == 2

    with ScriptedAgent(echoes) as agent:
        asyncio.run(run(agent))


def test_a_call_that_is_queued_again_and_cancelled_leaves_nothing_behind() -> None:
    async def run(agent: ScriptedAgent) -> None:
        async with AsyncClient(agent.address) as client:
            task = asyncio.create_task(client.notify("m"))
            await asyncio.sleep(0)  # Its bytes are sent at the end of this turn.
            client.lost(client.pool.links[0], None)
            assert (client.pool.queued, client.pool.waiting) == (1, 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (client.pool.queued, client.pool.waiting) == (0, 0)

    with ScriptedAgent(echoes) as agent:
        asyncio.run(run(agent))


def test_a_call_that_is_waited_for_after_a_later_one_ends_at_its_own_deadline() -> None:
    async def main() -> None:
        with ScriptedAgent(lambda wire, told: None) as agent:
            async with AsyncClient(agent.address, timeout=60) as client:
                first = client.pool.exchange([Message("m")])
                client.submit(first)
                later = asyncio.create_task(client.notify("m"))
                await asyncio.sleep(0)  # It waits.
                with pytest.raises(SpopTimeoutError):
                    await asyncio.wait_for(client.wait_for(first, time.monotonic() + 0.1), 15)
                later.cancel()

    asyncio.run(main())


def test_a_call_waits_for_a_free_connection_no_longer_than_its_timeout(
    new_client: Callable[..., Any],
) -> None:
    with (
        ScriptedAgent(echoes, capabilities=LOCKSTEP) as agent,
        new_client(agent.address, timeout=0.3, maximum=1) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        wait_until(partial(answers_right, client, 0), "the connection")
        agent.hold.set()
        calls = [pool.submit(client.notify, "m", n=number) for number in range(2)]
        errors = {str(call.exception(10)) for call in calls}
        assert errors == {"no ACK in 0.3 s", "no free connection in 0.3 s"}


def test_calls_of_one_turn_of_an_event_loop_go_over_one_connection_and_the_next_over_another() -> (
    None
):
    wires: list[Wire] = []

    def move(wire: Wire, told: Told) -> None:
        wires.append(wire)
        echoes(wire, told)

    async def run(address: Any) -> None:
        async with AsyncClient(address, minimum=2) as client:
            while client.connections < 2:
                await asyncio.sleep(0.01)
            for _ in range(4):
                await asyncio.gather(*(client.notify("m", n=number) for number in range(3)))

    with ScriptedAgent(move) as agent:
        asyncio.run(run(agent.address))
    first, second = wires[0], wires[3]
    assert first is not second
    assert wires == [first] * 3 + [second] * 3 + [first] * 3 + [second] * 3


def test_calls_of_one_turn_are_not_more_than_a_connection_takes() -> None:
    wires: list[Wire] = []

    def move(wire: Wire, told: Told) -> None:
        wires.append(wire)
        echoes(wire, told)

    async def run(address: Any) -> None:
        async with AsyncClient(address, minimum=2, maximum=2, max_waiting_frames=2) as client:
            while client.connections < 2:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(client.notify("m", n=number) for number in range(4)))

    with ScriptedAgent(move) as agent:
        asyncio.run(run(agent.address))
    assert sorted(map(wires.count, wires)) == [2, 2, 2, 2]


def test_each_of_several_calls_ends_at_its_own_timeout_and_no_error_is_left_behind() -> None:
    timeout, complaints = 0.3, list[Any]()

    async def lasts(call: Any) -> float:
        begun = time.monotonic()
        with pytest.raises(SpopTimeoutError):
            await call
        return time.monotonic() - begun

    async def run(agent: ScriptedAgent) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
        async with AsyncClient(agent.address, timeout=timeout) as client:
            agent.hold.set()
            many = client.notify_many([Message("m", n=number) for number in range(3)])
            calls = [asyncio.create_task(lasts(many))]
            for number in range(5):
                calls.append(asyncio.create_task(lasts(client.notify("m", n=number))))
                await asyncio.sleep(timeout / 4)
            took = await asyncio.gather(*calls)
            assert min(took) >= timeout
            assert max(took) < 10
            assert (client.pool.waiting, client.pool.queued) == (0, 0)
        gc.collect()

    with ScriptedAgent(echoes) as agent:
        asyncio.run(run(agent))
    assert complaints == []


def test_a_closed_client_takes_no_calls(new_client: Callable[..., Any]) -> None:
    with ScriptedAgent(echoes) as agent, ThreadPoolExecutor(1) as pool:
        client = new_client(agent.address)
        agent.hold.set()
        call = pool.submit(client.notify, "m")
        agent.wait_until(lambda agent: len(agent.told) == 1)
        client.close()
        with pytest.raises(LocalProtocolError, match="closed"):
            call.result(10)
        with pytest.raises(LocalProtocolError, match="not connected"):
            client.notify("m")
        agent.wait_until(lambda agent: agent.open == 0)


# --- limits ---


def test_idle_connections_are_closed_down_to_the_minimum(new_client: Callable[..., Any]) -> None:
    with (
        ScriptedAgent(echoes, capabilities=LOCKSTEP) as agent,
        new_client(agent.address, idle_timeout=0.2, minimum=1) as client,
    ):
        agent.hold.set()
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(client.notify, "m", n=number) for number in range(4)]
            agent.wait_until(lambda agent: len(agent.told) == 4)
            agent.hold.clear()
            assert [call.result(10).variables["sess.n"] for call in calls] == [0, 1, 2, 3]
        assert agent.accepted == 4
        agent.wait_until(lambda agent: agent.open == 1)


def test_maxconnrate(new_client: Callable[..., Any]) -> None:
    began = time.monotonic()
    with (
        ScriptedAgent(echoes, capabilities=LOCKSTEP) as agent,
        new_client(agent.address, maxconnrate=2, minimum=4),
    ):
        agent.wait_until(lambda agent: len(agent.connections) == 4)
        assert agent.connections[2].greeted_at - began > 1.0


@pytest.mark.parametrize(
    "settings",
    [{"maximum": 0}, {"minimum": 3, "maximum": 2}, {"maxconnrate": 0}, {"max_frame_size": 255}],
)
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Client("127.0.0.1:9000", **settings)


# --- chaos ---

CALLS = 10_000


def outcome(number: int, ack: Ack | None) -> str:
    """Each call has its own answer, or a clear error."""
    assert ack is None or ack.variables == {"sess.n": number, "sess.size": 0}
    return "failed" if ack is None else "answered"


def check_outcomes(outcomes: list[str]) -> None:
    assert len(outcomes) == CALLS
    assert outcomes.count("answered") > CALLS / 2


@pytest.mark.parametrize("seed", [1])
def test_64_threads_in_chaos(seed: int) -> None:
    with ChaoticAgent(seed) as agent:
        client = Client(agent.address, engine_id="e", maximum=8, max_waiting_frames=16)

        def call(number: int) -> str:
            try:
                return outcome(number, client.notify("m", n=number))
            except SpopError:
                return outcome(number, None)

        with client, ThreadPoolExecutor(64) as pool:
            check_outcomes(list(pool.map(call, range(CALLS))))


@pytest.mark.parametrize("seed", [2])
def test_1000_tasks_in_chaos(seed: int) -> None:
    async def run(agent: ScriptedAgent) -> list[str]:
        numbers = iter(range(CALLS))
        outcomes: list[str] = []

        async def call(client: AsyncClient) -> None:
            for number in numbers:
                try:
                    outcomes.append(outcome(number, await client.notify("m", n=number)))
                except SpopError:
                    outcomes.append(outcome(number, None))

        async with AsyncClient(
            agent.address, engine_id="e", maximum=8, max_waiting_frames=50
        ) as client:
            await asyncio.gather(*(call(client) for _ in range(1000)))
        return outcomes

    with ChaoticAgent(seed) as agent:
        check_outcomes(asyncio.run(run(agent)))


def test_a_client_that_was_made_before_a_fork_serves_each_process() -> None:
    """As servers that load an application first, and fork their workers then."""
    with ScriptedAgent(echoes) as agent:
        code = f"""
import os
from spop import Client
client = Client({agent.address!r})
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        for n in range(50):
            assert client.notify("m", n=number * 50 + n).variables["sess.n"] == number * 50 + n
        client.close()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert client.notify("m", n=1000).variables["sess.n"] == 1000
client.close()
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("event", ["call", "c_return"])
def test_a_signal_anywhere_in_a_call_leaves_the_client_to_other_threads(event: str) -> None:
    """Python lets a signal's handler raise where a function begins and where one in C returned."""
    file = Client.notify.__code__.co_filename

    def interrupt_at(place: int) -> bool:
        """Whether there is such a place."""
        places = itertools.count()

        def profile(frame: FrameType, what: str, argument: object) -> None:
            # From CPython 3.14 on `with` calls `__enter__` as any function. A profile that raises
            # there loses each lock; a signal loses it on 3.14 alone.
            if getattr(argument, "__name__", "") == "__enter__":
                return
            if frame.f_code.co_filename == file and what == event and next(places) == place:
                sys.setprofile(None)
                raise KeyboardInterrupt

        with ScriptedAgent(echoes) as agent:
            client = Client(agent.address, timeout=60.0)
            client.connect()
            with contextlib.suppress(KeyboardInterrupt):
                sys.setprofile(profile)
                client.notify("m", n=0)
                sys.setprofile(None)
                return False
            closing = threading.Thread(target=client.close, daemon=True)
            closing.start()
            closing.join(20)
            assert not closing.is_alive(), f"the lock is lost at place {place}"
            return True

    place = 0
    while interrupt_at(place):
        place += 1
    assert place > 5
