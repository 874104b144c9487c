"""The option `max_memory`: what all connections take together, and who is ended beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from serving import served, wait_until_serving
from wire import count, hello

from spop import Agent, Client, Message, codec
from spop.connection import EngineConnection
from spop.constants import FrameType, Status
from spop.counters import Cell
from spop.frames import Control
from spop.server import Server

MIB = 2**20


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent, released = Agent(), threading.Event()

    @agent.message("check")
    def check(number: int = 0) -> dict[str, Any]:
        return {"sess.x": number}

    @agent.message("big")
    def big() -> dict[str, Any]:
        return {"sess.x": bytes(900_000)}

    @agent.message("slow", blocking=True)
    def slow(body: bytes = b"") -> None:
        released.wait(30)

    yield agent
    released.set()


def serves(client: Client) -> bool:
    return client.notify("check", number=7).variables == {"sess.x": 7}


def taken(server: Server) -> int:
    """What the connections take, as each of them says."""
    connections = [each for loop in server._loops for each in loop.connections]
    return sum(connection.memory for connection in connections)


def ended_with(sock: socket.socket) -> int | None:
    """The status of the DISCONNECT that ended a connection; None: it ended without one."""
    data = bytearray()
    sock.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    frames = codec.decode_frames(data, max_frame_size=MIB)[0]
    last = frames[-1] if frames else None
    return last.items["status-code"] if isinstance(last, Control) else None


def partial_frame(sock: socket.socket, protocol: EngineConnection, size: int) -> None:
    sock.sendall(codec.encode_notify(1, 1, [Message("check", body=bytes(size))])[:size])


def fragments(sock: socket.socket, protocol: EngineConnection, size: int) -> None:
    room = protocol.max_frame_size - 100
    for offset in range(0, size, room):
        type_ = FrameType.UNSET if offset else FrameType.NOTIFY
        sock.sendall(codec.encode_raw_frame(type_, 0, 1, 1, bytes(min(room, size - offset))))


def waiting_for_handlers(sock: socket.socket, protocol: EngineConnection, size: int) -> None:
    frame = codec.encode_notify(1, 1, [Message("slow", body=bytes(100_000))])
    sock.sendall(frame * (size // 100_000))


HOARDS = [partial_frame, fragments, waiting_for_handlers]


@pytest.mark.parametrize("hoard", HOARDS)
def test_beyond_max_memory_connections_that_take_most_are_ended(
    agent: Agent, hoard: Callable[[socket.socket, EngineConnection, int], None]
) -> None:
    with (
        agent.serve_in_background(max_memory=4 * MIB) as server,
        contextlib.ExitStack() as stack,
        Client(str(server.address)) as client,
    ):
        small, protocol = hello(server, max_frame_size=MIB)
        stack.enter_context(small)
        hoard(small, protocol, 200_000)
        for _ in range(20):
            sock, protocol = hello(server, max_frame_size=MIB)
            stack.enter_context(sock)
            with contextlib.suppress(OSError):
                hoard(sock, protocol, 900_000)
            assert serves(client)
        wait_until(lambda: count(server, Cell.OUT_OF_MEMORY) >= 15, "the ends of connections")
        wait_until(lambda: taken(server) <= 4 * MIB, "memory that is returned")
        assert server.totals().limits()["max_memory"] == count(server, Cell.OUT_OF_MEMORY)
        statuses = server.totals().disconnects()["agent"]
        assert statuses[str(int(Status.RESOURCE))] == count(server, Cell.OUT_OF_MEMORY)
        assert serves(client)
        host, port = small.getsockname()
        assert f"{host}:{port}" in [each["address"] for each in server.connections()]


def test_the_end_for_memory_is_told(agent: Agent) -> None:
    with agent.serve_in_background(max_memory=MIB) as server:
        sock, protocol = hello(server, max_frame_size=MIB)
        with sock:
            partial_frame(sock, protocol, MIB - 100)
            assert ended_with(sock) == Status.RESOURCE


def test_a_peer_that_reads_no_answers_is_ended_without_a_word(agent: Agent) -> None:
    with (
        agent.serve_in_background(max_memory=MIB, max_unsent=MIB) as server,
        Client(str(server.address)) as client,
        contextlib.ExitStack() as stack,
    ):
        # The system keeps some megabytes of answers for each peer, and the server what is left of
        # the answer that it was at: anything below 900 000 bytes. So it takes a few peers.
        frame = codec.encode_notify(1, 1, [Message("big")])
        for _ in range(30):
            sock = stack.enter_context(hello(server, max_frame_size=MIB)[0])
            sock.sendall(frame * 30)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: count(server, Cell.OUT_OF_MEMORY) > 0, "an end", timeout=0.3)
                break
        wait_until(lambda: count(server, Cell.OUT_OF_MEMORY) > 0, "the end of a connection")
        wait_until(lambda: taken(server) <= MIB, "memory that is returned")
        assert serves(client)


def test_the_process_stays_below_max_memory(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with served("--bind", f"unix:{path}", "--max-memory", "32M") as process:
        wait_until_serving(process)
        (worker,) = process.workers()
        before = peak(worker)
        with contextlib.ExitStack() as stack, Client(f"unix:{path}") as client:
            for number in range(200):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                sock.connect(str(path))
                protocol = EngineConnection(max_frame_size=MIB)
                sock.sendall(protocol.data_to_send())
                assert sock.recv(4096)
                with contextlib.suppress(OSError):
                    partial_frame(sock, protocol, 900_000)
                client.notify("check-client-ip", number=number)
        # Without the limit it is 180 MiB. A busy machine has shown 83.
        assert peak(worker) - before < 128 * MIB


def peak(pid: int) -> int:
    """The most bytes of memory that a process had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_messages_that_were_acknowledged_first_are_dropped_beyond_half_of_it(
    agent: Agent,
) -> None:
    released = asyncio.Event()

    @agent.message("mirror", ack_first=True)
    async def mirror(body: bytes, message: Message) -> None:
        await released.wait()

    with agent.serve_in_background(max_memory=4 * MIB) as server:
        sock, protocol = hello(server, max_frame_size=MIB)
        with sock, Client(str(server.address)) as client:
            for number in range(40):
                protocol.notify(number, 1, [Message("mirror", body=bytes(100_000))])
                sock.sendall(protocol.data_to_send())
                assert sock.recv(4096)
            # Argument and message are counted: 200 000 bytes of 2 MiB each time.
            assert count(server, Cell.REJECTED) == 30
            (loop,) = server._loops
            assert 2 * MIB - 200_200 < loop.calls.memory <= 2 * MIB
            loop.call_soon(released.set)
            wait_until(lambda: loop.calls.memory == 0, "the end of the handlers")
            assert serves(client)


