"""A server that is to stop is not ready first; connections that are too old end without a loss."""

from __future__ import annotations

import contextlib
import http.client
import re
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
from spop.constants import Capability, FrameType
from spop.errors import SpopError
from spop.server.server import Server

TARGET = f"{EXAMPLE}:agent"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_lame_duck_serves_but_is_not_ready(tmp_path: Path, processes: str) -> None:
    address = f"unix:{tmp_path}/agent.sock"
    options = (
        "--bind", address, "--processes", processes, "--lame-duck", "600",
        "--admin", "127.0.0.1:0",
    )  # fmt: skip
    with served(*options, target=TARGET) as process, contextlib.ExitStack() as stack:
        wait_until_serving(process)
        (admin,) = re.findall(r"admin on (\S+)", process.log)
        assert status_of(admin, "/readyz") == 200
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
        assert status_of(admin, "/readyz") == 503
        assert status_of(admin, "/healthz") == 200, "it is alive, and must not be restarted"
        client.notify("check-client-ip", ip=IPv4Address(1))
        with Client(address) as another:
            another.notify("check-client-ip", ip=IPv4Address(1))
        time.sleep(1.1)  # A signal within a second is the same.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def status_of(admin: str, path: str) -> int:
    connection = http.client.HTTPConnection(admin, timeout=15)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.mark.parametrize("options", [{"lame_duck": 1.0}, {"max_connection_age": 60.0}, {}])
def test_a_server_that_ends_connections_agrees_on_no_async(options: dict[str, float]) -> None:
    """With async HAProxy up to 3.0 waits for its timeout if a NOTIFY crosses a DISCONNECT."""
    with Agent().serve_in_background(**options) as server:
        sock, protocol = connected(server)
        with sock:
            assert protocol.peer is not None
            agreed = protocol.peer.capabilities
            assert Capability.PIPELINING in agreed
            assert (Capability.ASYNC in agreed) is (not options)


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
            sock.sendall(2 * notify)
            wait_until(lambda: server.status().counts.frames_crossed == 2, "the count")


def connected(server: Server, **more: Any) -> tuple[socket.socket, EngineConnection]:
    """A connection that has said HELLO."""
    more.setdefault("engine_id", "e1")
    sock = socket.create_connection((server.address.host, server.address.port), 15)
    protocol = EngineConnection(**more)
    sock.sendall(protocol.data_to_send())
    assert isinstance(protocol.receive_data(sock.recv(4096))[0], Hello)
    return sock, protocol


def test_the_age_of_a_connection_goes_on_where_it_has_moved_to() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(15)
    state = {
        "host": None, "port": None, "began": time.monotonic() - 100, "address": "unix",
        "version": "2.0", "max_frame_size": 16380, "capabilities": [], "engine_id": None,
        "little_endian": False, "whole": False,
    }  # fmt: skip
    with Agent().serve_in_background(max_connection_age=60) as server, ours:
        taken: list[bool] = []
        server.adopt(theirs, state, taken.append)
        wait_until(lambda: taken == [True], "the answer")
        assert server.connections()[0]["opened"] == pytest.approx(time.time() - 100, abs=10)
        assert codec.decode_frames(ours.recv(4096))[0][0].type == FrameType.AGENT_DISCONNECT
