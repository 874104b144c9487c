"""A server that is to stop is not ready first; connections that are too old end without a loss."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import EXAMPLE, served, wait_until_serving

from spop import Ack, Agent, Client, Message, codec
from spop.connection import Disconnect, EngineConnection, Hello
from spop.errors import SpopError
from spop.server.server import Server

TARGET = f"{EXAMPLE}:agent"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_lame_duck_serves_but_is_not_ready(tmp_path: Path, processes: str) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    options = ("--bind", address, "--processes", processes, "--lame-duck", "600")
    with served(*options, target=TARGET) as process, contextlib.ExitStack() as stack:
        wait_until_serving(process)
        client = stack.enter_context(Client(address))
        client.notify("check-client-ip", ip=IPv4Address(1))
        process.send_signal(signal.SIGTERM)
        process.wait_for_log("stopping")

        def refused() -> bool:
            try:
                with Client(address, healthcheck=True):
                    return False
            except SpopError:
                return True

        wait_until(refused, "a failed health check")
        client.notify("check-client-ip", ip=IPv4Address(1))
        with Client(address) as another:
            another.notify("check-client-ip", ip=IPv4Address(1))
        time.sleep(1.1)  # A signal within a second is the same.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_an_old_connection_in_lock_step_ends_right_behind_an_ack() -> None:
    agent = Agent()

    @agent.message("check")
    def check() -> None: ...

    with agent.serve_in_background(max_connection_age=0.5) as server:
        sock, protocol = connected(server, capabilities=frozenset())
        with sock:
            events: list[Any] = []
            while not any(isinstance(each, Disconnect) for each in events):
                protocol.notify(len(events) + 1, 1, [Message("check")])
                sock.sendall(protocol.data_to_send())
                received = protocol.receive_data(sock.recv(4096))
                assert isinstance(received[0], Ack), "each frame is answered"
                events += received
            assert server.status().limits["max_connection_age"] == 1
            assert server.status().counts.frames_crossed == 0


def test_an_old_connection_that_pipelines_ends_after_a_second_at_rest() -> None:
    with Agent().serve_in_background(max_connection_age=0.1) as server:
        sock, protocol = connected(server)
        with sock:
            (ended,) = protocol.receive_data(sock.recv(4096))
            assert isinstance(ended, Disconnect)
            assert ended.code == 0
            protocol = EngineConnection()
            notify = bytes(codec.encode_notify(1, 1, [Message("check")]))
            sock.sendall(notify)
            wait_until(lambda: server.status().counts.frames_crossed == 1, "the count")


def connected(server: Server, **more: Any) -> tuple[socket.socket, EngineConnection]:
    """A connection that has said HELLO."""
    sock = socket.create_connection((server.address.host, server.address.port), 15)
    protocol = EngineConnection(**more)
    sock.sendall(protocol.data_to_send())
    assert isinstance(protocol.receive_data(sock.recv(4096))[0], Hello)
    return sock, protocol
