"""The agents of the codec alone, of the page, as they stand there."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from spop import Client
from spop.connection import EngineConnection, Hello

PAGE = (Path(__file__).parent.parent / "docs" / "codec.md").read_text()
CODE = re.findall(
    r"```python\n(.*?)```", PAGE.partition("## An agent of the codec alone")[2], re.DOTALL
)[:2]


@pytest.fixture
def names() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec("\n".join(CODE), found)
    return found


def on_asyncio(names: dict[str, Any]) -> tuple[int, Callable[[], None]]:
    """The port of the page's agent, and a function that ends it."""
    listening: threading.Event = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        server = await asyncio.start_server(names["serve_connection"], "127.0.0.1", 0)
        found["loop"], found["task"] = asyncio.get_running_loop(), asyncio.current_task()
        found["port"] = server.sockets[0].getsockname()[1]
        listening.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            server.close()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert listening.wait(20)

    def end() -> None:
        found["loop"].call_soon_threadsafe(found["task"].cancel)
        thread.join(20)

    return found["port"], end


def in_threads(names: dict[str, Any]) -> tuple[int, Callable[[], None]]:
    server = names["socketserver"].ThreadingTCPServer(("127.0.0.1", 0), names["Connection"])
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join(20)
        server.server_close()

    return server.server_address[1], end


@pytest.mark.parametrize("begin", [on_asyncio, in_threads])
def test_the_agents_of_the_page_answer(names: dict[str, Any], begin: Any) -> None:
    port, end = begin(names)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            for last in (1, 2, 3):
                ack = client.notify("check", ip=IPv4Address(f"192.0.2.{last}"))
                assert ack.variables == {"sess.ip_score": 100 - last % 50}
        assert said(port, EngineConnection(healthcheck=True).data_to_send()) == [Hello]
        assert said(port, b"\x00\x00\x00\x03abc") == ["invalid"]
    finally:
        end()


def said(port: int, data: bytes | bytearray) -> list[Any]:
    """The events of what the agent sends before it closes."""
    protocol = EngineConnection(healthcheck=True)
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(data)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    return [
        type(event) if isinstance(event, Hello) else "invalid"
        for event in protocol.receive_data(received)
    ]


def test_the_loops_are_short() -> None:
    assert len(CODE[1].splitlines()) <= 32
