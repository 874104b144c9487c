"""What type checkers know of options, settings and addresses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from spop import Agent, AsyncClient, Client
from spop.address import Address, texts_of
from spop.client.settings import ClientSettings, Settings
from spop.engine import Engine
from spop.engine.config import load_spoe
from spop.engine.stream import Stream, StreamFields
from spop.options import Options, ServeOptions

CONFIG = """[waf]
spoe-agent a
    messages m
    timeout processing 5s
    option var-prefix waf
    use-backend agents
spoe-message m
    event on-frontend-tcp-request
"""


@pytest.mark.parametrize(
    ("by_name", "table", "other"),
    [(ServeOptions, Options, {"bind"}), (ClientSettings, Settings, set())],
)
def test_the_names_for_type_checkers_are_those_of_the_table(
    by_name: type, table: Any, other: set[str]
) -> None:
    hints = typing.get_type_hints(table)
    given = {each.name for each in dataclasses.fields(table) if each.init} - other
    assert typing.get_type_hints(by_name) == {name: hints[name] for name in given}


def test_the_fields_for_type_checkers_are_those_of_a_stream() -> None:
    assert list(StreamFields.__annotations__) == [each.name for each in dataclasses.fields(Stream)]


WRONG = {
    "serve": "Agent().serve(thraeds=2)",
    "serve_async": "asyncio.run(Agent().serve_async(thraeds=2))",
    "serve_in_background": "Agent().serve_in_background(thraeds=2)",
    "a type": "Agent().serve(threads='2')",
    "Server": "Server(Agent(), thraeds=2)",
    "Client": "Client('x', timout=2)",
    "AsyncClient": "AsyncClient('x', timout=2)",
    "Engine": "Engine.from_file('x', backends={}, max_conections=2)",
    "AsyncEngine": "AsyncEngine.from_file('x', backends={}, max_conections=2)",
    "stream": "Engine.from_file('x', backends={}).stream(sorce=None)",
}
RIGHT = """
import asyncio
from spop import Agent, AsyncClient, Client
from spop.engine import AsyncEngine, Engine
from spop.server import Server

with Agent().serve_in_background(threads=2, allow=("10.0.0.0/8",)) as server:
    Client(server.address, timeout=2)
    AsyncClient([server.address, "unix:/x"])
    Engine.from_file("x", backends={"b": server.address})
asyncio.run(Agent().serve_async(drain_timeout=1))
"""


def test_type_checkers_find_a_misspelt_option(tmp_path: Path) -> None:
    lines = RIGHT.splitlines()
    file = tmp_path / "snippet.py"
    file.write_text("\n".join([*lines, *WRONG.values(), ""]))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", str(file)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    found = {int(error.split(":")[1]) for error in errors}
    expected = {len(lines) + number for number, _ in enumerate(WRONG, 1)}
    assert found == expected, checked.stdout + checked.stderr


# --- addresses ---


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "[::1]:9000", "unix:/run/a.sock", "abns@name"])
def test_an_address_is_one_although_it_is_a_tuple(text: str) -> None:
    address = Address.parse(text)
    assert texts_of(address) == texts_of(text) == [text]
    assert texts_of([address, "unix:/x"]) == [text, "unix:/x"]


def test_an_address_of_a_server_is_one_to_connect_to(tmp_path: Path) -> None:
    agent = Agent()
    agent.message("m")(lambda: {"txn.a": 1})
    for bind in (Address.parse("127.0.0.1:0"), f"unix:{tmp_path}/agent.sock"):
        with agent.serve_in_background(bind) as server, Client(server.address) as client:
            assert client.notify("m").variables == {"txn.a": 1}


async def _notify(address: Address) -> dict[str, Any]:
    async with AsyncClient(address) as client:
        return dict((await client.notify("m")).variables)


def test_an_address_of_a_server_is_one_for_async_clients_and_engines(tmp_path: Path) -> None:
    import asyncio

    agent = Agent()
    agent.message("m")(lambda: {"txn.a": 1})
    path = tmp_path / "spoe.cfg"
    path.write_text(CONFIG)
    with agent.serve_in_background() as server:
        assert asyncio.run(_notify(server.address)) == {"txn.a": 1}
        with Engine(
            load_spoe(path, "waf"), {"agents": server.address}, variables=["txn.waf.a"]
        ) as engine, engine.stream() as stream:  # fmt: skip
            stream.event("on-frontend-tcp-request")
            assert stream.stream.variables["txn.waf.a"] == 1


SCRIPT = """
import os, signal, sys, threading, time
from spop import Agent
{first}
agent = Agent("mine")
agent.message("m")(lambda: None)
def stop():
    while not os.path.exists("{address}"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop).start()
agent.serve("unix:{address}")
"""


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("", ["agent 'mine' serves on unix:{address}"]),
        ("import logging; logging.basicConfig(level='WARNING')", []),
        ("sys.stderr = None", []),
    ],
    ids=["no logging", "logging", "no standard error"],
)
def test_a_script_that_serves_says_where(tmp_path: Path, first: str, said: list[str]) -> None:
    address = f"{tmp_path}/agent.sock"
    code = SCRIPT.format(first=first, address=address)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [line.format(address=address) for line in said]