# --- payloads in fragments ---


def test_a_payload_in_fragments_has_the_handshake_timeout(agent: Agent) -> None:
    with agent.serve_in_background(handshake_timeout=2.0) as server:
        sock, protocol = hello(server)
        with sock, Client(str(server.address)) as client:
            fragments(sock, protocol, 100)
            assert ended_with(sock) == Status.TIMEOUT
            assert count(server, Cell.HANDSHAKE_TIMEOUTS) == 1
            assert serves(client)


def test_payloads_that_end_in_time_are_no_reason_to_end(agent: Agent) -> None:
    def end_in_time() -> bool:
        with (
            contextlib.suppress(OSError, AssertionError),
            agent.serve_in_background(handshake_timeout=0.2) as server,
        ):
            sock, _ = hello(server)
            idle, _ = hello(server)
            with sock, idle:
                end = time.monotonic() + 0.6
                while time.monotonic() < end:
                    exchange_in_fragments(sock)
            return count(server, Cell.HANDSHAKE_TIMEOUTS) == 0
        return False

    # A machine that stands still lets one of thousands last for longer, but hardly each time.
    wait_until(end_in_time, "payloads that end in time", timeout=15)


def exchange_in_fragments(sock: socket.socket) -> None:
    message = codec.encode_notify(1, 1, [Message("check")])[11:]
    sock.sendall(codec.encode_raw_frame(FrameType.NOTIFY, 0, 1, 1, message[:2]))
    sock.sendall(codec.encode_raw_frame(FrameType.UNSET, 1, 1, 1, message[2:]))
    assert sock.recv(4096)
