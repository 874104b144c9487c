"""Stopping takes no longer than the drain timeout, whatever a handler does, and names what is left."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import wait_until
from serving import Served, served

from spop import Agent, Client, Message

LONG = 60
"""Seconds that nothing here may take."""
AGENT = """
import asyncio, threading, time
from pathlib import Path
from spop import Agent

agent = Agent("tested")
running = Path(__file__).parent / "running"

@agent.message("inline")
def inline():
    running.touch()
    time.sleep(1000)

@agent.message("second-inline")
def second_inline():
    running.touch()
    time.sleep(1000)

@agent.message("pool", blocking=True)
def pool():
    running.touch()
    time.sleep(1000)

{swallows}

if __name__ == "__main__":
    import logging
    logging.basicConfig(level="INFO")
    agent.serve("127.0.0.1:0", drain_timeout={drain})
    print("serve has returned")
"""
SWALLOWS = """
@agent.message("swallows")
async def swallows():
    running.touch()
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

@agent.message("blocks")
async def blocks():
    await asyncio.sleep(0)
    running.touch()
    time.sleep(1000)
"""
HANGS = ["inline", "pool", "swallows", "blocks"]


class Serving(Served):
    """`agent.serve()` in a process of its own."""

    def __init__(self, folder: Path, message: str, drain: float, command: bool) -> None:
        path = folder / "tested_agent.py"
        swallows = SWALLOWS if message in ("swallows", "blocks") else ""
        path.write_text(AGENT.format(swallows=swallows, drain=drain))
        if command:
            options = ("--bind", "127.0.0.1:0", "--drain-timeout", str(drain))
            super().__init__(*options, target=f"{path}:agent")
        else:
            super().__init__(target="", launcher=[str(path)])
        self.wait_for_log("serves on")
        (self.port,) = re.findall(r"serves on 127.0.0.1:(\d+)", self.log)


@contextlib.contextmanager
def hanging(
    folder: Path, message: str, *, drain: float, command: bool = False
) -> Iterator[Serving]:
    """A server with a handler that has begun and does not end."""
    process = Serving(folder, message, drain, command)
    try:
        with Client(f"127.0.0.1:{process.port}", timeout=LONG) as client:
            client.send([Message(message)])
            wait_until((folder / "running").exists, "the handler")
            yield process
    finally:
        process.end()


FACES = pytest.mark.parametrize("command", [False, True], ids=["serve", "command"])


@FACES
@pytest.mark.parametrize("message", HANGS)
def test_the_drain_timeout_bounds_a_stop(tmp_path: Path, message: str, command: bool) -> None:
    with hanging(tmp_path, message, drain=1, command=command) as process:
        began = time.monotonic()
        process.terminate()
        assert process.wait(LONG) == 0, process.log
        assert time.monotonic() - began < 20
        process.end()
        assert re.search(f"message '{message}' of 127.0.0.1:[0-9]+.* left behind", process.log)
        assert "SIGALRM" not in process.log


@FACES
@pytest.mark.parametrize("message", HANGS)
def test_a_second_signal_does_not_wait(tmp_path: Path, message: str, command: bool) -> None:
    """If it comes a second after the first: both of a moment are one."""
    with hanging(tmp_path, message, drain=1000, command=command) as process:
        began = time.monotonic()
        process.terminate()
        process.wait_for_log("stopping")
        while process.poll() is None and "left behind" not in process.log:
            assert time.monotonic() - began < LONG
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert time.monotonic() - began >= 1, "the first of them came at once"
        assert process.wait(LONG) == 0, process.log
        process.end()
        assert re.search(f"message '{message}' of 127.0.0.1:[0-9]+.* left behind", process.log)


@pytest.mark.parametrize("message", ["inline", "pool"])
def test_a_server_in_a_program_stops_in_time(
    message: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, running, end = Agent(), threading.Event(), threading.Event()

    @agent.message("inline")
    def inline() -> None:
        running.set()
        end.wait(LONG)

    @agent.message("pool", blocking=True)
    def pool() -> None:
        inline()

    server = agent.serve_in_background(drain_timeout=1)
    server.start()
    with Client(str(server.address), timeout=LONG) as client:
        client.send([Message(message)])
        assert running.wait(LONG)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 20
        assert f"message '{message}' of 127.0.0.1:" in caplog.text
        assert "left behind" in caplog.text
        end.set()
        for thread in threading.enumerate():
            if thread.name.startswith("spop-"):
                thread.join(LONG)


def test_a_loop_that_hangs_does_not_keep_one_that_died(caplog: pytest.LogCaptureFixture) -> None:
    agent, running, end = Agent(), threading.Event(), threading.Event()

    @agent.message("hang")
    def hang() -> None:
        running.set()
        end.wait(LONG)

    with (
        pytest.raises(ZeroDivisionError),
        agent.serve_in_background(threads=2, drain_timeout=1) as server,
    ):
        first, second = server._loops  # type: ignore[attr-defined]
        first.call_soon(hang)
        assert running.wait(LONG)
        second.round = lambda timeout: 1 / 0
        second.call_soon(lambda: None)
        wait_until(lambda: server.failed is not None, "the loop's death")
    assert "spop-loop-0, in" in caplog.text
    end.set()
    first.thread.join(LONG)


STARTS_FOR_EVER = """
import time
from pathlib import Path
from spop import Agent

