"""Clients and engines after a fork, and in a second event loop: each answer is the caller's own."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import ScriptedAgent, echoes

from spop import AsyncClient, LocalProtocolError
from spop.engine import AsyncEngine

SPOE = """
spoe-agent counted
    messages count
    option var-prefix e
    option async
    option pipelining
    register-var-names n
    timeout processing 10s
    use-backend agents
spoe-message count
    args n=var(txn.asked)
    event on-client-session
"""

ASK = {
    "client": """
client = Client(address, timeout=10)
def ask(n): return client.notify("m", n=n).variables["sess.n"]
""",
    "async-in-force": """
client = Client(address, timeout=10, engine_id="e", maximum=3, max_waiting_frames=2)
def ask(n): return client.notify("m", n=n).variables["sess.n"]
""",
    "asyncio": """
loop = asyncio.new_event_loop()
client = AsyncClient(address, timeout=10, engine_id="e")
def ask(n): return loop.run_until_complete(client.notify("m", n=n)).variables["sess.n"]
""",
    "engine": """
engine = Engine.from_file(spoe, backends={"agents": address})
def ask(n):
    stream = engine.stream(variables=Variables({"txn.asked": n}))
    processing = stream.event("on-client-session")
    assert processing.status == 0, engine.log_line(processing)
    return processing.ack.variables["sess.n"]
""",
    "engine-asyncio": """
loop = asyncio.new_event_loop()
engine = AsyncEngine.from_file(spoe, backends={"agents": address})
async def process(n):
    stream = engine.stream(variables=Variables({"txn.asked": n}))
    return await stream.event("on-client-session")
def ask(n):
    processing = loop.run_until_complete(process(n))
    assert processing.status == 0, engine.log_line(processing)
    return processing.ack.variables["sess.n"]
""",
}

FORKING = """
import asyncio, os, sys
from spop import AsyncClient, Client
from spop.engine import AsyncEngine, Engine, Variables
address, spoe = sys.argv[1:]
{ask}
assert ask(0) == 0
children = []
for number in range(1, 4):
    child = os.fork()
    if child == 0:
        try:
            if "loop" in globals():
                loop = asyncio.new_event_loop()
            for n in range(number * 1000, number * 1000 + 100):
                assert ask(n) == n
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    children.append(child)
for n in range(1, 300):
    assert ask(n) == n
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
assert ask(300) == 300
"""


@pytest.mark.parametrize("kind", ASK)
def test_a_forked_process_has_connections_of_its_own(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "spoe.cfg"
    path.write_text(SPOE)
    with ScriptedAgent(echoes) as agent:
        words = ["-W", "ignore", "-c", FORKING.format(ask=ASK[kind]), agent.address, str(path)]
        done = subprocess.run([sys.executable, *words], capture_output=True, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    assert len(agent.told) == 1 + 3 * 100 + 299 + 1


def test_a_child_ends_nothing_of_its_parents_and_keeps_nothing_open() -> None:
    """The agent sees the parent's connection end when the parent ends it, though the child lives."""
    code = """
import os, signal, sys
from spop import Client, LocalProtocolError, Message
client = Client(sys.argv[1])
client.connect()
stream = client.send([Message("m")])
child = os.fork()
if child == 0:
    try:
        client.wait(stream)
    except LocalProtocolError:
        client.close()
        print("forked", flush=True)
        sys.stdin.read()
    os._exit(0)
signal.pause()
"""
    with ScriptedAgent(echoes) as agent:
        agent.hold.set()
        words = [sys.executable, "-W", "ignore", "-c", code, agent.address]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        assert agent.open == 1, "the child said goodbye on it"
        process.kill()
        process.wait(10)
        agent.wait_until(lambda each: each.open == 0)
        process.stdin.close()
        process.stdout.close()


left_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""asyncio warns of transports whose event loop was closed before them."""


async def ask_client(client: AsyncClient) -> Any:
    return (await client.notify("m", n=5)).variables["sess.n"]


@left_open
def test_an_async_client_has_new_connections_in_a_second_event_loop() -> None:
    with ScriptedAgent(echoes) as agent:
        client = AsyncClient(agent.address, timeout=10.0)
        for number in range(1, 4):
            assert asyncio.run(ask_client(client)) == 5
            assert agent.accepted == number
        asyncio.run(client.close())
        with pytest.raises(LocalProtocolError, match="closed"):
            asyncio.run(ask_client(client))
    gc.collect()


def test_two_event_loops_at_a_time_are_an_error() -> None:
    async def both(client: AsyncClient) -> None:
        await ask_client(client)
        for use in (ask_client(client), client.notify_many([]), client.connect(), client.close()):
            with pytest.raises(RuntimeError, match="one event loop"):
                await asyncio.to_thread(asyncio.run, use)
        await client.close()

    with ScriptedAgent(echoes) as agent:
        asyncio.run(both(AsyncClient(agent.address, timeout=10.0)))


@left_open
def test_an_async_engine_has_new_connections_in_a_second_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "spoe.cfg"
    path.write_text(SPOE)
    with ScriptedAgent(echoes) as agent:
        engine = AsyncEngine.from_file(path, backends={"agents": agent.address})

        async def process() -> int:
            processing = await engine.stream().event("on-client-session")
            assert processing is not None
            return processing.status

        async def both() -> None:
            assert await process() == 0
            with pytest.raises(RuntimeError, match="one event loop"):
                await asyncio.to_thread(asyncio.run, process())

        for number in range(1, 4):
            asyncio.run(both())
            assert agent.accepted == number
        asyncio.run(engine.close())
    gc.collect()


def test_forked_processes_make_unique_ids_of_their_own() -> None:
    script = (
        "import os; from spop.web.received import new_unique_id; new_unique_id(); "
        "child = os.fork(); os.write(1, new_unique_id().encode() + b'\\n'); "
        "child and os.waitpid(child, 0); os._exit(0)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert len(set(shown)) == 2, shown
    assert {len(each) for each in shown} == {32}
