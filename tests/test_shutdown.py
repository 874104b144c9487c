"""A process that ends with connections open ends with 0, at once, and without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AGENT = """
import asyncio, threading, time
from spop import Agent, AsyncClient, Client

agent, begun = Agent(), threading.Event()

@agent.message("check")
def check(n: int = 0):
    return {"sess.n": n}

@agent.message("wait")
async def wait():
    begun.set()
    await asyncio.sleep(3600)

@agent.message("block", blocking=True)
def block():
    begun.set()
    time.sleep(3600)

server = agent.serve_in_background()
server.__enter__()
address = str(server.address)
"""

CLIENTS = """
clients = [Client(address) for _ in range(3)]
for client in clients:
    assert client.notify("check", n=5).variables == {"sess.n": 5}
"""

WAITING = """
client = Client(address, timeout=3600)
threading.Thread(target=lambda: client.notify("NAME"), daemon=True).start()
assert begun.wait(30)
"""

ASYNC_CLIENT = """
async def main():
    global client
    client = AsyncClient(address)
    assert (await client.notify("check", n=5)).variables == {"sess.n": 5}
    task = asyncio.create_task(client.notify("wait"))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()

asyncio.run(main())
"""

ENGINE = """
from ipaddress import ip_address
from spop.engine import Engine, Request

engine = Engine.from_file("FILE", backends={"agents": address})
stream = engine.stream(source=ip_address("192.0.2.1"), request=Request("GET", "/"))
stream.__enter__()
stream.event("on-frontend-http-request")
assert stream.vars["sess.x.n"] == 5
"""

IN_A_THREAD = """
def use():
    client = Client(address)
    while True:
        client.notify("check", n=5)

threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
with Client(address) as client:
    client.notify("check")
"""

AT_EXIT = """
import atexit

atexit.register(lambda: client.notify("check", n=5).variables["sess.n"] == 5 or 1 / 0)
client = Client(address)
client.notify("check", n=5)
"""

SPOE = """
spoe-agent a
    messages check
    option var-prefix x
    option force-set-var
    timeout processing 5s
    use-backend agents
spoe-message check
    args n=int(5)
    event on-frontend-http-request
"""

SCRIPTS = {
    "server alone": "",
    "clients with a pool": CLIENTS,
    "async handler that waits": WAITING.replace("NAME", "wait"),
    "blocking handler that waits": WAITING.replace("NAME", "block"),
    "asyncio client": ASYNC_CLIENT,
    "engine with a pool": ENGINE,
    "threads that ask": IN_A_THREAD,
    "client that is used at the exit": AT_EXIT,
    "all of them": CLIENTS + ENGINE + IN_A_THREAD + WAITING.replace("NAME", "wait"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_interpreter_ends_with_connections_open(name: str, tmp_path: Path) -> None:
    file = tmp_path / "spoe.cfg"
    file.write_text(SPOE)
    script = AGENT + SCRIPTS[name].replace("FILE", str(file))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), ended