agent = Agent()

@agent.lifespan
{kind} resources():
    Path(__file__).with_name("running").touch()
    time.sleep(1000)
    yield
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_worker_that_still_starts_has_nothing_to_drain(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tested_agent.py"
    path.write_text(STARTS_FOR_EVER.format(kind=kind))
    options = ("--drain-timeout", "1000", "--lame-duck", "1000")
    with served("--bind", "127.0.0.1:0", *options, target=f"{path}:agent") as process:
        wait_until((tmp_path / "running").exists, "the lifespan")
        process.terminate()
        assert process.wait(LONG) == 0, process.log


INTERRUPTED = """
import os, signal, threading, time
from spop import Agent, Client, Message

agent, running = Agent(), threading.Event()

@agent.message("hang")
def hang():
    running.set()
    time.sleep(1000)

def interrupt():
    for seconds in (0.2, 1.5, 0):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(seconds)

began = time.monotonic()
try:
    with agent.serve_in_background(drain_timeout=1000) as server:
        Client(str(server.address)).send([Message("hang")])
        running.wait()
        threading.Thread(target=interrupt, daemon=True).start()
        time.sleep(1000)
finally:
    took = time.monotonic() - began
    os._exit(0 if 1 <= took < 30 else 1)
"""


def test_a_second_ctrl_c_ends_the_with_statement() -> None:
    assert subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=LONG).returncode == 0


ON_AN_EVENT_LOOP = """
import asyncio, contextlib, logging, sys
from spop import Agent, AsyncClient, Message

logging.basicConfig(level="INFO")
agent, running = Agent(), asyncio.Event()

@agent.message("swallows")
async def swallows():
    running.set()
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

async def main():
    ready = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        agent.serve_async("127.0.0.1:0", ready.set_result, drain_timeout=1)
    )
    server = await ready
    client = AsyncClient(str(server.address))
    asyncio.create_task(client.notify("swallows"))
    await running.wait()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    await client.close()
    print("ended")

asyncio.run(main())
"""


def test_a_cancelled_serve_async_ends_in_time_and_so_does_asyncio_run() -> None:
    command = [sys.executable, "-c", ON_AN_EVENT_LOOP]
    began = time.monotonic()
    done = subprocess.run(command, timeout=LONG, capture_output=True, text=True)
    assert time.monotonic() - began < 30
    assert done.stdout == "ended\n", done.stderr
    assert re.search(
        "message 'swallows' of 127.0.0.1:[0-9]+ did not end in .* left behind", done.stderr
    )
