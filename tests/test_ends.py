"""A server that is told to end does so in time, whatever its handlers do."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from haproxy import wait_until
from serving import served, wait_until_serving

from spop import Client, Message, codec

AGENT = """
import re, time
from spop import Agent

agent = Agent("stubborn")

def sleep():
    time.sleep(600)

def match():
    re.match("(a+)+$", "a" * 60 + "b")  # It holds the GIL for years.

def add(name, function, blocking):
    @agent.message(name, blocking=blocking)
    def handler(path: str):
        open(path, "w").close()
        function()

for name, function in [("sleep", sleep), ("match", match)]:
    add(f"inline-{name}", function, False)
    add(f"blocking-{name}", function, True)
"""
SERVE = """
agent.serve("unix:{path}", drain_timeout=0.1)
print("went on", flush=True)
"""

compiled = codec.IMPLEMENTATION == "c"
needs_no_gil = pytest.mark.skipif(not compiled, reason="the twin in Python needs the GIL")


@pytest.mark.skipif(not compiled, reason="there is one implementation only")
def test_the_twins_have_the_same_functions() -> None:
    for name in ("order", "order_on", "cancel"):
        found = [
            list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
            for module in ("spop.server._alarm", "spop.server._alarm_py")
        ]
        assert found[0] == found[1]


@contextlib.contextmanager
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that serves the agent, and says whether it goes on afterwards."""
    path = tmp_path / "stubborn.py"
    path.write_text(AGENT + SERVE.format(path=tmp_path / "agent.sock"))
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: listens(tmp_path / "agent.sock"), "the socket")
            yield process
        finally:
            process.kill()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@contextlib.contextmanager
def handling(tmp_path: Path, message: str) -> Iterator[None]:
    """While a handler of the server is at work."""
    begun = tmp_path / "begun"
    client = Client(f"unix:{tmp_path}/agent.sock")
    client.connect()
    client.send([Message(message, path=str(begun))])
    wait_until(begun.exists, "the handler's begin")
    yield
    client.close()


@pytest.mark.parametrize(
    ("message", "number"),
    [
        pytest.param("inline-match", signal.SIGTERM, marks=needs_no_gil),
        pytest.param("blocking-match", signal.SIGTERM, marks=needs_no_gil),
    ],
)
def test_a_program_with_a_handler_that_does_not_end_is_killed(
    tmp_path: Path, message: str, number: signal.Signals
) -> None:
    with program(tmp_path) as process, handling(tmp_path, message):
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGALRM, err
    assert out == ""


@pytest.mark.parametrize("message", ["inline-sleep", "blocking-sleep"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_lets_others_run_is_left_behind(
    tmp_path: Path, message: str, number: signal.Signals
) -> None:
    with program(tmp_path) as process, handling(tmp_path, message):
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == "went on\n"


def assert_ends_by_itself(folder: Path, source: str) -> None:
    """A program that serves on agent.sock goes on after SIGTERM, until it prints that it ends."""
    path = folder / "program.py"
    path.write_text(source.format(path=folder / "agent.sock"))
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: listens(folder / "agent.sock"), "the socket")
        process.terminate()
        assert process.communicate(timeout=30)[0] == "ended\n"
    assert process.returncode == 0


def test_a_program_that_goes_on_after_its_server_lives(tmp_path: Path) -> None:
    assert_ends_by_itself(tmp_path, GOES_ON)


GOES_ON = """
import select
from spop import Agent

Agent().serve("unix:{path}", drain_timeout=0)
select.select([], [], [], 6.5)  # More than the 5 s after which it would be killed.
print("ended")
"""


LAME = """
import spop.server.server as server
from spop import Agent

server.GRACE = -8  # Else the program would be killed 15 s after the signal, and this takes long.
Agent().serve("unix:{path}", drain_timeout=10, lame_duck=3)
print("ended")
"""


def test_a_program_is_not_killed_while_it_is_a_lame_duck(tmp_path: Path) -> None:
    assert_ends_by_itself(tmp_path, LAME)


HANGS = """
import asyncio, time
from spop import Agent

agent = Agent()

@agent.lifespan
{lifespan}

agent.serve("unix:{path}", drain_timeout=600)
"""
LIFESPANS = {
    "plain": "def life():\n    time.sleep(600)\n    yield",
    "async": "async def life():\n    await asyncio.sleep(600)\n    yield",
}


@pytest.mark.parametrize("lifespan", LIFESPANS.values(), ids=LIFESPANS)
def test_a_program_that_hangs_at_its_start_ends_when_it_is_told_to(
    tmp_path: Path, lifespan: str
) -> None:
    path = tmp_path / "hangs.py"
    path.write_text(HANGS.format(path=tmp_path / "agent.sock", lifespan=lifespan))
    with subprocess.Popen([sys.executable, str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listens(tmp_path / "agent.sock"), "the socket")
            process.terminate()
            assert process.wait(30)
        finally:
            process.kill()


def test_workers_end_in_time_with_their_supervisor_and_without(tmp_path: Path) -> None:
    message = "inline-match" if compiled else "inline-sleep"
    path = tmp_path / "stubborn.py"
    path.write_text(AGENT)
    options = "--bind", f"unix:{tmp_path}/agent.sock", "--drain-timeout", "0.1"
    with served(*options, target=f"{path}:agent") as process:
        wait_until_serving(process)
        (worker,) = process.workers()
        with handling(tmp_path, message):
            os.kill(worker, signal.SIGTERM)
            killed = f"worker {worker} died: "
            process.wait_for_log(killed)
            how = "killed by SIGALRM" if compiled else "exit status 0"
            assert killed + how in process.log
        (tmp_path / "begun").unlink()
        wait_until(lambda: process.workers() not in ([], [worker]), "the new worker")
        with handling(tmp_path, message):
            process.terminate()
            assert process.wait(30) == 0, process.log
