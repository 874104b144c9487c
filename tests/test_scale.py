"""Many connections to one process: what each costs in memory, and that idling costs nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from haproxy import wait_until
from serving import Served, served

from spop import Ack, Message
from spop.connection import EngineConnection

IDLE, BUSY = 10_000, 1_000
MAX_BYTES = 2000


@pytest.fixture(autouse=True)
def _file_limit() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < IDLE + BUSY + 500:
        pytest.skip(f"a process may open {limits[1]} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def status(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def connect(path: str, number: int) -> tuple[socket.socket, EngineConnection]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    protocol = EngineConnection(engine_id=f"engine-{number % 8}")
    sock.sendall(protocol.data_to_send())
    while protocol.peer is None:
        protocol.receive_data(sock.recv(4096))
    return sock, protocol


def context_switches(process: Served) -> int:
    (worker,) = process.workers()
    tasks = Path(f"/proc/{worker}/task").iterdir()
    return sum(status(int(task.name), "voluntary_ctxt_switches") for task in tasks)


def test_10_000_idle_connections_and_1_000_busy_ones(tmp_path: Path) -> None:
    path = f"{tmp_path}/agent.sock"
    options = ("--bind", f"unix:{path}", "--log-level", "warning", "--log-format", "json")
    with served(*options, "--admin", "") as process, contextlib.ExitStack() as stack:
        wait_until_listening(path, process)
        (worker,) = process.workers()
        for number in range(100):  # What is only made once is made now.
            connect(path, number)[0].close()
        before = status(worker, "RssAnon")
        for number in range(IDLE):
            stack.enter_context(connect(path, number)[0])
        used = (status(worker, "RssAnon") - before) * 1024 / IDLE
        print(f"{used:.0f} bytes for each idle connection")
        assert used < MAX_BYTES, f"{used:.0f} bytes for each idle connection"

        switches = context_switches(process)
        with contextlib.suppress(TimeoutError), socket.socket() as silence:
            silence.settimeout(1)
            silence.bind(("127.0.0.1", 0))
            silence.listen()
            silence.accept()
        assert context_switches(process) - switches <= 2, "idle, but it keeps waking up"

        busy = [connect(path, number) for number in range(BUSY)]
        for _ in range(3):
            for number, (sock, protocol) in enumerate(busy):
                protocol.notify(number, 1, [Message("check-client-ip", ip=IPv4Address(number))])
                sock.sendall(protocol.data_to_send())
            for number, (sock, protocol) in enumerate(busy):
                (ack,) = protocol.receive_data(sock.recv(4096))
                assert isinstance(ack, Ack)
                assert ack.stream_id == number
                assert len(ack.actions) == 1
        for sock, _ in busy:
            sock.close()


def wait_until_listening(path: str, process: Served) -> None:
    def listens() -> bool:
        assert process.poll() is None, process.log
        with contextlib.suppress(OSError):
            connect(path, 0)[0].close()
            return True
        return False

    wait_until(listens, "the agent")
