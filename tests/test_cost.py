"""The cost of a frame in instructions, which no other work on the machine changes."""

from __future__ import annotations

import socket
import sys
import tracemalloc
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from spop import Agent, Message, codec
from spop.connection import EngineConnection

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cost

LIMITS = {
    "ping-pong": 5.2,
    "1 argument": 1.7,
    "6 arguments + 600 bytes": 3.5,
    "cached": 1.2,
    "async, at once": 28,
    "async": 39,
    "blocking": 25,
    "HELLO": 36,
    "connection": 310,
    "engine's event": 86,
}
"""Times the instructions of calling the handler alone, with the compiled codec and a Python that is not in the
history. They are those of 3.13, where the handler's call is cheapest, and a fifth more, or half where threads of
server, pool and client take turns."""
ALONE = {"ping-pong", "1 argument", "6 arguments + 600 bytes", "HELLO"}
TOLERANCES = {name: 1.15 if name in ALONE else 1.3 for name in LIMITS}
"""Times what the history has last for the same Python."""


@pytest.mark.skipif(not cost.is_available(), reason="valgrind is not installed")
def test_instructions_for_each_frame() -> None:
    measured = cost.instructions()
    ratios = {name: count / measured[cost.YARDSTICK] for name, count in measured.items()}
    known = {
        name: ratio * TOLERANCES[name] for name, ratio in cost.newest().items() if name in LIMITS
    }
    limits = LIMITS | known
    over = {name: (ratios[name], limit) for name, limit in limits.items() if ratios[name] > limit}
    assert over == {}


def test_the_history_has_all_kinds_of_work() -> None:
    assert {name for name, _ in cost.history()} == cost.COUNTS.keys() - {cost.YARDSTICK}


def test_answering_frames_leaves_no_memory_behind() -> None:
    agent = Agent()

    @agent.message("m")
    def handler(ip: IPv4Address, text: str = "") -> dict[str, object]:
        return {"sess.ip": ip, "sess.text": text + "!", "sess.n": 1}

    dispatcher = agent.dispatcher()
    message = Message("m", ip=IPv4Address("192.0.2.1"), text="x" * 100, other=b"y" * 100)
    batch = b"".join(codec.encode_notify(number, 1, [message]) for number in range(20))
    intake = cost.open_intake()

    def work(times: int) -> None:
        for _ in range(times):
            dispatcher.receive(intake, batch)

    work(50)
    tracemalloc.start()
    work(50)
    before, _ = tracemalloc.get_traced_memory()
    work(500)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 1000, "10 000 frames later there are new objects"


def test_connections_that_come_and_go_leave_no_memory_behind() -> None:
    agent = Agent()
    agent.message("m")(lambda: None)

    def work(times: int) -> None:
        for _ in range(times):
            protocol = EngineConnection()
            with socket.create_connection(address, 10) as sock:
                sock.sendall(protocol.data_to_send())
                while protocol.peer is None:
                    protocol.receive_data(sock.recv(4096))
                protocol.notify(1, 1, [Message("m")])
                sock.sendall(protocol.data_to_send())
                sock.recv(4096)
                protocol.disconnect()
                sock.sendall(protocol.data_to_send())
                while sock.recv(4096):
                    pass

    with agent.serve_in_background() as server:
        address = server.address.host, server.address.port
        work(20)
        tracemalloc.start()
        work(50)
        before, _ = tracemalloc.get_traced_memory()
        work(200)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 200 * 500, f"{(after - before) / 200:.0f} bytes for each connection"
